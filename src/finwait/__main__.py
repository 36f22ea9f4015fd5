"""``python -m finwait`` is the command ``finwait``."""

from finwait.cli import main

raise SystemExit(main())
