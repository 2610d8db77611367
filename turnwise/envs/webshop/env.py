"""WebShop as a gymnasium environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gymnasium.error import ResetNeeded

from turnwise.envs.interface import Expert, Info, Panel
from turnwise.envs.webshop.data import Product, Source, open_source
from turnwise.envs.webshop.goals import Goal, Goals
from turnwise.envs.webshop.html import html
from turnwise.envs.webshop.nouns import NounTagger, SpacyNouns, stand_in_nouns
from turnwise.envs.webshop.pages import brief_instruction
from turnwise.envs.webshop.reward import exact_options, score
from turnwise.envs.webshop.simulator import Simulator, State
from turnwise.envs.webshop.splits import Splits
from turnwise.envs.webshop.store import open_shelves
from turnwise.envs.world import SnapshotEnv
from turnwise.errors import unknown

MODES = ("text", "text_rich", "html", "url", "compact")
REWARDS = ("raw", "perfect", "verl_agent")
INSTRUCTIONS = """\
You shop for what the instruction asks: find a product, choose its options, then buy it. An action is one of
  search[words], which finds products by any words,
  click[text], where text is what can be clicked on the page: the id of a product to open it, the value of an
  option to choose it, "description", "features" or "reviews" to read more, "< prev", "next >", "back to search",
  and at last "buy now".
Only the purchase is paid for: for each attribute, option and price limit that it meets."""


@dataclass(frozen=True, slots=True)
class Purchase:
    """What to buy and what for; ``reward`` is the official one, in [0, 1]."""

    product: Product
    options: Mapping[str, str]
    reward: float


class WebShopEnv(SnapshotEnv):
    """One goal at a time; the episode ends with a purchase.

    ``data``: the folder of the official files (all their products, or the first ``num_products``), "official" for the
    one that ``WEBSHOP_DATA`` names; without, our own catalogue of ``num_products`` (1000). ``goals``: "synthetic" or
    "human". ``split_scheme``: ``Splits``. ``observation_mode``: "text", "text_rich", "html", "url" (official), or
    "compact" (``pages``), which cuts titles in results after ``title_words``. Unless given, it is "text" with 10
    ``results_per_page`` for official data (as there), "compact" with 5 for ours. ``reward``: "raw" pays the official
    reward in [0, 1], "perfect" 1 for a perfect purchase and else 0, "verl_agent" 10 for one. ``nouns``: "stand_in", the
    name of an installed spaCy model ("en_core_web_sm" is the official one), or a ``NounTagger``. ``seed``: draws prices
    and price limits; 42 gives the published goals.

    ``info``: ``admissible_actions`` (all clicks that do something; where there is a search bar, searches for words of
    the instruction), ``available_actions`` (the official form), ``success`` (bought with score 1.0), ``score``,
    ``valid``, ``task_type`` (the category), ``task`` (the instruction); after a purchase also ``reward_info``.
    """

    instructions = INSTRUCTIONS

    def __init__(
        self,
        data: str | Path | None = None,
        *,
        num_products: int | None = None,
        goals: str = "synthetic",
        split: str = "train",
        split_scheme: str = "leak_free",
        observation_mode: str | None = None,
        results_per_page: int | None = None,
        title_words: int | None = None,
        show_attributes: bool = False,
        reward: str = "raw",
        nouns: str | NounTagger = "stand_in",
        step_limit: int = 15,
        seed: int = 42,
    ) -> None:
        super().__init__(split, step_limit)
        self.observation_mode = observation_mode or ("compact" if data is None else "text")
        if self.observation_mode not in MODES:
            raise unknown("observation_mode", observation_mode, MODES)
        if reward not in REWARDS:
            raise unknown("reward", reward, REWARDS)
        per_page = (5 if data is None else 10) if results_per_page is None else results_per_page
        for name, number in (("results_per_page", per_page), ("title_words", title_words)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        self._splits = _splits(open_source(data, num_products), goals, seed, split_scheme)
        self.goals = self._splits.goals
        shelves, prices = self.goals.shelves, self.goals.prices
        self.simulator = Simulator(shelves, prices, _tagger(nouns), per_page, show_attributes, title_words)
        self._reward, self._own_catalogue = reward, data is None
        self._state: State | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        return self._splits.names

    def tasks(self, split: str) -> Panel:
        """The fixed panel of a split. Raises ValueError for an unknown one."""
        return self._splits.panel(split)

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        self._state = State(self.goals[self._splits.number(split, index)])
        return self._observe(self._state), self._info(self._state, valid=True)

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        """What is not understood leaves the page as it is and counts as a step."""
        self._state, valid = self.simulator.step(self.state, action)
        bought = self._state.place == "done"
        return self._observe(self._state), self._paid(self._state), bought, self._info(self._state, valid)

    def save(self) -> State:
        return self.state

    def load(self, state: State) -> None:
        self._state = state

    @property
    def state(self) -> State:
        """The episode: the page and how it was come to. Raises ResetNeeded before the first ``reset``."""
        if self._state is None:
            raise ResetNeeded("Nothing is wanted yet: call reset() first.")
        return self._state

    @property
    def goal(self) -> Goal:
        """What is wanted in this episode."""
        return self.state.goal

    def exact_purchase(self, goal: Goal | None = None) -> Purchase:
        """The product and the options that the goal (this episode's) names, and what they would earn.

        That is less than 1.0 for some official goals: ``reward.reachable``.
        """
        goal = goal or self.goal
        shelves = self.simulator.shelves
        number = shelves.numbers[goal.asin]
        product = shelves.products[number]
        options = exact_options(product, goal)
        earned, _ = score(product, goal, self.goals.prices[number], options, self.simulator.nouns)
        return Purchase(product, options, earned)

    def _paid(self, state: State) -> float:
        if self._reward == "raw":
            return state.reward
        return (10.0 if self._reward == "verl_agent" else 1.0) * (state.reward == 1.0)

    def _observe(self, state: State) -> str:
        page, instruction = self.simulator.page(state), state.goal.instruction_text
        if self.observation_mode == "text":
            return page.text(instruction)
        if self.observation_mode == "compact":
            return page.compact(brief_instruction(instruction, state.goal.options), state.options)
        if self.observation_mode == "html":
            return html(self.simulator, state)
        url = self.simulator.url(state)
        return url if self.observation_mode == "url" else page.text_rich(instruction, url, state.visited)

    def _info(self, state: State, valid: bool) -> Info:
        page = self.simulator.page(state)
        admissible = list(page.clicks)
        if page.has_search_bar:
            suggested = queries(state.goal.instruction_text)
            if self.observation_mode == "compact":
                suggested = [brief_instruction(query, state.goal.options) for query in suggested]
            admissible += [f"search[{query}]" for query in suggested]
        info: dict[str, Any] = {
            "admissible_actions": admissible,
            "available_actions": {"has_search_bar": page.has_search_bar, "clickables": list(page.targets)},
            "success": state.reward == 1.0,
            "score": state.reward,
            "valid": valid,
            "task_type": state.goal.category,
            "task": state.goal.instruction_text,
        }
        if state.place == "done":
            info["reward_info"] = dict(state.breakdown)
        return info

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        """ "knowing" sees the goal and the products; "searching" reads the pages only, and is varied by ``seed``;
        "thinking" does as "searching" does, and tells why.
        """
        from turnwise.envs.webshop.expert import TOO_MANY, KnowingExpert, SearchingExpert
        from turnwise.envs.webshop.thinking import ThinkingExpert

        if kind == "knowing":
            return KnowingExpert(self)
        if kind not in ("searching", "thinking"):
            raise unknown("expert", kind, ("knowing", "searching", "thinking"))
        # our own products have every word of an instruction on their pages, or lack what it says
        too_many = 0.0 if self._own_catalogue else TOO_MANY
        return (SearchingExpert if kind == "searching" else ThinkingExpert)(self.step_limit, too_many, seed)


@lru_cache(maxsize=4)
def _splits(source: Source, kind: str, seed: int, scheme: str) -> Splits:
    """The goals and their panels; all environments of a process share them, since a large panel takes a second."""
    return Splits("turnwise/WebShop-v0", Goals(open_shelves(source), kind, seed), scheme)


def queries(instruction: str) -> list[str]:
    """Searches that the instruction suggests: all of its words but the price, and those before the options."""
    text = re.sub(r"[\[\]\s]+", " ", instruction.lower()).strip()
    unpriced = re.split(r", and price lower than ", text)[0]
    wish = re.split(r" with (?=(?:(?! with )[^,:])+: )", unpriced)[0]
    return list(dict.fromkeys(query for query in (unpriced, wish) if query))


def _tagger(nouns: str | NounTagger) -> NounTagger:
    if isinstance(nouns, str):
        return stand_in_nouns if nouns == "stand_in" else SpacyNouns(nouns)
    return nouns
