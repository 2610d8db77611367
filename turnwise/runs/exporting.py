"""Exporting stored episodes for other tools: JSON lines, Parquet, or a Hugging Face ``datasets`` folder.

There are three kinds of row. ``trajectories`` rows hold everything, with token ids and log-probs as lists. ``sft`` rows
hold chat messages, as TRL's SFTTrainer and most other trainers read them. ``tokens`` rows hold the exact ids with the
action mask, which SFTTrainer reads without tokenizing anything. The last two kinds have a row for each context: one for
an episode, or one for each turn where the agent saw a window.
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.agents.chat import ChatFormat
from turnwise.agents.dialogue import asked, conversations, offered
from turnwise.agents.rendering import in_openai_form
from turnwise.agents.roles import as_message
from turnwise.agents.spelling import encodable
from turnwise.envs.interface import with_system
from turnwise.envs.said import heard
from turnwise.errors import unknown
from turnwise.models.settings import PretrainedModelConfig
from turnwise.runs.trajectories import Selection, Stored, run_of, select
from turnwise.trajectory import Fork, Grade, Grading, Processing, Task, Trajectory, Turn

Row = dict[str, Any]

FORMS = ("trajectories", "sft", "tokens")
_CHUNK = 512  # rows held at once as Python objects


def export_trajectories(target: str | Path, selection: Selection, out: str | Path, form: str = "trajectories") -> int:
    """Write the selected trajectories to ``out``; returns the number of rows.

    The suffix of ``out`` gives the kind of file: ``.jsonl``, ``.parquet``, or none for a ``datasets`` folder. The forms
    ``sft`` and ``tokens`` take won episodes alone, unless the selection asks for a success or a return. Raises
    ValueError where ``out`` exists, where nothing is selected, and where a package is missing.
    """
    if form not in FORMS:
        raise unknown("format", form, FORMS)
    path = Path(out)
    if path.suffix not in _WRITERS:
        raise ValueError(f"{path}: expected a name that ends in .jsonl or .parquet, or a folder's without a suffix")
    if form == "sft" and path.suffix != ".jsonl" and is_in_roles(target):
        raise ValueError(f"{path}: the arguments of calls have no columns in common: write chats with tools as .jsonl")
    if path.exists():
        raise ValueError(f"{path} is already there: export writes a new one")
    rows = _rows(target, selection, form)
    first = next(rows, None)
    if first is None:
        won = "" if form == "trajectories" else f"; --format {form} takes won episodes unless --success says otherwise"
        raise ValueError(f"nothing of {target} is selected, so nothing was written{won}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    try:
        num = _WRITERS[path.suffix](chain([first], rows), form, partial)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
    return num


def _rows(target: str | Path, selection: Selection, form: str) -> Iterator[Row]:
    if form == "trajectories":
        return map(trajectory_row, select(target, selection))
    if not selection.success and selection.returns == (None, None):
        selection = replace(selection, success="yes")
    make = _sft(target) if form == "sft" else _token_rows
    return (
        {**row, **origin(stored.trajectory), "update": stored.update}
        for stored in select(target, selection)
        for row in make(stored.trajectory)
    )


def _sft(target: str | Path) -> Callable[[Trajectory], Iterator[Row]]:
    """What makes the chats of an episode."""
    if is_in_roles(target):
        return partial(dialogues, system=run_of(target).config().agent.system or "")
    tell = _messages(*chat_of(target))
    return lambda trajectory: map(tell, contexts(trajectory))


def is_in_roles(target: str | Path) -> bool:
    """Whether the agent of a run had chats with roles."""
    return run_of(target).config().agent.context == "roles"


def _token_rows(trajectory: Trajectory) -> Iterator[Row]:
    return map(_tokens, contexts(trajectory))


def dialogues(trajectory: Trajectory, system: str) -> Iterator[Row]:
    """The chats of an episode with roles, and their tools: one for each reply that no later turn goes on from."""
    told, tools = conversations(trajectory.turns), offered(trajectory.turns)
    passed = {asked(turn).get("after") for turn in trajectory.turns}
    for n, turn in enumerate(trajectory.turns):
        if n not in passed:
            said = with_system([*told[n], as_message(heard(turn.action))], system)
            yield {"messages": _plain([in_openai_form(message) for message in said]), "tools": _plain(tools[n])}


def trajectory_row(stored: Stored) -> Row:
    """Every field of a trajectory as JSON values; numbers that are not finite become None."""
    trajectory = stored.trajectory
    row: Row = {"update": stored.update, "total_reward": trajectory.total_reward, **asdict(trajectory)}
    return dict(_plain(row))


def contexts(trajectory: Trajectory) -> list[list[Turn]]:
    """The turns of each context. A context begins with a turn that does not continue the one before."""
    found: list[list[Turn]] = []
    for turn in trajectory.turns:
        if not turn.continues or not found:
            found.append([])
        found[-1].append(turn)
    return found


def origin(trajectory: Trajectory) -> Row:
    """What a row of chat messages or tokens tells of its episode."""
    return {
        "episode": encodable(trajectory.episode),
        "task": trajectory.task.key,
        "task_type": encodable(trajectory.task.type),
        "success": trajectory.success,
        "total_reward": _plain(trajectory.total_reward),
    }


def _tokens(context: list[Turn]) -> Row:
    """Ids and mask of a context; the mask is 1 on the tokens of replies, but for those that were forced."""
    ids: list[int] = []
    mask: list[int] = []
    for turn in context:
        ids += [*turn.prompt_ids.tolist(), *turn.action_ids.tolist()]
        imposed = np.zeros(len(turn.action_ids)) if turn.processing is None else turn.processing.forced
        mask += [0] * len(turn.prompt_ids) + [int(not forced) for forced in imposed]
    return {"input_ids": ids, "assistant_masks": mask}


def _messages(chat: ChatFormat, system: str | None) -> Callable[[list[Turn]], Row]:
    def make(context: list[Turn]) -> Row:
        said = [("system", system)] if system else []
        for number, turn in enumerate(context):
            shown = chat.messages(turn.prompt_ids, fresh=number == 0)
            said += [*zip(cycle(("user", "assistant")), shown, strict=False), ("assistant", turn.reply)]
        return {"messages": [{"role": role, "content": encodable(text)} for role, text in said]}

    return make


def chat_of(target: str | Path) -> tuple[ChatFormat, str | None]:
    """The chat format and the system message that the run's agent had."""
    from turnwise.models.loading import load_tokenizer

    run = run_of(target)
    config = run.config()
    pretrained = config.model.path if isinstance(config.model, PretrainedModelConfig) else ""
    tokenizer = load_tokenizer(run.model_path if run.model_path.exists() else pretrained)
    return ChatFormat.of(tokenizer, config.agent), config.agent.system


def _plain(value: Any) -> Any:
    """A value for JSON: numbers that are not finite become None, and text becomes valid UTF-8.

    A float32 becomes the shortest decimal number that reads back as the same float32.
    """
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "ib" else [_plain(float(str(inner))) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return encodable(value) if isinstance(value, str) else value


def _write_jsonl(rows: Iterator[Row], form: str, path: Path) -> int:
    num = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            num += 1
    return num


def _write_parquet(rows: Iterator[Row], form: str, path: Path) -> int:
    arrow = _package("pyarrow")
    parquet = _package("pyarrow.parquet")
    schema, num = _schema(form), 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while chunk := list(islice(rows, _CHUNK)):
            writer.write_table(arrow.Table.from_pylist(chunk, schema=schema))
            num += len(chunk)
    return num


def _write_dataset(rows: Iterator[Row], form: str, path: Path) -> int:
    datasets = _package("datasets")
    features, parts = datasets.Features.from_arrow_schema(_schema(form)), []
    while chunk := list(islice(rows, _CHUNK)):
        parts.append(datasets.Dataset.from_list(chunk, features=features))
    made = datasets.concatenate_datasets(parts)
    made.save_to_disk(str(path))
    return len(made)


_WRITERS: dict[str, Callable[[Iterator[Row], str, Path], int]] = {
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
    "": _write_dataset,
}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ValueError(
            f'this kind of file needs {package}: pip install -e ".[export]" (.jsonl needs nothing)'
        ) from None


def _schema(form: str) -> Any:
    """Arrow's schema, written out so that a column that is None in every row has its type as well."""
    arrow = _package("pyarrow")
    text, whole, number, truth = arrow.string(), arrow.int64(), arrow.float64(), arrow.bool_()
    ids, nats = arrow.list_(arrow.int32()), arrow.list_(arrow.float32())
    origin = {"episode": text, "update": whole, "task": text, "task_type": text, "success": truth}
    origin["total_reward"] = number
    if form == "sft":
        said = arrow.list_(arrow.struct({"role": text, "content": text}))
        return arrow.schema({"messages": said, **origin})
    if form == "tokens":
        return arrow.schema({"input_ids": ids, "assistant_masks": arrow.list_(arrow.int8()), **origin})
    kinds = {"str": text, "int": whole, "float": number, "bool": truth, "IntArray": ids, "FloatArray": nats}
    kinds["BoolArray"] = arrow.list_(truth)

    def columns(noun: type) -> dict[str, Any]:
        """Columns by the annotations of a class's fields; nested classes are added below."""
        named = {f.name: str(f.type).removesuffix(" | None") for f in fields(noun)}
        return {name: kinds["str" if kind == "End" else kind] for name, kind in named.items() if name not in nested}

    nested = {"task": Task, "turns": Turn, "fork": Fork, "grading": Grading, "grades": Grade, "world": float}
    kinds["Processing"] = arrow.struct(columns(Processing))
    inner = {name: arrow.struct(columns(noun)) for name, noun in nested.items() if name in ("task", "fork")}
    graded = {"world": arrow.list_(number), "grades": arrow.list_(arrow.struct(columns(Grade)))}
    inner["grading"] = arrow.struct({**columns(Grading), **graded})
    turns = arrow.list_(arrow.struct(columns(Turn)))
    return arrow.schema({"update": whole, "total_reward": number, **columns(Trajectory), **inner, "turns": turns})
