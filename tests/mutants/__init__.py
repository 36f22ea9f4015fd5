"""Is the code tested? Changes one thing at a time in a copy of it and sees whether a test fails: ``make mutants``."""
