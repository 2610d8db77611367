"""The references behind fresh vectors: equal to the official numbers, and independent of what they test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.vectors import FOLDER

HERE = Path(__file__).resolve().parents[2] / "benchmarks" / "vectors"
OFFICIAL = Path(__file__).parent


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=HERE)


def test_references_give_the_official_numbers() -> None:
    done = run("check.py", str(OFFICIAL))
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": equal") == len(list(OFFICIAL.glob("*.json")))


def test_fresh_vectors_repeat_by_their_seed_and_need_nothing_of_ours(tmp_path: Path) -> None:
    def made(seed: int, name: str) -> dict[str, bytes]:
        folder = tmp_path / name
        code = (
            "import sys, pathlib, make; make.write(pathlib.Path(sys.argv[1]), int(sys.argv[2]));"
            "assert not {'torch', 'turnwise'} & set(sys.modules)"
        )
        done = run("-c", code, str(folder), str(seed))
        assert done.returncode == 0, done.stderr
        return {path.name: path.read_bytes() for path in folder.glob("*.json")}

    first = made(3, "first")
    assert first == made(3, "second")
    assert set(first) == {path.name for path in OFFICIAL.glob("*.json")}
    assert all(content != first[name] for name, content in made(4, "other").items())


@pytest.mark.skipif(FOLDER != OFFICIAL, reason="of the official numbers only")
def test_a_file_that_is_not_there_is_skipped(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.environ['TURNWISE_GOLDEN'] = sys.argv[1]; sys.path.insert(0, sys.argv[2]);"
        "from tests.golden.vectors import cases; (only,) = cases('gae');"
        "assert only.marks[0].name == 'skip' and 'gae.json' in only.marks[0].kwargs['reason']"
    )
    assert run("-c", code, str(tmp_path), str(OFFICIAL.parents[1])).returncode == 0
