"""What a relay is told: declared, read, checked, and told again.

``model`` declares every option; ``toml`` and the command line give tables, which ``parsing`` turns into a `Config`
or into the mistake and its place; ``check`` says what types cannot; ``addresses`` are those of listeners and
backends; ``reference`` tells the declarations to ``--explain``, the manual and the JSON Schema.
"""
