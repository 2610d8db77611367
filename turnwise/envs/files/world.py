"""Bills in a folder of text files, and a calculator: find out, work out, write down."""

from __future__ import annotations

from turnwise.envs.files.folder import Folder, number_in
from turnwise.envs.files.problems import ENV_ID, LEVELS, Problem, problems
from turnwise.envs.tools.generated import GeneratedToolsEnv
from turnwise.envs.toys.toy import level_of

INSTRUCTIONS = (
    "The folder holds bills; a file holds a number, or how many times which price. Use the tools. Say the answer "
    "alone, or that it is done, and change nothing else."
)


class FilesEnv(GeneratedToolsEnv[Problem]):
    """Reward 1.0 for the right answer where one is asked for, and the folder as it should be; else 0.

    ``difficulty``: "easy" (one folder of 4 files; read one, add two), "medium" (two folders; multiply, compare, write
    down), "hard" (three folders of 5; whole folders); ``step_limit`` overrides the 6 to 10 replies. Numbers are
    compared as numbers, in answers and in files.

    Experts: "searching" reads and calculates, "knowing" answers and writes at once.
    """

    instructions = INSTRUCTIONS

    def __init__(self, difficulty: str = "easy", split: str = "train", step_limit: int | None = None) -> None:
        level = level_of(LEVELS, difficulty, ENV_ID)
        super().__init__(problems(difficulty), split, level.step_limit if step_limit is None else step_limit)
        self.difficulty = difficulty
        self._folder = Folder({})

    def open(self, problem: Problem) -> Folder:
        self._folder = Folder(dict(problem.files))
        return self._folder

    def solved(self, reply: str) -> bool:
        after = dict(self.problem.after)
        kept = after.keys() == self._folder.files.keys()
        said = not self.problem.answer or _same(reply, self.problem.answer)
        return said and kept and all(_same(text, after[path]) for path, text in self._folder.files.items())

    def plan(self, problem: Problem, *, looks: bool) -> list[str]:
        return problem.actions(looks=looks)

    def state(self) -> dict[str, str]:
        return dict(self._folder.files)

    def set_state(self, state: dict[str, str]) -> None:
        self._folder.files = dict(state)


def _same(given: str, expected: str) -> bool:
    number = number_in(expected)
    return given.strip() == expected if number is None else number_in(given) == number
