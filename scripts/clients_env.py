#!/usr/bin/env python3
"""An environment with clients' libraries and datasets (extras ``clients`` and ``export``), for tests (extras_env.py).

python3 scripts/clients_env.py pytest -q tests/clients     makes it where it is missing; then a module in it
"""

import sys

from extras_env import main

if __name__ == "__main__":
    sys.exit(main("clients", ("clients", "export")))
