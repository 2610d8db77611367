"""Tasks from a dataset, read by the library datasets: a folder of Parquet files, as on the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from turnwise.envs.rows import Rows

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("datasets", reason="datasets is not installed here: scripts/clients_env.py makes an environment")

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes splits, lists of rows, as a dataset. Returns its name."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def written(**splits: list[dict[str, Any]]) -> str:
        folder = tmp_path / "set" / "data"
        folder.mkdir(parents=True)
        for split, rows in splits.items():
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
        return f"hf:{folder.parent}"

    return written


def rows(name: str, num: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {n}", "answers": [str(n), "none"], "level": n} for n in range(num)]


def test_all_splits_of_a_dataset_are_dealt(write: Write) -> None:
    found = Rows("w", write(train=rows("a", 40), test=rows("b", 9)), {"question": "prompt"})
    assert sum(len(found.panel(split)) for split in found.splits) == 49
    assert set(found.splits) == {"train", "validation", "test"}
    assert {"question": "a 3", "answers": ["3", "none"], "level": 3} in list(found)


def test_a_split_is_taken_by_name(write: Write) -> None:
    name = write(train=rows("a", 40), test=rows("b", 9))
    found = Rows("w", {"train": f"{name}:train", "test": f"{name}:test"})
    assert {split: len(found.panel(split)) for split in found.splits} == {"train": 40, "test": 9}


def test_a_row_of_two_splits_is_refused(write: Write) -> None:
    name = write(train=rows("a", 40), test=rows("a", 9))
    with pytest.raises(ValueError, match="both"):
        Rows("w", {"train": f"{name}:train", "test": f"{name}:test"})


@pytest.mark.parametrize(("more", "told"), [(":tran", "Unknown split"), ("#other", "'other' not found")])
def test_what_a_dataset_has_not_is_said(write: Write, more: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"it cannot be loaded .*{told}"):
        Rows("w", write(train=rows("a", 4)) + more)


def test_a_value_that_json_has_not_is_refused(write: Write) -> None:
    with pytest.raises(ValueError, match="row 1: a row holds JSON values only"):
        Rows("w", write(train=[{"prompt": "a", "image": b"png"}]))
