"""Joins: a socket → its other end; a socket → process → cgroup → container → pod. Pure."""
