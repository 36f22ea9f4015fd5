"""What every test may rely on, however the tests were started."""

from __future__ import annotations

import signal

# A shell without job control starts what it puts in the background with SIGINT ignored, nohup(1) with SIGHUP, and
# every program started from here would inherit that. The tests are about programs started as a person starts them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
