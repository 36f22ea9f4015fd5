"""A TCP relay that closes correctly."""
