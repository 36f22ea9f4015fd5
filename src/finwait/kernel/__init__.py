"""The edges that touch the running kernel: sockets, namespaces, /proc, sysctls. Columns out, no opinions."""
