"""Work in a small office: contacts, a calendar, mail. What counts is the state that is reached, not what is said."""

from __future__ import annotations

from turnwise.envs.office.desk import Desk, State
from turnwise.envs.office.problems import ENV_ID, LEVELS, Problem, problems
from turnwise.envs.tools.generated import GeneratedToolsEnv
from turnwise.envs.toys.toy import level_of

INSTRUCTIONS = "Do what is asked with the tools, and nothing else. Then say that it is done."


class OfficeEnv(GeneratedToolsEnv[Problem]):
    """Reward 1.0 where the office is as it was asked to be, and nothing else has changed; else 0.

    ``difficulty``: "easy" (cancel a meeting, write a mail, plan a meeting), "medium" (more people; move, forward, plan
    with a team), "hard" (find the first free hour, answer every mail of somebody too); ``step_limit`` overrides the 6
    to 10 replies. Topics count whatever their case, the text of a mail does not.

    Experts: "searching" looks up addresses and numbers first, "knowing" knows them.
    """

    instructions = INSTRUCTIONS

    def __init__(self, difficulty: str = "easy", split: str = "train", step_limit: int | None = None) -> None:
        level = level_of(LEVELS, difficulty, ENV_ID)
        super().__init__(problems(difficulty), split, level.step_limit if step_limit is None else step_limit)
        self.difficulty = difficulty
        self._desk: Desk | None = None

    def open(self, problem: Problem) -> Desk:
        self._desk = Desk(problem.state)
        return self._desk

    def solved(self, reply: str) -> bool:
        assert self._desk is not None
        return self._desk.state.reached() == self.problem.done().reached()

    def plan(self, problem: Problem, *, looks: bool) -> list[str]:
        return problem.actions(looks=looks)

    def state(self) -> State:
        assert self._desk is not None
        return self._desk.state

    def set_state(self, state: State) -> None:
        assert self._desk is not None
        self._desk.state = state
