"""Hypothesis without a clock and with the same inputs every time: a shared machine is slow at times."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "finwait", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("finwait")
