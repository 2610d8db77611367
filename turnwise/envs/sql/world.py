"""Questions about a database, answered with SQL: real SQLite, generated, no download."""

from __future__ import annotations

from typing import Any

from turnwise.envs.interface import Expert, Info, Panel
from turnwise.envs.said import heard, said
from turnwise.envs.sql.database import Database, shown
from turnwise.envs.sql.problems import ENV_ID, LEVELS, Problem, problems
from turnwise.envs.tools.chatting import Talk
from turnwise.envs.tools.tool import tools_of
from turnwise.envs.toys.toy import check_expert, level_of
from turnwise.envs.world import SnapshotEnv

INSTRUCTIONS = "Answer the question about the database. Look at it with the tools, then say the answer alone."


class Tools:
    """What the agent can call."""

    def __init__(self, problem: Problem, database: Database) -> None:
        self._problem, self._database = problem, database

    def tables(self) -> str:
        """List the tables and their columns."""
        return self._problem.schema

    def query(self, sql: str) -> str:
        """Read the database with a SELECT of SQLite."""
        return shown(self._database.rows(sql))


class SQLEnv(SnapshotEnv):
    """Reward 1.0 for the right answer, which ends the episode, else 0.

    ``difficulty``: "easy" (one table of 6 rows; a value, a count, the highest), "medium" (two tables of 10; sums,
    bounds, the lowest of some), "hard" (three tables; joins too); ``step_limit`` overrides the 6 to 8 replies. Names of
    tables and columns differ from task to task. An answer is right when it is the same number, or the same text
    whatever its case; a full stop after it does not matter.

    ``info``: what is asked in roles, ``success``, ``score`` (0.0 or 1.0), ``valid`` (every call named a tool and fitted
    its schema).
    """

    instructions = INSTRUCTIONS

    def __init__(self, difficulty: str = "easy", split: str = "train", step_limit: int | None = None) -> None:
        level = level_of(LEVELS, difficulty, ENV_ID)
        super().__init__(split, level.step_limit if step_limit is None else step_limit)
        self.difficulty, self._source = difficulty, problems(difficulty)
        self._place: tuple[str, int] | None = None
        self._database: Database | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        return self._source.splits

    def tasks(self, split: str) -> Panel:
        """The fixed panel of a split. Raises ValueError for an unknown one."""
        return self._source.panel(split)

    def _size(self, split: str) -> int:
        return len(self._source.panel(split))

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        self._open(split, index)
        return self._talk.open(self.problem.question)

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        reply = heard(action)
        if reply.calls or reply.fault is not None:
            observation, info, _ = self._talk.answer(reply)
            return observation, 0.0, False, {**info, "success": False, "score": 0.0}
        success = same(reply.content, self.problem.answer)
        info = {"valid": bool(reply.content), "success": success, "score": float(success)}
        return "", float(success), True, info

    def save(self) -> Any:
        return (*self._at, self._talk.turn)

    def load(self, state: Any) -> None:
        split, index, turn = state
        self._open(split, index)
        self._talk.turn = turn

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        """ "searching" looks at the tables and asks the query, "knowing" says the answer at once."""
        check_expert(kind, ENV_ID)
        return SQLExpert(self, looks=kind == "searching")

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    @property
    def problem(self) -> Problem:
        """The present task. Raises ResetNeeded before the first reset."""
        return self._source.content(*self._at)

    @property
    def _at(self) -> tuple[str, int]:
        if self._place is None:
            from gymnasium.error import ResetNeeded

            raise ResetNeeded("There is no task yet: call reset() first.")
        return self._place

    def _open(self, split: str, index: int) -> None:
        self.close()
        self._place = (split, index)
        self._database = self.problem.database()
        self._talk = Talk(tools_of(Tools(self.problem, self._database)))


def same(reply: str, answer: str) -> bool:
    """Whether a reply is the answer: the same number, or the same text whatever its case."""
    given = reply.strip().rstrip(".").strip()
    try:
        return float(given) == float(answer)
    except ValueError:
        return given.casefold() == answer.casefold()


class SQLExpert:
    """Looks at the tables, asks the query that answers the question, and says what it read."""

    def __init__(self, env: SQLEnv, looks: bool) -> None:
        self._env, self._looks, self._turn = env, looks, 0

    def begin(self, observation: str, info: Info) -> None:
        self._turn = 0

    def act(self, observation: str, info: Info) -> str:
        self._turn += 1
        if self._looks and self._turn == 1:
            return said(calls=[{"name": "tables", "arguments": {}}])
        if self._looks and self._turn == 2:
            return said(calls=[{"name": "query", "arguments": {"sql": self._env.problem.sql}}])
        return said(observation if self._looks else self._env.problem.answer)
