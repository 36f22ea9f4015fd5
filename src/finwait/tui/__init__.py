"""The live view: shows what `finwait.watching` returns and holds no truth of its own."""
