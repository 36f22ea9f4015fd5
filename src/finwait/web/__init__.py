"""The page of the agent and its JSON API: what the process without rights serves.

    http      requests, answers, deadlines and limits: a small HTTP/1.1 server of our own (docs/adr/0012)
    api       paths, parameters and documents of ``/api/v1``
    openapi   the same as OpenAPI, made from the types
    assets    the page: static HTML, CSS and JavaScript that ship with the package
    events    one document a look, for every reader that waits

It shows what it is handed and holds no truth of its own. Only `finwait.agent.face` imports it.
"""
