"""The node agent: since when each connection has not been closing, whether it gets worse, and how it ended.

    schedule, episodes, causes, leak, tally, protocol   pure: values in, values out, time is an argument
    policy_file, policy, policy_trial                   pure: what the agent may end by itself, and what it would have
    store, loop, service, face                          what touches the disk, the kernel and sockets
    policing, hands                                     the policy after each diagnosis: plans, acts, the journal

Imports happen where they are needed: ``finwait --help`` must load none of it.
"""
