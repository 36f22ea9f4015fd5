"""One module a pattern, named for the rule that sees it."""
