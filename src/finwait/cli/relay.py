"""``finwait relay``: a TCP relay that closes correctly. The options are those of `finwait.relay.command`."""

from finwait.relay.command import add_parser

__all__ = ["add_parser"]
