"""What every test may rely on, however the tests were started."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# Without a clock and with the same inputs every time: a shared machine is slow at times.
settings.register_profile(
    "finwait", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("finwait")

# A shell without job control starts what it puts in the background with SIGINT ignored, nohup(1) with SIGHUP, and
# every program started from here would inherit that. The tests are about programs started as a person starts them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
