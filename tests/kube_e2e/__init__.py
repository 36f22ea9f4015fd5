"""A real Kubernetes node with finwait's chart in it: ``make kube-e2e``.

`binaries` gets the programs, `images` what they run, `cluster` starts and stops them in a network, a mount and a
process namespace of their own, `checks` is what is tried, `table` writes what was seen. Nothing is pulled from a
registry. Needs root, a network for the first build, and half an hour then; as long afterwards, most of it waiting
for a policy (``--policy-seconds``).
"""
