"""`python -m mech_interp` is `mech`."""

from __future__ import annotations

import sys

from mech_interp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
