#!/usr/bin/env python3
"""An environment with Ray, the extra ``ray``, for the tests of shards and ranks on a cluster (extras_env.py).

python3 scripts/ray_env.py pytest -q tests/shards/test_ray.py     makes it where it is missing; then a module in it
"""

import sys

from extras_env import main

if __name__ == "__main__":
    sys.exit(main("ray", ("ray",)))
