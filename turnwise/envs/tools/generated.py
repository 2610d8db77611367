"""The base class of our own worlds of tools: a generated problem, tools on a state, and a judge of the end."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, Protocol, TypeVar

from gymnasium.error import ResetNeeded

from turnwise.envs.interface import Expert, Info, Panel
from turnwise.envs.panels import GeneratedTasks
from turnwise.envs.said import heard, said
from turnwise.envs.tools.chatting import Talk
from turnwise.envs.tools.tool import tools_of
from turnwise.envs.toys.toy import check_expert
from turnwise.envs.world import SnapshotEnv


class Asks(Protocol):
    """A problem: the user's question."""

    @property
    def question(self) -> str: ...


Problem = TypeVar("Problem", bound=Asks)


class GeneratedToolsEnv(SnapshotEnv, Generic[Problem]):
    """Reward 1.0 where the problem is solved when the agent answers without a call, which ends the episode; else 0.

    A subclass says what the tools of a problem are (``open``), whether it is solved (``solved``), and how an expert
    solves it (``plan``).

    ``info``: what is asked in roles, ``success``, ``score`` (0.0 or 1.0), ``valid`` (every call named a tool and fitted
    its schema).
    """

    in_roles = True

    def __init__(self, source: GeneratedTasks[Problem], split: str, step_limit: int) -> None:
        super().__init__(split, step_limit)
        self._source = source
        self._place: tuple[str, int] | None = None
        self._talk = Talk(())

    @property
    def splits(self) -> tuple[str, ...]:
        return self._source.splits

    def tasks(self, split: str) -> Panel:
        """The fixed panel of a split. Raises ValueError for an unknown one."""
        return self._source.panel(split)

    @abstractmethod
    def open(self, problem: Problem) -> object:
        """The object whose methods are the tools, with the state in which the problem begins."""

    @abstractmethod
    def solved(self, reply: str) -> bool:
        """Whether the problem is solved, now that the agent has answered ``reply``."""

    @abstractmethod
    def plan(self, problem: Problem, *, looks: bool) -> list[str]:
        """The actions that solve it; without ``looks`` those alone that are needed by who knows everything."""

    def state(self) -> Any:
        """What the tools have changed, for snapshots: None where they change nothing."""
        return None

    def set_state(self, state: Any) -> None:
        """Go on from what ``state`` returned, after ``open``."""

    @property
    def problem(self) -> Problem:
        """The present task. Raises ResetNeeded before the first reset."""
        if self._place is None:
            raise ResetNeeded("There is no task yet: call reset() first.")
        return self._source.content(*self._place)

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        self._begin(split, index)
        return self._talk.open(self.problem.question)

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        reply = heard(action)
        if reply.calls or reply.fault is not None:
            observation, info, _ = self._talk.answer(reply)
            return observation, 0.0, False, {**info, "success": False, "score": 0.0}
        success = self.solved(reply.content)
        return "", float(success), True, {"valid": bool(reply.content), "success": success, "score": float(success)}

    def save(self) -> Any:
        self.problem  # noqa: B018  (there must be one)
        return self._place, self._talk.turn, self.state()

    def load(self, state: Any) -> None:
        place, turn, changed = state
        self._begin(*place)
        self._talk.turn = turn
        self.set_state(changed)

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        """ "searching" looks before it acts, "knowing" acts at once."""
        check_expert(kind, type(self).__name__)
        return Planned(self, looks=kind == "searching")

    def _begin(self, split: str, index: int) -> None:
        self._place = (split, index)
        self._talk = Talk(tools_of(self.open(self.problem)))


class Planned:
    """An expert that follows the plan of the present problem; where its last action is "", it says what it read."""

    def __init__(self, env: GeneratedToolsEnv[Any], looks: bool) -> None:
        self._env, self._looks, self._left = env, looks, list[str]()

    def begin(self, observation: str, info: Info) -> None:
        self._left = self._env.plan(self._env.problem, looks=self._looks)

    def act(self, observation: str, info: Info) -> str:
        action = self._left.pop(0) if self._left else ""
        return action or said(observation)
