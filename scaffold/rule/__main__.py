"""`python -m scaffold.rule NAME`."""

from __future__ import annotations

import sys

from scaffold.rule import main

sys.exit(main())
