"""Two sound worlds, and the ways in which one can be broken. Importing this module registers them as ``check/``."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete

from turnwise.envs.interface import AnyText, Expert, Info, Panel
from turnwise.envs.panels import GeneratedTasks, content_key
from turnwise.envs.world import SnapshotEnv
from turnwise.trajectory import Task

Order = tuple[int, int, int]
SIZES = {"train": 60, "validation": 20, "test": 20}


def _order(seed: int) -> Order:
    rng = np.random.default_rng(seed)
    return int(rng.integers(1000)), int(rng.integers(1, 9)), int(rng.integers(1, 9))


def _source(env: str) -> GeneratedTasks[Order]:
    return GeneratedTasks(
        env, "lift 1", _order, lambda order: content_key(repr(order)), lambda order: "parcel", sizes=SIZES
    )


class Lift(SnapshotEnv):
    """A sound world: bring parcel N from one floor to another."""

    source = _source("lift")

    @property
    def splits(self) -> tuple[str, ...]:
        return self.source.splits

    def tasks(self, split: str) -> Panel:
        return self.source.panel(split)

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        self.order = self.source.content(split, index)
        self.floor = self.order[1]
        return self.text(), self.info(True)

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        valid = action in ("up", "down", "deliver")
        self.floor += {"up": 1, "down": -1}.get(action, 0)
        self.won = action == "deliver" and self.floor == self.order[2]
        return self.text(), float(self.won), self.won, self.info(valid, self.won)

    def text(self) -> str:
        return f"parcel {self.order[0]} goes to floor {self.order[2]}. you are on floor {self.floor}."

    def info(self, valid: bool, won: bool = False) -> Info:
        return {
            "admissible_actions": ["up", "down", "deliver"],
            "success": won,
            "score": float(won),
            "valid": valid,
            "task_type": "parcel",
        }

    def save(self) -> Any:
        return self.order, self.floor

    def load(self, state: Any) -> None:
        self.order, self.floor = state

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        return Driver(self)


class Driver:
    def __init__(self, env: Lift) -> None:
        self.env = env

    def begin(self, observation: str, info: Info) -> None:
        pass

    def act(self, observation: str, info: Info) -> str:
        gap = self.env.order[2] - self.env.floor
        return "deliver" if gap == 0 else "up" if gap > 0 else "down"


class Bare(gymnasium.Env[str, str]):
    """Sound, and nothing but gymnasium: say the number that is shown."""

    observation_space = AnyText()
    action_space = AnyText()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        super().reset(seed=seed)
        self.number, self.left = int(self.np_random.integers(10**6)), 3
        return f"say {self.number}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        self.left -= 1
        return f"say {self.number}", float(action == str(self.number)), False, self.left <= 0, {}


class WrongSpace(Lift):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = Discrete(3)  # type: ignore[assignment]


class Unseeded(Bare):
    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        return super().reset()


class Narrow(Bare):
    observation_space = gymnasium.spaces.Text(100)


class ScoreInPercent(Lift):
    def info(self, valid: bool, won: bool = False) -> Info:
        return {**super().info(valid, won), "score": 50}


class SuccessInWords(Lift):
    def info(self, valid: bool, won: bool = False) -> Info:
        return {**super().info(valid, won), "success": "no"}


class ActionsInOneString(Lift):
    def info(self, valid: bool, won: bool = False) -> Info:
        return {**super().info(valid, won), "admissible_actions": "up, down"}


class NoReward(Lift):
    def act(self, action: str) -> tuple[str, float, bool, Info]:
        observation, _, over, info = super().act(action)
        return observation, math.nan, over, info


class RewardInWords(Lift):
    def act(self, action: str) -> tuple[str, Any, bool, Info]:  # type: ignore[override]
        observation, reward, over, info = super().act(action)
        return observation, str(reward), over, info


class Loose(Lift):
    """Sound, in looser types: a tuple of actions, a flag of numpy, None for what it does not know."""

    def info(self, valid: bool, won: bool = False) -> Info:
        told = super().info(valid, won)
        actions = tuple(told["admissible_actions"])
        return {**told, "admissible_actions": actions, "success": np.bool_(won), "score": None, "valid": None}


class NoSplits(Bare):
    def tasks(self, split: str) -> Panel:
        raise ValueError(f"no split {split}")


class Quiet(Lift):
    """Does not say who has won, and its expert drops nothing but its task."""

    def info(self, valid: bool, won: bool = False) -> Info:
        told = super().info(valid, won)
        return {key: told[key] for key in told if key != "success"}


class Strict(Lift):
    def act(self, action: str) -> tuple[str, float, bool, Info]:
        action.encode()
        return super().act(action)


class Slow(Lift):
    def act(self, action: str) -> tuple[str, float, bool, Info]:
        if len(action) > 1000:
            time.sleep(60)
        return super().act(action)


class Overpromising(Lift):
    def info(self, valid: bool, won: bool = False) -> Info:
        return {**super().info(valid, won), "admissible_actions": ["up", "down", "fly"]}


class Endless(Lift):
    def __init__(self) -> None:
        super().__init__(step_limit=10**9)

    def info(self, valid: bool, won: bool = False) -> Info:
        return {**super().info(valid, won), "admissible_actions": ["up", "down"]}


class Generous(Bare):
    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        self.left -= 1
        return "well done", 1.0, self.left <= 0, False, {}


class GlobalRandom(Lift):
    def begin(self, split: str, index: int) -> tuple[str, Info]:
        random.random()
        return super().begin(split, index)


class GlobalNumpy(Lift):
    def begin(self, split: str, index: int) -> tuple[str, Info]:
        np.random.rand()  # noqa: NPY002
        return super().begin(split, index)


class Remembering(Lift):
    num_episodes = 0

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        self.num_episodes += 1
        return super().begin(split, index)

    def text(self) -> str:
        return f"{super().text()} ({self.num_episodes})"


class Numbered(Lift):
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.number = next(self.numbers)

    def text(self) -> str:
        return f"{super().text()} (lift {self.number})"


class Hashing(Lift):
    def text(self) -> str:
        return f"{super().text()} ({hash('floor')})"


class OneLift(Lift):
    """All instances share one cabin."""

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        self.order = self.source.content(split, index)
        OneLift.shared = self.order[1]
        return self.text(), self.info(True)

    @property
    def floor(self) -> int:
        return OneLift.shared

    @floor.setter
    def floor(self, floor: int) -> None:
        OneLift.shared = floor

    shared = 0


class LiveSnapshot(Lift):
    """Its snapshot is the state itself, which goes on changing."""

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        self.moves: list[str] = []
        return super().begin(split, index)

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        self.moves.append(action)
        return super().act(action)

    def text(self) -> str:
        return f"{super().text()} {len(self.moves)} moves"

    def save(self) -> Any:
        return self.order, self.floor, self.moves

    def load(self, state: Any) -> None:
        self.order, self.floor, self.moves = state


class Reshuffled(Lift):
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        by = next(self.numbers)
        self.source = dataclasses.replace(_source("reshuffled"), make=lambda seed: _order(seed + by))


class ListOfTasks(Lift):
    def tasks(self, split: str) -> Any:
        return list(super().tasks(split))


class Mixed(Lift):
    """Starts another task every time."""

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        self.turn = getattr(self, "turn", 0) + 1
        return super().begin(split, (index + self.turn) % SIZES[split])


class Mistyped(Lift):
    def info(self, valid: bool, won: bool = False) -> Info:
        return {**super().info(valid, won), "task_type": "letter"}


class _Panels(Lift):
    """Its tasks have the keys that ``key`` gives them, and the content of ``train``."""

    def key(self, split: str, index: int) -> str:
        raise NotImplementedError

    def tasks(self, split: str) -> Panel:
        return Panel("x", split, tuple(Task("x", split, n, self.key(split, n)) for n in range(SIZES[split])))

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        return super().begin("train", index)


class Repeated(_Panels):
    def key(self, split: str, index: int) -> str:
        return f"{split} {index // 2}"


class Leaking(_Panels):
    def key(self, split: str, index: int) -> str:
        return f"{index}"


class SecretlyLeaking(_Panels):
    def key(self, split: str, index: int) -> str:
        return f"{split} {index}"


class FourTasks(Bare):
    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        super().reset(seed=seed)
        self.number %= 4
        return f"say {self.number}", {}


class DatabaseOfSeeds(Bare):
    """One of two questions about a hidden table; a wrong query is an error, the right one shows the answer."""

    questions = ("How many orders did customer 17 place?", "How many orders came back?")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        super().reset(seed=seed)
        return self.ask(*(int(n) for n in self.np_random.integers((2, 10**6))))

    def ask(self, question: int, answer: int) -> tuple[str, Info]:
        self.answer, self.left = str(answer), 3
        return self.questions[question], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        self.left -= 1
        if action == self.answer:
            return "right", 1.0, True, False, {"success": True}
        text = self.answer if action == "SELECT COUNT(*)" else "syntax error"
        return text, 0.0, False, self.left <= 0, {"success": False}


class Database(DatabaseOfSeeds):
    """With panels: the answer is any number, so that no two tasks are the same."""

    most = 10**6

    def content(self, split: str, index: int) -> tuple[int, int]:
        number = [*SIZES].index(split) * 1000 + index
        return number % 2, number * 7919 % self.most

    def tasks(self, split: str) -> Panel:
        return Panel("x", split, tuple(Task("x", split, n, f"{split} {n}") for n in range(SIZES[split])))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        super().reset(seed=seed)
        return self.ask(*self.content(options["split"], options["task"]))


class DatabaseWithClerk(Database):
    """The answer is one of three numbers: whole episodes look alike, but no question tells which."""

    most = 3

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        return Clerk()


class Clerk:
    def begin(self, observation: str, info: Info) -> None:
        pass

    def act(self, observation: str, info: Info) -> str:
        return observation if observation.isdigit() else "SELECT COUNT(*)"


class DatabaseOfChoices(Database):
    """Every answer is listed, and which is right shows in the reward alone."""

    most = 3

    def ask(self, question: int, answer: int) -> tuple[str, Info]:
        return super().ask(question, answer)[0], {"admissible_actions": ["0", "1", "2"]}

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        observation, *rest, info = super().step(action)
        return observation, *rest, {**info, "admissible_actions": ["0", "1", "2"]}  # type: ignore[return-value]


class FourDatabases(DatabaseWithClerk):
    """A real leak: the question decides the answer, and there are four questions."""

    def ask(self, question: int, answer: int) -> tuple[str, Info]:
        super().ask(question, answer)
        kind = 2 * question + int(self.answer) % 2
        self.answer = str(kind)
        return f"How many orders did customer {17 + kind} place?", {}


class SecretlyLeakingDatabases(DatabaseWithClerk):
    """A real leak: the evaluation tasks are training tasks, hidden state and all, under other keys."""

    most = 10**6

    def ask(self, question: int, answer: int) -> tuple[str, Info]:
        super().ask(question, answer)
        return f"{self.questions[question]} Store {answer}.", {}

    def content(self, split: str, index: int) -> tuple[int, int]:
        return super().content("train", index)


class LeakingDatabases(DatabaseWithClerk):
    """A real leak as well, behind questions that tell nothing: no two training tasks are the same."""

    most = 10**6

    def content(self, split: str, index: int) -> tuple[int, int]:
        return super().content("train", index)


class OwnTasks(Bare):
    def tasks(self) -> list[str]:
        return ["tidy up"]


class OwnNames(Bare):
    """Names of ours that mean something else here."""

    tasks = ("tidy up",)
    players = 1
    role = "assistant"

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        return Clerk()


class NoClue(Lift):
    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        driver = Driver(self)
        driver.act = lambda observation, info: "up"  # type: ignore[method-assign]
        return driver


class Mute(Lift):
    """Its expert answers with the number of an action."""

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        driver = Driver(self)
        driver.act = lambda observation, info: 0  # type: ignore[method-assign,assignment,return-value]
        return driver


class Promised(Lift):
    def expert(self, kind: str = "searching", *, seed: int = 0) -> Any:
        return None


class Toss(Bare):
    """Two players say a number in turns; sound."""

    players = ("left", "right")

    def role(self, player: str) -> str:
        return "thrower"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        return super().reset(seed=seed)[0], {"player": "left"}

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        observation, _, _, over, _ = super().step(action)
        return observation, 0.0, over, False, self.told(over)

    def told(self, over: bool) -> Info:
        each = {player: 0.0 for player in self.players}
        ends = {"successes": {player: False for player in each}, "scores": each} if over else {}
        return {"player": self.players[self.left % 2], "rewards": each, **ends}


class SilentToss(Toss):
    def told(self, over: bool) -> Info:
        return {"player": "left", "rewards": {"left": 0.0, "right": 0.0}}


class ThirdManToss(Toss):
    def told(self, over: bool) -> Info:
        return {**super().told(over), "player": "umpire"}


class Closing(Bare):
    def close(self) -> None:
        raise RuntimeError("the door is stuck")


class Unmade(Bare):
    def __init__(self) -> None:
        raise RuntimeError("no licence")


class Dying(Bare):
    """The second step of an episode kills it; only a new instance can go on."""

    dead = False

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        self.dead = self.dead or self.left < 3
        if self.dead:
            raise RuntimeError("the simulator died\nand left a long story")
        return super().step(action)


class Picky(Bare):
    def __init__(self, size: int = 3) -> None:
        pass


for _entry in [each for each in list(globals().values()) if isinstance(each, type) and each.__module__ == __name__]:
    if issubclass(_entry, gymnasium.Env) and f"check/{_entry.__name__}-v0" not in gymnasium.registry:
        gymnasium.register(f"check/{_entry.__name__}-v0", _entry, disable_env_checker=True, order_enforce=False)
