"""``python scripts/evaluate.py ...`` is ``turnwise evaluate ...``."""

import sys

from turnwise.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    main()
