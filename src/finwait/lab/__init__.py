"""Failures on demand: real sockets in private network namespaces."""
