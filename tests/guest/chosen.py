"""Which of the kernel tests run in a guest."""

from __future__ import annotations

__all__ = ["TESTS"]

TESTS = (
    "test_sockets_against_proc",
    "test_filter_bytecode",
    "test_sysctl",
    "test_destroy_trial",
    "test_lone_sockets",
    "test_lab_topology",
    "test_bound_sockets",
    "test_unserved",
    "test_conntrack_dump",
    "test_descriptor_listing",
    "test_options_of_sockets",
    "test_closing_states",
    "test_capture_bound",
    "test_trace",
    "test_trace_owners",
    "test_strangers",
    "test_threads",
    "test_top_feed",
    "test_one_table",
    "test_files_of_a_look",
)
"""Modules of tests/kernel, the most telling first.

They ask the kernel from the process of the tests. Those that run the command line are left out: a program that loads
numpy takes ten seconds to start in emulation, and they start hundreds; the acts and the scenarios ask the same in one
process. Those of the relay are left out as well: they measure time.
"""
