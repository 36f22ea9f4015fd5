"""What the Kubernetes API server knows by name: pods of this node, Services and where they lead.

`objects` reads its answers, `names` keeps what they say, both without I/O; `watch` asks and follows.
"""
