"""Small servers that leave connections behind, in the languages that people write servers in."""
