"""``python scripts/train.py ...`` is ``turnwise train ...``."""

import sys

from turnwise.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
