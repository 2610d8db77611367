"""Checks that evaluation tasks do not look like training tasks.

Content keys prove that two tasks differ, if the world computes them correctly. This check does not rely on them. It
compares what episodes look like, which is weaker evidence.

Two tasks look alike where they show the same first observation (the question) and where the same observations and
rewards follow, under actions that depend only on what was seen. An evaluation task that looks like a training task
counts as known. There is an exception. Where one question is followed by different things, its answer is in hidden
state, such as a database. Then the question does not identify the task, and meeting it again is no leak. The exception
applies only where training tasks look like one another so often that the match is expected by chance.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from turnwise.envs.check.probe import (
    FEW_STEPS,
    Episode,
    Finding,
    Frame,
    Probe,
    advised,
    begin,
    failed,
    passed,
    skipped,
    step,
)
from turnwise.envs.interface import Expert, HasExpert, HasPlayers, capability
from turnwise.envs.tasks import expert_of
from turnwise.trajectory import Task

_LEAK_SHARE = 0.5
_NUM_TRAINED, _NUM_TESTED = 256, 64
_WAY_STEPS = 50
_NUM_TRIED, _WORDS = 8, 24
"""The number of questions, and of words in each, that are tried as its answer."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What a task looks like: hashes of its first observation, and of all that was seen and earned in it.

    ``blind`` is True where neither an expert nor a list of admissible actions said what to do.
    """

    key: str
    asked: str
    seen: str
    blind: bool


def evaluation_starts_look_new(probe: Probe) -> Finding:
    """Whether at most half of the evaluation tasks look like a training task."""
    if capability(probe.env, HasPlayers) is not None:
        return skipped("a game of several players, whose evaluation differs by the opponent")
    if probe.splits[0] not in ("train", "demonstrations") or not probe.evaluation_splits:
        return skipped("no training split beside an evaluation split")
    trained: dict[str, list[_Look]] = defaultdict(list)  # by what is asked
    tested: dict[str, list[_Look]] = {split: [] for split in probe.evaluation_splits}
    for index in probe.some(range(_NUM_TRAINED)):
        for look in _looks(probe, probe.tasks(probe.splits[0]), index):
            trained[look.asked].append(look)
        for split, looks in tested.items():
            looks += _looks(probe, probe.tasks(split), index) if index < _NUM_TESTED else []
    return _verdict(probe, trained, tested)


def _verdict(probe: Probe, trained: dict[str, list[_Look]], tested: dict[str, list[_Look]]) -> Finding:
    met = {look.seen for looks in trained.values() for look in looks}
    if len(met.union(look.seen for looks in tested.values() for look in looks)) == 1:
        return skipped("every episode looks the same, so that looks prove nothing")
    alike = {split: [look for look in looks if look.seen in met] for split, looks in tested.items()}
    text = ", ".join(f"{split} {len(alike[split])} of {len(looks)}" for split, looks in tested.items())
    text = f"look like one of {len(met)} different training episodes: {text}"
    if not _too_many(alike, tested):
        return passed(f"{text} (weaker evidence than content keys)")
    hidden = _hidden_behind(probe, trained) if _repeats_itself(trained) else {}
    known = {split: [look for look in looks if look.asked not in hidden] for split, looks in alike.items()}
    if _too_many(known, tested):
        return failed(f"{text}; make more different tasks, or give each split its own")
    if all(shows for shows in hidden.values()):
        return passed(f"{text}; but there one question is followed by different things: its answer is in hidden state")
    why = "the answers may be in hidden state, which random actions do not show"
    if probe.has_panels:
        return passed(f"{text}; but {why}. By their content keys the tasks differ")
    return skipped(f"{text}; {why}. Add tasks(split) with content keys, or an expert, to make sure")


def _repeats_itself(trained: dict[str, list[_Look]]) -> bool:
    """Whether training tasks look like one another so often that evaluation tasks would, too, by chance."""
    times = Counter(look.seen for looks in trained.values() for look in looks)
    return sum(n for n in times.values() if n > 1) > _LEAK_SHARE * times.total()


def _too_many(some: dict[str, list[_Look]], all_: dict[str, list[_Look]]) -> bool:
    return any(len(some[split]) > _LEAK_SHARE * len(looks) for split, looks in all_.items())


def _hidden_behind(probe: Probe, trained: dict[str, list[_Look]]) -> dict[str, bool]:
    """The questions whose answers are in hidden state: True where that is certain, False where it is only possible.

    It is certain where different things follow one question. It is possible where nothing said what to do, tasks with
    different keys ask the same question, and in most of the tried questions no word is an answer.
    """
    shows = {asked: True for asked, looks in trained.items() if len({look.seen for look in looks}) > 1}
    unclear = {
        asked: looks[0].key
        for asked, looks in trained.items()
        if asked not in shows and all(look.blind for look in looks) and len({look.key for look in looks}) > 1
    }
    answered = [_answered_by_a_word(probe, key) for key in probe.some(list(unclear.values())[:_NUM_TRIED])]
    return shows if 2 * sum(answered) > len(answered) else shows | dict.fromkeys(unclear, False)


def _answered_by_a_word(probe: Probe, key: str) -> bool:
    """Whether a word of the first observation, taken as an action, is rewarded. Then the answer is not hidden."""
    task = next(task for task in probe.tasks(probe.splits[0]) if task.key == key)
    words = dict.fromkeys(re.findall(r"[\w.-]+", begin(probe.env, task).observation))
    for word in list(words)[-_WORDS:]:  # what is asked stands at the end
        begin(probe.env, task)
        frame = step(probe.env, word)
        if frame.reward > 0 or frame.info.get("success"):
            return True
    return False


def _looks(probe: Probe, tasks: Sequence[Task], index: int) -> list[_Look]:
    """What one task looks like; [] past the end of the panel."""
    if index >= len(tasks):
        return []
    task, expert = tasks[index], _expert(probe)
    played: Episode = probe.record(probe.env, task, FEW_STEPS)
    frames = [*played.frames, *(_way(probe, task, expert) if expert is not None else ())]
    first = (played.frames[0].observation, played.frames[0].info.get("admissible_actions"))
    seen = [
        (f.observation, f.info.get("admissible_actions"), f.reward, f.over, f.info.get("success"), f.info.get("score"))
        for f in frames
    ]
    blind = expert is None and not first[1]
    return [_Look(task.key, _hashed(first), _hashed(seen), blind)]


def _way(probe: Probe, task: Task, expert: Expert) -> list[Frame]:
    """What the expert sees and earns in its episode."""
    frames = [begin(probe.env, task)]
    expert.begin(frames[0].observation, frames[0].info)
    while not frames[-1].over and len(frames) <= _WAY_STEPS:
        frames.append(step(probe.env, advised(expert, frames[-1])))
    return frames


def _expert(probe: Probe) -> Expert | None:
    """A "searching" expert, or else a "knowing" one, always with the same seed; None where there is none."""
    if capability(probe.env, HasExpert) is None:
        return None
    for kind in ("searching", "knowing"):
        try:
            return expert_of(probe.env, kind, 0)
        except ValueError:
            continue
    return None


def _hashed(seen: object) -> str:
    return hashlib.sha256(repr(seen).encode()).hexdigest()
