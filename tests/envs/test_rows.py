"""Tasks from rows: content decides the split, no row is in two, and mistakes are named by their line."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from turnwise.envs.rows import DEALT, Rows, shared_rows

MANY = [{"question": f"what is {n}+1?", "answer": str(n + 1), "type": "add"} for n in range(60)]


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    return str(path)


def test_rows_are_dealt_by_their_content(tmp_path: Path) -> None:
    rows = Rows("w", written(tmp_path / "a.jsonl", MANY))
    keys = {split: {task.key for task in rows.panel(split)} for split in rows.splits}
    assert set(keys) == set(DEALT)
    assert sum(map(len, keys.values())) == len(set().union(*keys.values())) == len(MANY)
    other = Rows("w", [{**row, "id": n} for n, row in enumerate(reversed(MANY))])  # another order, and with ids
    assert {split: {task.key for task in other.panel(split)} for split in other.splits} == keys
    task = rows.panel("test")[1]
    assert (task.type, task.index) == ("add", 1)
    assert rows.row("test", 1) in MANY
    rows.row("test", 1)["question"] = "changed"
    assert rows.row("test", 1)["question"] != "changed"


def test_a_row_that_comes_twice_counts_once() -> None:
    rows = Rows("w", [*MANY, {**MANY[3], "id": 9}])
    assert sum(len(rows.panel(split)) for split in rows.splits) == len(MANY)


def test_a_row_in_two_splits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'train' and 'test' both hold the row .*what is 3\+1"):
        Rows("w", {"train": MANY[:10], "test": [{**MANY[3], "id": 1}, MANY[20]]})
    rows = Rows("w", {"train": MANY[:10], "test": MANY[10:12]})
    assert [len(rows.panel(split)) for split in rows.splits] == [10, 2]
    with pytest.raises(ValueError, match="Unknown split 'validation'"):
        rows.panel("validation")


def test_columns_may_have_other_names() -> None:
    rows = Rows("w", {"train": [{"prompt": "Why?", "answer": "So.", "question": "no"}]}, {"question": "prompt"})
    assert rows.row("train", 0) == {"question": "Why?", "answer": "So."}
    with pytest.raises(ValueError, match=r"row 1: Unknown column 'promt'. Did you mean 'prompt'"):
        Rows("w", [{"prompt": "Why?"}], {"question": "promt"})


def test_a_line_ends_where_jsonl_says(tmp_path: Path) -> None:
    texts = ["a\u2028b", "a\u2029b", "a\x85b", "a"]
    path = tmp_path / "a.jsonl"
    path.write_bytes("\r\n".join(json.dumps({"question": text}, ensure_ascii=False) for text in texts).encode())
    assert [row["question"] for row in Rows("w", {"train": str(path)})] == texts


def test_a_row_without_a_type_has_none() -> None:
    rows = Rows("w", {"train": [{"question": "a", "type": None}, {"question": "b"}, {"question": "c", "type": 0}]})
    assert [task.type for task in rows.panel("train")] == ["", "", "0"]


def test_files_are_read_once_for_all_worlds_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    named = written(path, MANY[:10])
    first = shared_rows("w", named)
    assert shared_rows("w", named) is first
    assert shared_rows("v", named) is not first
    assert shared_rows("w", named, {"prompt": "question"}) is not first
    written(path, MANY[:12])
    os.utime(path, ns=(1, 1))
    assert len(list(shared_rows("w", named))) == 12
    assert len(list(shared_rows("w", MANY[:5]))) == 5
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "b.jsonl", MANY[: 2 + len(folder) * (folder == "y")])
        os.utime(tmp_path / folder / "b.jsonl", ns=(1, 1))
    sizes = []
    for folder in ("x", "y"):
        monkeypatch.chdir(tmp_path / folder)
        sizes.append(len(list(shared_rows("w", {"train": "b.jsonl"}))))
    assert sizes == [2, 3]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1}\n{"a": ', "line 2: not JSON"),
        ("[1]", "line 1: expected a JSON object"),
        ('{"a": NaN}', "line 1: a row holds JSON values only"),
        ("\n", "holds no rows"),
    ],
)
def test_mistakes_are_named_by_their_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        Rows("w", str(path))


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no tasks can be read from"):
        Rows("w", str(tmp_path / "none.jsonl"))
    rows = Rows("w", MANY[:1])
    with pytest.raises(ValueError, match="none of the 1 rows belongs to"):
        rows.panel(next(split for split in DEALT if split not in rows.splits))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="needs the package datasets"):
        Rows("w", "hf:openai/gsm8k#main")


def test_datasets_are_asked_for_by_name_configuration_revision_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*given: Any, **more: Any) -> Any:
        asked.append((*given, more["revision"], more["split"]))
        return MANY[:3] if more["split"] else {"train": MANY[:3], "test": MANY[3:5]}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    whole = Rows("w", "hf:openai/gsm8k@abc#main")
    assert sum(len(whole.panel(split)) for split in whole.splits) == 5
    one = Rows("w", {"train": "hf:openai/gsm8k:train"})
    assert len(one.panel("train")) == 3
    assert asked == [("openai/gsm8k", "main", "abc", None), ("openai/gsm8k", None, None, "train")]
