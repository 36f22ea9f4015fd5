"""The live view: shows what `finwait.follow` returns and holds no truth of its own."""
