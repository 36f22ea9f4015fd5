"""Answers what `finwait.kernel` answers, from a file."""
