"""Run a program in which some system calls fail: ``python -m tests.kernel.fewer_rights ERRNO NR… -- COMMAND``.

A seccomp filter, as container runtimes and hardened units have it. Capabilities are dropped with setpriv(1).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
RET_ERRNO, RET_ALLOW = 0x00050000, 0x7FFF0000
PIDFD_GETFD = 438


def deny(number: int, calls: list[int]) -> None:
    """Have system calls fail with an errno from now on, in this process and what it starts."""
    code = [struct.pack("=HBBI", 0x20, 0, 0, 0)]  # load seccomp_data.nr
    for k, call in enumerate(calls):
        code.append(struct.pack("=HBBI", 0x15, len(calls) - k, 0, call))  # equal: jump to the last line
    code.append(struct.pack("=HBBI", 0x06, 0, 0, RET_ALLOW))
    code.append(struct.pack("=HBBI", 0x06, 0, 0, RET_ERRNO | number))
    program = ctypes.create_string_buffer(b"".join(code))
    header = struct.pack("@HP", len(code), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) == 0


def main() -> None:
    at = sys.argv.index("--")
    deny(int(sys.argv[1]), [int(word) for word in sys.argv[2:at]])
    os.execvp(sys.argv[at + 1], sys.argv[at + 1 :])


if __name__ == "__main__":
    main()
