"""Which tasks of a panel a run may have met before: it trained on them, cloned them, or chose by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from turnwise.assembly.policies import WhichCheckpoint
from turnwise.cloning.settings import EXPERT
from turnwise.envs.interface import Panel
from turnwise.envs.tasks import TextEnv, closed_after, demonstrated, make_env, panel
from turnwise.jsonfile import read_object
from turnwise.models.settings import ORIGIN_FILE
from turnwise.runs.directory import RunDirectory
from turnwise.trajectory import Task


def overlap_with(
    run: RunDirectory, tasks: Sequence[Task], checkpoint: WhichCheckpoint, env_id: str | None = None
) -> dict[str, int] | None:
    """How many of the tasks the run may have met, by use; {} where it is proven that it met none.

    The tasks are of the world ``env_id``, by default the run's own. None where nothing is known of it: it is neither
    that nor ``warmstart.env``. Tasks are compared by their content. What the run's model met before is not counted.
    """
    config = run.config()
    clone, env_id = config.warmstart, env_id or config.env.id
    if env_id != config.env.id and (clone is None or _bare(clone.env or "") != _bare(env_id)):
        return None
    met, closed = dict[str, set[str]](), dict[str, int]()
    with ExitStack() as opened:
        for name, make, uses in _worlds(run, checkpoint):
            try:
                world = opened.enter_context(closed_after(make()))
                same = _bare(name) == _bare(env_id)
                panels = [(use, found) for use, found in uses(world) if same or found[0].env == tasks[0].env]
            except (ValueError, OSError, RuntimeError):
                closed[f"in {name}, which cannot be opened here"] = len(tasks)
                continue
            for use, found in panels:
                met.setdefault(use, set()).update(_in(found, tasks))
    counted = {use: len(keys) for use, keys in met.items() if keys} | closed
    stored = clone is not None and clone.source != EXPERT and env_id == config.env.id
    return counted | _in_stored(run, tasks) if stored else counted


_Uses = Callable[[TextEnv], Iterator[tuple[str, Sequence[Task]]]]


def _worlds(run: RunDirectory, checkpoint: WhichCheckpoint) -> Iterator[tuple[str, Callable[[], TextEnv], _Uses]]:
    """The worlds whose tasks a run met: the name of each, what makes it, and the panels by their use in the run."""
    config, clone = run.config(), run.config().warmstart
    expert = clone if clone is not None and clone.source == EXPERT else None

    def own(world: TextEnv) -> Iterator[tuple[str, Sequence[Task]]]:
        yield "trained on", panel(world, config.env.split)
        if expert is not None and expert.is_own:
            yield "cloned on", demonstrated(world, expert.split)
        if checkpoint == "best":
            yield "selected on", panel(world, config.eval.split)[: config.eval.tasks]
        if clone is not None and clone.stop_success is not None:
            yield "selected on", panel(world, clone.stop_split)[: clone.stop_tasks]

    yield config.env.id, config.env.make, own
    if expert is not None and expert.env is not None:
        make = partial(make_env, expert.env, **expert.env_kwargs)
        yield expert.env, make, lambda world: iter([("cloned on", demonstrated(world, expert.split))])


def _in(met: Sequence[Task], tasks: Sequence[Task]) -> set[str]:
    """Keys of the tasks that may be in a panel that was met."""
    knows = met.may_contain if isinstance(met, Panel) else {task.key for task in met}.__contains__
    return {task.key for task in tasks if knows(task.key)}


def _in_stored(run: RunDirectory, tasks: Sequence[Task]) -> dict[str, int]:
    """How many of the tasks the stored episodes or chats that were cloned are of."""
    origin = run.model_path / ORIGIN_FILE
    known = read_object(origin).get("tasks") if origin.is_file() else None
    if known is None:
        return {"in what was cloned, which cannot be checked": len(tasks)}
    found = len({task.key for task in tasks} & set(known))
    return {"cloned on": found} if found else {}


def _bare(env_id: str) -> str:
    """An id without the module that registers it."""
    return env_id.rpartition(":")[2]
