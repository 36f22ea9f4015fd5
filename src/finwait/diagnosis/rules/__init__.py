"""One module a rule: its docstring is its page, `match` is what it sees."""
