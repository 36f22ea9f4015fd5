"""``python -m finwait.relay``: the same as ``finwait relay``."""

from finwait.relay.command import main

raise SystemExit(main())
