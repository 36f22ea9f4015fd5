"""What writes the beginnings of things that take several files."""
