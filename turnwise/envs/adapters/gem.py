"""GEM's environments (gem-llm 0.1.0, Liu et al. 2025, arXiv:2510.01051) as gymnasium environments.

    gymnasium.make("turnwise/GEM-v0", name="game:GuessTheNumber-v0-easy")

The games (``game:``) and the procedural questions (``rg:``) need no network; the data sets behind the others are
fetched by the package. GEM draws from the global generators: each environment keeps its own (``OwnGenerators``).
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from turnwise.envs.adapters.generators import OwnGenerators
from turnwise.envs.interface import AnyText, Info
from turnwise.errors import unknown

_WON = 1.0 - 1e-6
"""Rewards come in parts (one for each cell of a Sudoku) that add up to 1."""


class GEMEnv(gymnasium.Env[str, str]):
    """One environment of GEM; ``settings`` go to it, over its own.

    Reads actions in ``\\boxed{}``; with ``box_actions`` an action without is put into one. ``suffix`` appends the
    line with which GEM asks for the next action. Success: the rewards of the episode add up to 1; the score is that
    sum, in [0, 1]. What cannot be read costs 0.1 and ends most games. Raises ValueError for an unknown name.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (gymnasium's own declaration)

    def __init__(self, name: str, box_actions: bool = True, suffix: bool = False, **settings: Any) -> None:
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self.name, self.box_actions, self.suffix, self.settings = name, box_actions, suffix, settings
        self.instructions = (
            "Answer with the action alone, such as 7: it is put into \\boxed{} for you."
            if box_actions
            else "Put the action into \\boxed{}, such as \\boxed{7}."
        )
        self._generators = OwnGenerators()
        self._env = self._make(settings)
        self._total, self._over = 0.0, True

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31))
        self._generators.seed(drawn)
        if self.name.startswith("rg:"):  # one of 500 questions, unless it is given another data set: of one, by seed
            self._env = self._make({"size": 1, "seed": drawn, **self.settings})
        with self._generators:
            observation, info = self._env.reset(seed=drawn)
        self._total, self._over = 0.0, False
        return self._text(observation, info), self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        if self._over:
            raise ResetNeeded("The episode has not begun or is over: call reset() before step().")
        boxed = action if not self.box_actions or "\\boxed{" in action else f"\\boxed{{{action}}}"
        with self._generators:
            observation, reward, terminated, truncated, info = self._env.step(boxed)
        self._total += float(reward)
        self._over = bool(terminated or truncated)
        cut = bool(truncated and not terminated)  # the package says both of every question that was answered
        return self._text(observation, info), float(reward), bool(terminated), cut, self._info()

    def _make(self, settings: dict[str, Any]) -> Any:
        try:
            import gem
            from gem.envs.registration import ENV_REGISTRY
        except ImportError as error:
            raise ValueError(f"GEM's environments need its package: pip install gem-llm ({error})") from error
        if self.name not in ENV_REGISTRY:
            raise unknown("GEM environment", self.name, ENV_REGISTRY)
        try:
            with self._generators:
                return gem.make(self.name, **settings)
        except Exception as error:  # without network the package fails in many ways
            raise ValueError(f"GEM cannot make {self.name!r}: {type(error).__name__}: {error}") from error

    def _text(self, observation: str, info: Info) -> str:
        return f"{observation}\n{info['suffix']}" if self.suffix and info.get("suffix") else str(observation)

    def _info(self) -> Info:
        return {"success": self._total >= _WON, "score": min(1.0, max(0.0, self._total))}
