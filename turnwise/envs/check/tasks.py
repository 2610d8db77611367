"""Checks of the tasks: they are what the panels say, no task is in two splits, and the expert solves them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, islice

from turnwise.envs.check.probe import Finding, Frame, Probe, advised, begin, failed, passed, shown, skipped, step
from turnwise.envs.interface import Expert, HasExpert, HasPlayers, Panel, capability, world_name
from turnwise.envs.tasks import TextEnv, fitting_expert, panel
from turnwise.trajectory import Task

NO_PANELS = "no tasks(split): seed ranges stand for panels"
_MAX_EPISODE = 1000


def panels_are_stable(probe: Probe) -> Finding:
    if not probe.has_panels:
        return skipped(NO_PANELS)
    other = probe.fresh()
    for split in probe.splits:
        tasks = _panel(probe.env, split)
        if tasks.hash != _panel(other, split).hash:
            return failed(f"panel {split!r} has another hash in another instance: panels are fixed")
        for index in (0, len(tasks) // 2, len(tasks) - 1):
            if (tasks[index].split, tasks[index].index) != (split, index):
                return failed(f"task {index} of {split!r} calls itself {tasks[index].split!r} {tasks[index].index}")
    return passed(", ".join(f"{split} {len(probe.tasks(split)):,}" for split in probe.splits))


def _panel(env: TextEnv, split: str) -> Panel:
    tasks = panel(env, split)
    if not isinstance(tasks, Panel):
        raise TypeError(f"tasks({split!r}) is a {type(tasks).__name__}, expected a turnwise.envs.interface.Panel")
    return tasks


def tasks_start_what_they_say(probe: Probe) -> Finding:
    """Whether a task that is started twice, with others in between, has the same first observation and its own type."""
    num_tasks = 0
    for split in probe.some(probe.splits):
        tasks = probe.tasks(split)
        chosen = [tasks[index * len(tasks) // 4] for index in range(4)]
        starts = [begin(probe.env, task) for task in chosen]
        for task, first in zip(chosen, starts, strict=True):
            again = begin(probe.env, task)
            if again.observation != first.observation:
                return failed(
                    f"{split} task {task.index} began with {shown(first.observation)}, then with "
                    f"{shown(again.observation)}"
                )
            told = first.info.get("task_type") or task.type
            if task.type and told != task.type:
                return failed(f"{split} task {task.index} is of type {task.type!r}, info['task_type'] says {told!r}")
        num_tasks += len(chosen)
    return passed(f"{num_tasks} tasks started twice")


def evaluation_tasks_are_unique(probe: Probe) -> Finding:
    if not probe.has_panels:
        return skipped(NO_PANELS)
    sizes = []
    for split in probe.evaluation_splits:
        counts = Counter(task.key for task in islice(probe.tasks(split), 5000))
        key, most = counts.most_common(1)[0]
        if most > 1:
            twice = [task.index for task in islice(probe.tasks(split), 5000) if task.key == key]
            return failed(f"tasks {twice[0]} and {twice[1]} of {split!r} have one key: one problem, counted twice")
        sizes.append(f"{split} {len(counts)}")
    return passed("different keys: " + ", ".join(sizes)) if sizes else skipped("no split but those of training")


def splits_share_no_task(probe: Probe) -> Finding:
    """Whether content keys differ between an evaluation split and every other split."""
    if not probe.has_panels:
        return skipped(NO_PANELS)
    pairs = [pair for pair in combinations(probe.splits, 2) if set(pair) & set(probe.evaluation_splits)]
    for pair in pairs:
        small, large = sorted((_panel(probe.env, split) for split in pair), key=len)
        for task in islice(small, 5000):
            if large.may_contain(task.key):
                return failed(f"{task.split} task {task.index} is also in {large.split!r}: tasks leak")
    return passed(f"{len(pairs)} pairs of splits, by content key") if pairs else skipped("one split alone")


def expert_succeeds(probe: Probe) -> Finding:
    world = capability(probe.env, HasExpert)
    if world is None:
        return skipped("no expert(kind, seed=): warm start has nobody to clone")
    if capability(probe.env, HasPlayers) is not None:
        return skipped("a game of several players: success is relative")
    split = (probe.evaluation_splits or probe.splits)[0]
    probe.renew()  # no game has begun yet
    wins: dict[str, tuple[int, int]] = {}
    for number in probe.some(range(min(50, len(probe.tasks(split))))):
        for kind in ("searching", "knowing"):
            expert = _made(probe, kind)
            if expert is None:
                continue
            won = _last(probe, probe.tasks(split)[number], expert).info.get("success")
            if won is None:
                return skipped(
                    f"task {number} of {split!r} ended without info['success']: set env.success_threshold, else a warm "
                    "start takes every episode that terminates for a success"
                )
            wins[kind] = wins.get(kind, (0, 0))[0] + bool(won), wins.get(kind, (0, 0))[1] + 1
    if not wins:
        return failed("expert() knows neither kind 'searching' nor 'knowing'")
    text = "; ".join(f"{kind}: {won} of {num} tasks of {split!r}" for kind, (won, num) in wins.items())
    if hopeless := [kind for kind, (won, _) in wins.items() if not won]:
        return failed(f"{text}: nothing to clone from {' and '.join(hopeless)}")
    return passed(text, wins)


def _made(probe: Probe, kind: str) -> Expert | None:
    """The world's expert, made before a reset as evaluations make it; None where it has none of this kind."""
    world = capability(probe.env, HasExpert)
    assert world is not None
    try:
        made = world.expert(kind, seed=0)
    except ValueError:
        return None
    return fitting_expert(made, kind, world_name(probe.env))


def _last(probe: Probe, task: Task, expert: Expert) -> Frame:
    """Where the expert's episode of the task ends."""
    frame = begin(probe.env, task)
    expert.begin(frame.observation, frame.info)
    for _ in range(_MAX_EPISODE):
        if frame.over:
            break
        frame = step(probe.env, advised(expert, frame))
    return frame
