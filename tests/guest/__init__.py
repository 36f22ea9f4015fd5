"""Other kernels: Debian's, each booted in an emulated machine, with finwait inside.

Theory of operation. What finwait says rests on what a kernel hands out, and that differs by kernel. Debian
keeps several alive, one package each. `make kernels` fetches those packages with an apt of its own
(``debian``), unpacks them without installing, and boots each under qemu without any help of the processor
(``boot``), so that it works inside containers and virtual machines as well. The root file system of the guest
is this machine's own ``/usr``, this Python and this clone, packed into an uncompressed squashfs below a
writable overlay (``image``): the guest runs exactly what is tested here, on another kernel.

In the guest one Python process does nearly everything (``inside``): an interpreter that loads numpy takes ten
seconds in emulation. It writes a line of JSON per thing tried to a folder shared with the host, so that a
guest that dies has still said how far it came. ``measured/VERSION.json`` keeps what was measured, with its
date; ``page`` makes the reference page of it.

What this cannot see. Timing: an emulated processor is twenty times slower than the real one, so nothing here
is a benchmark. Other architectures: the guest is amd64. Configurations other than Debian's.
"""
