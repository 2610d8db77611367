"""Tools of the checks: the environment under test, recorded episodes, findings, and the time that is left."""

from __future__ import annotations

import contextlib
import copy
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from turnwise.childprocess import EnvRaisedError
from turnwise.envs.interface import Expert, HasExpert, HasTasks, Info, are_names, attribute, capability
from turnwise.envs.process import ProcessEnv
from turnwise.envs.tasks import TextEnv, expert_of, maker, panel, start
from turnwise.envs.tasks import step as take
from turnwise.errors import place
from turnwise.trajectory import Task

Outcome = Literal["passed", "failed", "skipped"]
Item = TypeVar("Item")

TRAINING_SPLITS = ("train", "demonstrations")
"""Splits for training, in which tasks may repeat. Success is reported on the others."""
INFO_KEYS = (
    *("admissible_actions", "listed_actions", "success", "score", "valid", "task_type"),
    *("messages", "after", "tools"),
    *("player", "rewards", "successes", "scores"),
)
_USUAL_SPLITS = ("train", "demonstrations", "validation", "test")
_SEED = 7
FEW_STEPS = 8
"""Steps that are taken even when no time is left."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, in one sentence. ``rates`` maps a name to (successes, attempts) where it counted any."""

    outcome: Outcome
    text: str
    rates: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    name: str = ""
    seconds: float = 0.0


def passed(text: str, rates: Mapping[str, tuple[int, int]] | None = None) -> Finding:
    return Finding("passed", text, rates or {})


def failed(text: str) -> Finding:
    return Finding("failed", text)


def skipped(reason: str) -> Finding:
    return Finding("skipped", reason)


@dataclass(frozen=True, slots=True)
class Frame:
    """What ``reset`` (with reward 0) or ``step`` returned. Of ``info`` only the keys that turnwise reads are kept."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: Info

    @property
    def over(self) -> bool:
        return bool(self.terminated or self.truncated)


@dataclass(frozen=True, slots=True)
class Episode:
    """A task, the actions taken, and what was seen. There is one frame more than actions."""

    task: Task
    actions: tuple[str, ...]
    frames: tuple[Frame, ...]

    @property
    def over(self) -> bool:
        return self.frames[-1].over


class Probe:
    """The environment under test. The constructor raises what making the environment raises.

    All checks share ``env``. ``fresh`` makes further instances, which ``tidy`` closes. A check that uses all its time
    iterates with ``some``. ``until`` is the end of that time, on the clock of ``time.perf_counter``.
    """

    def __init__(self, env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> None:
        self.env_id, self.env_kwargs = env_id, dict(env_kwargs or {})
        self.make = maker(env_id, **self.env_kwargs)
        self.env = self.make()
        self.until = float("inf")
        self.num_steps, self.step_s = 0, 0.0
        self._extra: list[TextEnv] = []
        self._tasks: dict[str, Sequence[Task]] = {}

    def fresh(self) -> TextEnv:
        self._extra.append(self.make())
        return self._extra[-1]

    def elsewhere(self, step_timeout_s: float = 60.0) -> TextEnv:
        """An instance in a process of its own, which may hang or die. Raises EnvRaisedError where that fails."""
        self._extra.append(ProcessEnv(self.env_id, self.env_kwargs, step_timeout_s=step_timeout_s))
        return self._extra[-1]

    def renew(self) -> None:
        """Replace ``env`` by a new instance, after a failure."""
        self._extra.append(self.env)
        self.env = self.make()

    def tidy(self) -> None:
        """Close the further instances. Exceptions are ignored, since ``closing_is_harmless`` reports them."""
        while self._extra:
            env = self._extra.pop()
            with contextlib.suppress(Exception, SystemExit):
                env.close()

    def close(self) -> None:
        """Close every instance."""
        self._extra.append(self.env)
        self.tidy()

    def some(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the first item, and further ones as long as there is time."""
        for number, item in enumerate(items):
            if number and time.perf_counter() > self.until:
                return
            yield item

    @property
    def has_panels(self) -> bool:
        return capability(self.env, HasTasks) is not None

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        names = attribute(self.env, "splits")
        return (
            tuple(names)
            if self.has_panels and are_names(names)
            else tuple(split for split in _USUAL_SPLITS if self._has(split))
        )

    def _has(self, split: str) -> bool:
        try:
            return len(self.tasks(split)) > 0
        except (ValueError, KeyError):
            return False

    @property
    def evaluation_splits(self) -> list[str]:
        return [split for split in self.splits if split not in TRAINING_SPLITS]

    def tasks(self, split: str) -> Sequence[Task]:
        if split not in self._tasks:
            self._tasks[split] = panel(self.env, split)
        return self._tasks[split]

    def examples(self, num: int) -> list[Task]:
        """The first tasks of the first split. Raises ValueError where no split has any."""
        if not self.splits:
            raise ValueError(f"no task in {', '.join(_USUAL_SPLITS)}: list the names of your own in `splits`")
        found = self.tasks(self.splits[0])
        return [found[index] for index in range(min(num, len(found)))]

    def record(self, env: TextEnv, task: Task, max_steps: int = 30, seed: int = 0) -> Episode:
        """Play a task at random (``RandomPlayer``) for up to ``max_steps``; a few steps only where no time is left."""
        frames, actions, player = [begin(env, task)], list[str](), RandomPlayer(env, seed)
        player.begin(frames[0])
        while not frames[-1].over and len(actions) < max_steps:
            if len(actions) >= FEW_STEPS and time.perf_counter() > self.until:
                break
            actions.append(player.act(frames[-1]))
            began = time.perf_counter()
            frames.append(step(env, actions[-1]))
            self.step_s += time.perf_counter() - began
            self.num_steps += 1
        return Episode(task, tuple(actions), tuple(frames))


class RandomPlayer:
    """Plays random admissible actions. Where a world lists none it plays the expert's, or else random strings."""

    def __init__(self, env: TextEnv, seed: int) -> None:
        self._space, self._rng = env.action_space, random.Random(seed)
        self._space.seed(seed)
        self._expert: Expert | None = None
        if capability(env, HasExpert) is not None:
            with contextlib.suppress(ValueError):  # some have another kind alone
                self._expert = expert_of(env, "searching", seed)

    def begin(self, first: Frame) -> None:
        if self._expert is not None:
            self._expert.begin(first.observation, first.info)

    def act(self, frame: Frame) -> str:
        choices = frame.info.get("admissible_actions")
        if choices:
            return str(self._rng.choice(choices))
        return advised(self._expert, frame) if self._expert else self._space.sample()


def advised(expert: Expert, frame: Frame) -> str:
    """What the expert would do now. Raises ValueError where that is no string."""
    action = expert.act(frame.observation, frame.info)
    if not isinstance(action, str):
        raise ValueError(f"the expert answered {shown(action)}; expected an action, which is a string")
    return action


def begin(env: TextEnv, task: Task) -> Frame:
    observation, info = start(env, task, _SEED)
    return Frame(observation, 0.0, False, False, _understood(info))


def step(env: TextEnv, action: str) -> Frame:
    """Take an action. Raises ValueError where what the world returns does not fit, as in training."""
    observation, reward, terminated, truncated, info = take(env, action)
    return Frame(observation, reward, terminated, truncated, _understood(info))


def replay(env: TextEnv, episode: Episode) -> tuple[Frame, ...]:
    """The frames of the same actions, taken again from the start. They are fewer where the environment ends earlier."""
    frames = [begin(env, episode.task)]
    for action in episode.actions:
        if frames[-1].over:
            break
        frames.append(step(env, action))
    return tuple(frames)


def difference(expected: Sequence[Frame], seen: Sequence[Frame]) -> str:
    """The first difference between two runs, in words; "" where there is none."""
    for number, (one, other) in enumerate(zip(expected, seen, strict=False)):
        for name in ("observation", "reward", "terminated", "truncated"):
            if getattr(one, name) != getattr(other, name):
                return f"after {number} actions the {name} {_apart(getattr(one, name), getattr(other, name))}"
        for key in INFO_KEYS:
            if one.info.get(key) != other.info.get(key):
                return f"after {number} actions info[{key!r}] {_apart(one.info.get(key), other.info.get(key))}"
    if len(expected) != len(seen):
        return f"one episode has {len(expected) - 1} steps, the other {len(seen) - 1}"
    return ""


def shown(value: object, length: int = 60) -> str:
    """``repr``, shortened."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 4]} ..."


def first_line(error: BaseException) -> str:
    """An exception in one line: ``RuntimeError (lift.py, line 26): stuck``. For another process, that of there."""
    kind, message = type(error).__name__, str(error)
    if isinstance(error, EnvRaisedError):
        kind, message = error.type_name, error.message
    return ": ".join([kind + place(error), *message.strip().splitlines()[:1]])


def _apart(one: object, other: object) -> str:
    """Two long values, each shown from shortly before their first difference."""
    left, right = repr(one), repr(other)
    same = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    cut = max(0, same - 20)
    return f"was {left[cut : cut + 60]}, then {right[cut : cut + 60]}"


def _understood(info: Info) -> Info:
    """A copy, because some worlds later change the lists that they returned."""
    return {key: copy.deepcopy(info[key]) for key in INFO_KEYS if key in info}
