"""The settings of an update: importing them is cheap."""

from __future__ import annotations

import subprocess
import sys


def test_the_settings_are_imported_without_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import turnwise.learning.settings, sys; assert 'torch' not in sys.modules"],
        check=True,
        timeout=60,
    )
