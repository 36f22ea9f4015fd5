"""The kernel settings that bear on closing a TCP connection, and what each of them really does.

They are declarations in Python and not in a data file: many of their texts hold spans of time, and every such span is
computed by `finwait.diagnosis.forecast`. `catalogue` has them all, `model` says what is known of one.
"""
