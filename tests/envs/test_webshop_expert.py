"""The shop's experts: what they read, what they reach, and what no purchase can reach."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from turnwise.envs.interface import CanBeOverruled, Errs, Expert, Info
from turnwise.envs.webshop.data import Product
from turnwise.envs.webshop.env import WebShopEnv
from turnwise.envs.webshop.expert import SearchingExpert, read_instruction, read_page, words
from turnwise.envs.webshop.fuzzy import token_set_ratio
from turnwise.envs.webshop.pages import brief_instruction
from turnwise.envs.webshop.reward import MATCH, normalize_color, score

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TURNWISE_DATA", ROOT.parent / "shared" / "data")) / "webshop"
GOLDEN = Path(os.environ.get("TURNWISE_GOLDEN_ENVS", ROOT.parent / "shared" / "golden" / "envs"))
TRANSCRIPTS = GOLDEN / "webshop_transcripts_public.jsonl"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"needs the official products: {DATA} (TURNWISE_DATA)")

UNREACHABLE = 458
SPLITS = ("train", "demonstrations", "validation", "test")


@lru_cache(maxsize=1)
def _generated() -> WebShopEnv:
    return WebShopEnv()


@lru_cache(maxsize=1)
def _official() -> WebShopEnv:
    return WebShopEnv(DATA, split_scheme="verl_agent")


@dataclass(frozen=True)
class Played:
    score: float
    actions: tuple[str, ...]
    seen: tuple[tuple[str, list[str]], ...]

    @property
    def success(self) -> bool:
        return self.score == 1.0


def _play(
    env: WebShopEnv, expert: Expert, index: int, split: str = "test", noise: float = 0.0, seed: int = 0
) -> Played:
    """One episode; noise is any admissible action but the purchase."""
    rng = random.Random(seed)
    observation, info = env.reset(options={"split": split, "task": index})
    expert.begin(observation, info)
    actions, seen, over = [], [], False
    while not over:
        seen.append((observation, info["admissible_actions"]))
        action = expert.act(observation, info)
        if rng.random() < noise:
            action = rng.choice([each for each in info["admissible_actions"] if each != "click[buy now]"])
            if isinstance(expert, CanBeOverruled):
                expert.overrule(action)
        actions.append(action)
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    return Played(info["score"], tuple(actions), tuple(seen))


def _rate(played: list[Played]) -> float:
    return sum(each.success for each in played) / len(played)


def test_an_instruction_is_read_as_type_words_options_and_price() -> None:
    wish = read_instruction(
        "Find me slim fit wool socks with pocket with color: red, and size: xl, and price lower than 30.00 dollars"
    )
    assert wish.kind == words("socks")[0]
    assert wish.words == set(words("slim fit wool socks pocket"))
    assert wish.options == {"color": "red", "size": "xl"}
    assert wish.price == 30.0


def test_the_brief_form_of_an_instruction_says_the_same() -> None:
    env = _generated()
    for index in range(100):
        env.reset(options={"split": "test", "task": index})
        brief = brief_instruction(env.goal.instruction_text, env.goal.options)
        assert (": " in env.goal.instruction_text) == ("=" in brief) == bool(env.goal.options)
        assert read_instruction(brief) == read_instruction(env.goal.instruction_text)


def test_an_instruction_may_name_neither_options_nor_price() -> None:
    wish = read_instruction("i need hair oil for dry ends, with argan")
    assert (wish.kind, wish.options, wish.price) == ("oil", {}, math.inf)


@needs_data
def test_every_official_instruction_is_read_rightly() -> None:
    goals = _official().goals
    assert len(goals) == 6910
    for goal in goals:
        wish = read_instruction(goal.instruction_text)
        assert wish.options == goal.options
        assert wish.price == goal.price_upper or (wish.price == math.inf and goal.price_upper == 1_000_000)


@pytest.mark.parametrize("mode", ["text", "text_rich", "compact"])
def test_pages_say_the_same_in_every_mode(mode: str) -> None:
    env = WebShopEnv(observation_mode=mode, results_per_page=5, step_limit=100)
    _, info = env.reset(options={"split": "test", "task": 0})
    observation, *_, info = env.step(info["admissible_actions"][0])
    results = read_page(observation, info)
    assert results.place == "results"
    assert len(results.listed) == 5
    for asin, offer in results.listed.items():
        product = env.simulator.shelves.find(asin.upper())
        assert product is not None
        assert (offer.title, offer.lowest) == (product.title, product.prices[0])
    for asin in results.listed:
        product = env.simulator.shelves.find(asin.upper())
        assert product is not None
        observation, *_, info = env.step(f"click[{asin}]")
        for values in product.options.values():
            observation, *_, info = env.step(f"click[{values[-1]}]")
        item = read_page(observation, info)
        assert (item.place, item.options) == ("item", product.options)
        assert item.offer is not None
        assert (item.offer.title, item.offer.lowest) == (product.title, product.prices[0])
        observation, *_, info = env.step("click[features]")
        assert words(read_page(observation, info).says.replace("features:", "")) == words(" ".join(product.features))
        env.step("click[< prev]")
        observation, *_, info = env.step("click[< prev]")


@pytest.mark.parametrize("split", SPLITS)
def test_the_knowing_expert_gets_1_on_every_generated_task(split: str) -> None:
    env = _generated()
    played = [_play(env, env.expert("knowing"), index, split) for index in range(256)]
    assert all(each.success for each in played)
    assert max(len(each.actions) for each in played) <= 6


def test_the_knowing_expert_finds_its_way_back_from_noise() -> None:
    env = _generated()
    played = [_play(env, env.expert("knowing"), index, noise=0.2, seed=index) for index in range(200)]
    assert _rate(played) > 0.93


@needs_data
def test_the_knowing_expert_buys_the_exact_product_on_official_tasks() -> None:
    """Tasks 0 to 299 of the usual test split, some of them unreachable."""
    env = _official()
    unreachable = 0
    for index in range(300):
        played = _play(env, env.expert("knowing"), index)
        assert played.score == env.exact_purchase().reward
        assert len(played.actions) <= 6
        unreachable += not played.success
    assert 0 < unreachable < 30


@needs_data
def test_the_knowing_expert_gets_1_for_everything_that_people_asked() -> None:
    env = WebShopEnv(DATA, goals="human", split_scheme="original")
    assert all(_play(env, env.expert("knowing"), index).success for index in range(len(env.tasks("test"))))


@needs_data
@pytest.mark.long  # half a minute
def test_the_knowing_expert_gets_1_on_all_official_goals_but_those_that_no_exact_purchase_reaches() -> None:
    env = _official()
    missed = 0
    for split in env.splits:
        for index in range(len(env.tasks(split))):
            played = _play(env, env.expert("knowing"), index, split)
            assert played.score == env.exact_purchase().reward
            missed += not played.success
    assert missed == UNREACHABLE


@needs_data
@pytest.mark.long  # half a minute
def test_what_the_exact_purchase_does_not_reach_no_other_purchase_does() -> None:
    """Every product with every choice of its options that could matter, against the 458 goals.

    The exact purchase has all attributes and the price, so only a product that matches some option could do better.
    """
    env = _official()
    unreachable = [(goal, exact) for goal in env.goals if (exact := env.exact_purchase(goal).reward) < 1.0]
    assert len(unreachable) == UNREACHABLE
    for goal, exact in unreachable:
        wanted = [str(normalize_color(option)) for option in goal.wanted]
        for number, product in enumerate(env.simulator.shelves.products):
            if product.asin == goal.asin or any(_matches(value, wanted) for value in _values(product)):
                for options in _choices(product, wanted):
                    assert score(product, goal, env.goals.prices[number], options)[0] <= exact


def _values(product: Product) -> list[str]:
    return [value for values in product.options.values() for value in values]


@lru_cache(maxsize=1 << 18)
def _match(value: str, wanted: str) -> bool:
    return token_set_ratio(normalize_color(value), wanted) > MATCH


def _matches(value: str, wanted: list[str]) -> tuple[str, ...]:
    return tuple(option for option in wanted if _match(value, option))


def _choices(product: Product, wanted: list[str]) -> list[dict[str, str]]:
    """Of the values of an option that match the same wishes one stands for all."""
    kinds = [
        list({_matches(value, wanted): (name, value) for value in values}.values())
        for name, values in product.options.items()
    ]
    return [dict(choice) for choice in itertools.product(*kinds)]


@pytest.mark.parametrize("split", SPLITS)
def test_the_searching_expert_wins_most_generated_tasks_in_time(split: str) -> None:
    env = _generated()
    played = [_play(env, env.expert("searching"), index, split) for index in range(250)]
    assert _rate(played) > 0.84
    assert sum(len(each.actions) for each in played) / len(played) < 10


def test_the_searching_expert_recovers_from_noise() -> None:
    env = _generated()
    played = [_play(env, env.expert("searching"), index, noise=0.2, seed=index) for index in range(400)]
    assert _rate(played) > 0.64


def test_buying_the_first_result_wins_only_about_half_of_the_tasks() -> None:
    """Search alone does not decide."""
    env = _generated()

    class First:
        def begin(self, observation: str, info: Info) -> None:
            self.done: list[str] = []

        def act(self, observation: str, info: Info) -> str:
            page = read_page(observation, info)
            if page.place != "item":
                return page.searches[0] if page.place == "search" else f"click[{next(iter(page.listed))}]"
            clicks = [f"click[{value}]" for value in env.goal.options.values()]
            possible = [click for click in clicks if click in info["admissible_actions"] and click not in self.done]
            self.done += possible[:1]
            return possible[0] if possible else "click[buy now]"

    assert 0.35 < _rate([_play(env, First(), index) for index in range(400)]) < 0.65


def test_the_searching_expert_plays_the_same_in_every_mode() -> None:
    envs = [WebShopEnv(observation_mode=mode, results_per_page=5) for mode in ("text", "text_rich", "compact")]
    for index in range(60):
        text, rich, compact = (_play(env, env.expert(), index, noise=0.2, seed=index).actions for env in envs)
        assert text == rich == tuple(action.replace("=", ": ") for action in compact)


def test_the_searching_expert_needs_nothing_but_the_text_and_the_admissible_actions() -> None:
    env = _generated()
    for index in range(40):
        played = _play(env, env.expert(), index)
        expert = SearchingExpert(env.step_limit, too_many=0.0)
        expert.begin(played.seen[0][0], _info(played.seen[0][1]))
        assert tuple(expert.act(text, _info(actions)) for text, actions in played.seen) == played.actions


def _info(actions: list[str]) -> dict[str, Any]:
    return {"admissible_actions": actions}


def test_a_seed_knows_mistakes_and_how_to_go_on_from_them() -> None:
    """A search without the options, a product that is too dear, which it leaves, the features of one that lacks an
    option; its own actions are as ever."""
    env = _generated()
    made = {"search": 0, "results": 0, "item": 0, "left": 0}
    for index in range(200):
        observation, info = env.reset(options={"split": "test", "task": index})
        expert, wish, ended = env.expert(seed=index + 1), read_instruction(observation), False
        expert.begin(observation, info)
        opened = ""
        while not ended:
            page, action = read_page(observation, info), expert.act(observation, info)
            if page.place == "search":
                assert ("=" in action) == bool(wish.options)
            if opened:  # the product that costs too much
                assert page.offer is not None
                assert page.offer.lowest > wish.price
                assert action == "click[< prev]"
                made["left"] += 1
            assert isinstance(expert, Errs)
            mistake, opened = expert.mistake(), ""
            if mistake:
                assert mistake != action
                made[page.place] += 1
                if page.place == "search":
                    assert mistake == page.searches[-1]
                elif page.place == "item":
                    assert (mistake, action) == ("click[features]", "click[< prev]")
                    assert any(value not in page.options.get(name, ()) for name, value in wish.options.items())
                else:
                    opened = mistake[len("click[") : -1]
                    assert page.listed[opened].lowest > wish.price
                action = mistake
                expert.overrule(mistake)
            observation, _, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
    assert 40 <= made["search"] <= 80
    assert 20 <= made["left"] == made["results"] <= 80
    assert made["item"] >= 20


def test_without_a_seed_there_are_no_mistakes() -> None:
    env = _generated()
    for index in range(20):
        expert = env.expert()
        observation, info = env.reset(options={"split": "test", "task": index})
        expert.begin(observation, info)
        expert.act(observation, info)
        assert isinstance(expert, Errs)
        assert expert.mistake() == ""


def test_every_action_of_the_searching_expert_is_admissible() -> None:
    env = _generated()
    for index in range(60):
        played = _play(env, env.expert(), index)
        assert all(action in seen[1] for action, seen in zip(played.actions, played.seen, strict=True))


def test_the_searching_expert_says_what_it_cannot_read() -> None:
    env = WebShopEnv(observation_mode="url")
    observation, info = env.reset(options={"split": "test", "task": 0})
    with pytest.raises(ValueError, match="Expected a page with an 'Instruction:' in a text mode, got 'http"):
        env.expert().begin(observation, info)


@needs_data
def test_the_searching_expert_wins_a_good_part_of_official_tasks() -> None:
    """Real products say much in words of their own: about half, with two thirds of the score."""
    env = _official()
    played = [_play(env, env.expert(), index) for index in range(150)]
    assert _rate(played) > 0.4
    assert sum(each.score for each in played) / len(played) > 0.55


@pytest.mark.skipif(not TRANSCRIPTS.exists(), reason=f"needs the recorded pages: {TRANSCRIPTS} (TURNWISE_GOLDEN_ENVS)")
def test_pages_that_the_official_environment_wrote_are_read_rightly() -> None:
    num_items = num_results = 0
    for line in TRANSCRIPTS.read_text().splitlines():
        recorded = json.loads(line)
        for page in recorded["steps"] if recorded["mode"] in ("text", "text_rich") else []:
            clicks = page["available"]["clickables"]
            if page["done"]:
                continue
            seen = read_page(page["obs"], _info([f"click[{each}]" for each in clicks]))
            links = [each for each in clicks if each not in ("back to search", "next >", "< prev", "search")]
            if seen.place == "results":
                assert list(seen.listed) == links
                num_results += 1
            elif seen.place == "item":
                buttons = ("description", "features", "reviews", "buy now")
                values = [value for values in seen.options.values() for value in values]
                assert sorted(set(values)) == sorted(set(links) - set(buttons))
                num_items += 1
    assert num_items > 50
    assert num_results > 50
