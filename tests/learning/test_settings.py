"""The settings of an update, and what they are by default."""

from __future__ import annotations

import subprocess
import sys

from turnwise.learning.settings import RunInfo


def test_the_settings_are_imported_without_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import turnwise.learning.settings, sys; assert 'torch' not in sys.modules"],
        check=True,
        timeout=60,
    )


def test_a_run_begins_with_seed_0() -> None:
    assert RunInfo(1, 2).seed == 0
