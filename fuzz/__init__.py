"""Inputs that nobody would write, for every decoder. `python -m fuzz --seconds 60`.

A module here has `one_input(data)`, which may let nothing but its checks escape, and `seeds()`, real inputs
to start from (a text format may do without).
"""
