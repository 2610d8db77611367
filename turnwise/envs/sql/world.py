"""Questions about a database, answered with SQL: real SQLite, generated, no download."""

from __future__ import annotations

from turnwise.envs.said import said
from turnwise.envs.sql.database import Database, shown
from turnwise.envs.sql.problems import ENV_ID, LEVELS, Problem, problems
from turnwise.envs.tools.generated import GeneratedToolsEnv
from turnwise.envs.toys.toy import level_of

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


class SQLEnv(GeneratedToolsEnv[Problem]):
    """Reward 1.0 for the right answer, which ends the episode, else 0.

    ``difficulty``: "easy" (one table of 6 rows; a value, a count, the highest), "medium" (two tables of 10; sums,
    bounds, the lowest of some), "hard" (three tables; joins too); ``step_limit`` overrides the 6 to 8 replies. Names of
    tables and columns differ from task to task. An answer is right when it is the same number, or the same text
    whatever its case; a full stop after it does not matter.

    Experts: "searching" looks at the tables and asks the query, "knowing" says the answer at once.
    """

    instructions = INSTRUCTIONS

    def __init__(self, difficulty: str = "easy", split: str = "train", step_limit: int | None = None) -> None:
        level = level_of(LEVELS, difficulty, ENV_ID)
        super().__init__(problems(difficulty), split, level.step_limit if step_limit is None else step_limit)
        self.difficulty = difficulty
        self._database: Database | None = None

    def open(self, problem: Problem) -> Tools:
        self.close()
        self._database = problem.database()
        return Tools(problem, self._database)

    def solved(self, reply: str) -> bool:
        return same(reply, self.problem.answer)

    def plan(self, problem: Problem, *, looks: bool) -> list[str]:
        if not looks:
            return [said(problem.answer)]
        asked = said(calls=[{"name": "query", "arguments": {"sql": problem.sql}}])
        return [said(calls=[{"name": "tables", "arguments": {}}]), asked, ""]

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def same(reply: str, answer: str) -> bool:
    """Whether a reply is the answer: the same number, or the same text whatever its case."""
    given = reply.strip().rstrip(".").strip()
    try:
        return float(given) == float(answer)
    except ValueError:
        return given.casefold() == answer.casefold()
