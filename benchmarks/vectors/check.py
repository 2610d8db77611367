"""Do the references give the numbers that the official implementations gave?

    python benchmarks/vectors/check.py [FOLDER]        default: tests/golden

Every output of every case, from its inputs, within rtol 1e-4 and atol 1e-5 (the official numbers are float32).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from references import REFERENCES, from_json, to_json

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden"


def differences(folder: Path, name: str) -> list[str]:
    """Where the reference and a file's numbers part, as sentences."""
    found = []
    for number, case in enumerate(json.loads((folder / f"{name}.json").read_text())["cases"]):
        for key, value in to_json(REFERENCES[name](from_json(case))).items():
            if key in case:
                found += [f"{name} {number} {key}{where}" for where in _unequal(value, case[key])]
    return found


def _unequal(ours: Any, official: Any, where: str = "") -> list[str]:
    if isinstance(ours, dict):
        shared = [key for key in ours if key in official]
        return [line for key in shared for line in _unequal(ours[key], official[key], f"{where}.{key}")]
    if isinstance(ours, list):
        if len(ours) != len(official):
            return [f"{where}: {len(ours)} for {len(official)} entries"]
        lines = [
            line
            for i, (a, b) in enumerate(zip(ours, official, strict=True))
            for line in _unequal(a, b, f"{where}[{i}]")
        ]
        return lines[:3]
    if isinstance(ours, (bool, int, float)) and isinstance(official, (bool, int, float)):
        same = bool(np.isclose(float(ours), float(official), rtol=1e-4, atol=1e-5))
    else:
        same = ours == official
    return [] if same else [f"{where}: {ours} for {official}"]


def main(words: list[str]) -> int:
    folder = Path(words[0]) if words else FOLDER
    lines = []
    for name in REFERENCES:
        if (folder / f"{name}.json").exists():
            own = differences(folder, name)
            print(f"{name}: {'equal' if not own else f'{len(own)} differences'}")
            lines += own
    print("\n".join(lines))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
