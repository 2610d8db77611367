"""WebShopEnv on the generated catalogue: page flow and its quirks, splits, errors, determinism, snapshots."""

from __future__ import annotations

import os
import pickle
import random
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import turnwise.envs  # noqa: F401  (registers turnwise/WebShop-v0)
from turnwise.envs.interface import HasExpert, HasSnapshots, HasTasks, capability
from turnwise.envs.webshop.env import MODES, WebShopEnv
from turnwise.envs.webshop.goals import product_key
from turnwise.envs.webshop.index import LIMIT

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
OFFICIAL = Path(os.environ.get("TURNWISE_DATA", SHARED)) / "webshop"
INSTRUCTION = (
    "show me foldable, fadeless flower pots with oak with color: pink, and size: 24 inch, "
    "and price lower than 100.00 dollars"
)
BRIEF = INSTRUCTION.replace("color: ", "color=").replace("size: ", "size=")
SEARCH = "search[foldable fadeless flower pots with oak pink 24 inch]"
FOUND = """\
page 1 of 10
[b85] hesper halden recycled flower pots, $64.0
[b551] zephyr pelham flower pots with oak, $66.5 to $70.0
[b476] hesper halden flower pots with oak, $70.0 to $76.0
[b103] hesper pelham fadeless flower pots, $12.5
[b830] hesper zephyr foldable flower pots, $49.5"""

CHOSEN = """\
hesper halden recycled flower pots
price: $64.0
color=pink [pink|grey]
size=24 inch [36 inch|24 inch|16 inch]"""


@cache
def shared() -> WebShopEnv:
    return WebShopEnv(split="test")


@pytest.fixture
def env() -> WebShopEnv:
    env = shared()
    env.reset(options={"task": 0})
    return env


def play(env: WebShopEnv, *actions: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
    """What the last of the actions gave."""
    for action in actions:
        last = env.step(action)
    return last


# ---------------------------------------------------------------------- the environment


def test_gymnasium_accepts_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(WebShopEnv(), skip_render_check=True)


def test_made_by_its_id_it_offers_everything() -> None:
    env = gymnasium.make("turnwise/WebShop-v0", split="validation")
    for offered in (HasTasks, HasSnapshots, HasExpert):
        assert capability(env, offered) is not None
    assert env.reset(seed=0)[0].startswith("instruction: ")


def test_worlds_with_the_same_goals_share_them_and_their_panels() -> None:
    first, second = WebShopEnv(num_products=60), WebShopEnv(num_products=60, observation_mode="text")
    assert first.goals is second.goals
    assert first.tasks("train") is second.tasks("train")
    other = WebShopEnv(num_products=60, seed=1)
    assert other.goals.prices != first.goals.prices
    first.reset(options={"split": "train", "task": 0})
    second.reset(options={"split": "train", "task": 1})
    assert first.goal != second.goal


def test_an_episode_ends_with_a_purchase_and_its_reward(env: WebShopEnv) -> None:
    observation, info = env.reset(options={"task": 0})
    assert observation == f"instruction: {BRIEF}"
    assert info["task"] == INSTRUCTION
    wish = BRIEF.split(", and price")[0]
    assert info["admissible_actions"] == [f"search[{wish}]", "search[show me foldable, fadeless flower pots with oak]"]
    assert env.exact_purchase().reward == 1.0
    assert play(env, f"search[{INSTRUCTION}]")[0] == FOUND
    observation, reward, terminated, _, info = play(env, "click[b85]", "click[pink]", "click[24 inch]")
    assert observation == CHOSEN
    assert (reward, terminated, info["success"], info["score"]) == (0.0, False, False, 0.0)
    observation, reward, terminated, truncated, info = env.step("click[buy now]")
    assert observation == "bought b85, score 1"
    assert (reward, terminated, truncated, info["success"], info["score"]) == (1.0, True, False, True, 1.0)
    assert info["reward_info"]["r_option"] == 1.0
    assert info["admissible_actions"] == []
    with pytest.raises(ResetNeeded):
        env.step("search[x]")


def test_a_purchase_that_misses_something_earns_its_share(env: WebShopEnv) -> None:
    """Two of three attributes, no option, the price: (2 + 0 + 1) / 6."""
    _, reward, terminated, _, info = play(env, SEARCH, "click[b476]", "click[buy now]")
    assert (reward, terminated, info["success"]) == (0.5, True, False)
    assert info["reward_info"] == {
        "r_type": 1.0,
        "query_match": True,
        "category_match": True,
        "title_score": 0.8,
        "r_att": 2 / 3,
        "w_att": 0.5,
        "r_option": 0.0,
        "w_option": 2 / 6,
        "r_price": True,
        "w_price": 1 / 6,
    }


@pytest.mark.parametrize(("reward", "perfect"), [("verl_agent", 10.0), ("perfect", 1.0)])
def test_two_rewards_pay_for_a_perfect_purchase_alone(reward: str, perfect: float) -> None:
    env = WebShopEnv(split="test", reward=reward)
    for option, paid in (("pink", perfect), ("grey", 0.0)):
        env.reset(options={"task": 0})
        chosen = [f"click[{option}]", "click[24 inch]"]
        _, earned, _, _, info = play(env, SEARCH, "click[b85]", *chosen, "click[buy now]")
        assert earned == paid
        assert (info["score"] == 1.0) == (paid == perfect)


def test_what_is_not_understood_changes_nothing_but_counts(env: WebShopEnv) -> None:
    shown = play(env, SEARCH)[0]
    unknown = ["", "buy", "click[]", "click[buy now]", "CLICK[b714]", "Search[x]", "click[search]", "search", "\n["]
    for action in unknown:
        observation, reward, terminated, _, info = env.step(action)
        assert (observation, reward, terminated, info["valid"]) == (shown, 0.0, False, False)
    assert play(env, "click[B551] and more")[4]["valid"], "case and what follows do not count, as officially"
    for _ in range(3):
        assert not env.step("?")[3]
    assert env.step("?")[3], "the fifteenth step"


def test_pages_lead_to_each_other_by_the_official_rules(env: WebShopEnv) -> None:
    assert play(env, SEARCH)[0].startswith("page 1 of ")
    second = play(env, "click[next >]")[0]
    assert second.startswith("page 2 of ")
    link = env.step("?")[4]["admissible_actions"][-1]
    assert play(env, link)[0].split("\n")[1].startswith("price: ")
    assert play(env, "click[features]")[0].startswith("features: ")
    assert play(env, "click[< prev]")[0].split("\n")[1].startswith("price: "), "from a sub page to the item"
    assert play(env, "click[< prev]")[0] == second, "from the item to the page it was on"
    assert play(env, "click[< prev]")[0].startswith("page 1 of ")
    assert play(env, "click[back to search]")[0] == f"instruction: {BRIEF}"


def test_pages_past_the_last_are_empty_and_never_end(env: WebShopEnv) -> None:
    observation, *_, info = play(env, f"search[{INSTRUCTION}]", *["click[next >]"] * 10)
    assert observation == "page 11 of 10"
    assert info["admissible_actions"] == ["click[back to search]", "click[< prev]", "click[next >]"]
    assert play(env, "search[xyzzy]")[0] == "no results"


def test_chosen_options_are_kept_on_sub_pages_and_forgotten_by_every_results_page(env: WebShopEnv) -> None:
    play(env, f"search[{INSTRUCTION}]", "click[b85]", "click[grey]", "click[pink]", "click[description]")
    assert "color=pink [" in play(env, "click[< prev]")[0]
    assert "=" not in play(env, "click[< prev]", "click[b85]")[0]


def test_a_search_is_understood_on_every_page(env: WebShopEnv) -> None:
    play(env, f"search[{INSTRUCTION}]", "click[b85]", "click[features]")
    assert play(env, "search[Black TEA]")[0].startswith("page 1 of ")


def test_what_was_searched_for_misleads_previous(env: WebShopEnv) -> None:
    """Officially the page is told by its address, which has the words of the search."""
    assert play(env, "search[flower pots search_results]", "click[b979]")[0].startswith("zephyr halden flower")
    assert play(env, "click[< prev]")[0].startswith("page 0 of "), "taken for a results page: one page back"


def test_special_searches_list_products(env: WebShopEnv) -> None:
    first, again = play(env, "search[<r>]")[0], play(env, "search[<r>]")[0]
    assert first != again
    assert env.state.results
    assert len(env.state.results) == LIMIT
    products = env.simulator.shelves.products
    play(env, "search[<c> grocery]")
    assert env.state.results == tuple(n for n, each in enumerate(products) if each.category == "grocery")
    play(env, "search[<q> flower pots]")
    assert env.state.results == tuple(n for n, each in enumerate(products) if each.query == "flower pots")
    play(env, "search[<a> handmade]")
    assert env.state.results == tuple(n for n, each in enumerate(products) if "handmade" in each.attributes)


def test_all_modes_say_the_same_with_the_official_words() -> None:
    envs = {mode: WebShopEnv(split="test", observation_mode=mode, results_per_page=2) for mode in MODES}
    for each in envs.values():
        each.reset(options={"task": 0})
    actions = (f"search[{INSTRUCTION}]", "click[b85]", "click[grey]")
    seen = {mode: [each.step(action)[0] for action in actions] for mode, each in envs.items()}
    head = f"Instruction: [SEP] {INSTRUCTION} [SEP] Back to Search"
    item = f"{head} [SEP] < Prev [SEP] color [SEP] pink [SEP] grey [SEP] size [SEP] 36 inch [SEP] 24 inch [SEP] "
    item += "16 inch [SEP] hesper halden recycled flower pots [SEP] Price: $64.0 [SEP] Rating: N.A."
    ending = " [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    assert seen["text"][1:] == [item + ending] * 2, "a choice is not shown"
    assert seen["text_rich"][2].startswith("You have clicked grey.\nInstruction:\n")
    assert "  [button] pink [button_]\n  [clicked button] grey [clicked button_]\n" in seen["text_rich"][2]
    number = envs["url"].goal.number
    assert seen["url"][2].startswith(f"http://127.0.0.1:3000/item_page/{number}/B85/show+me+")
    assert seen["url"][2].endswith('/1/{"color": "grey"}')
    assert seen["html"][2].startswith("<!DOCTYPE html>")
    assert "<h2>hesper halden recycled flower pots</h2>" in seen["html"][2]
    assert seen["compact"][0] == "\n".join(FOUND.replace("10", "25").split("\n")[:3])


def test_titles_can_be_cut_and_attributes_shown() -> None:
    env = WebShopEnv(split="test", title_words=2, show_attributes=True)
    env.reset(options={"task": 0})
    assert play(env, f"search[{INSTRUCTION}]")[0].split("\n")[1] == "[b85] hesper halden, $64.0"
    assert "click[attributes]" in play(env, "click[b85]")[4]["admissible_actions"]
    assert play(env, "click[attributes]")[0].endswith("garden; flower pots; garden › flower pots")


def test_the_shop_fits_small_contexts() -> None:
    """Words of a whole random episode of 15 steps, instruction included."""
    env, rng, sizes = shared(), random.Random(0), []
    for index in range(50):
        text, info = env.reset(options={"task": index})
        over = False
        while not over:
            observation, _, terminated, truncated, info = env.step(rng.choice(info["admissible_actions"] or ["?"]))
            text, over = f"{text} {observation}", terminated or truncated
        sizes.append(len(text.split()))
    assert max(sizes) < 700


# ---------------------------------------------------------------------- determinism, snapshots


def test_every_admissible_action_is_understood() -> None:
    env, rng = WebShopEnv(split="validation", step_limit=60), random.Random(1)
    for index in range(40):
        _, info = env.reset(options={"task": index})
        over = False
        while not over:
            assert len(set(info["admissible_actions"])) == len(info["admissible_actions"])
            action = rng.choice(info["admissible_actions"])
            _, _, terminated, truncated, info = env.step(action)
            assert info["valid"], action
            over = terminated or truncated


def episode(env: WebShopEnv, actions: Iterator[str]) -> list[Any]:
    record = []
    for action in actions:
        record.append(env.step(action))
        if record[-1][2] or record[-1][3]:
            break
    return record


def random_actions(seed: int) -> Iterator[str]:
    """Without looking: pages, searches, and products that are often found."""
    rng = random.Random(seed)
    some = ["click[next >]", "click[< prev]", "search[<r>]", "click[features]", "click[back to search]", "click[grey]"]
    some += [f"search[{INSTRUCTION}]", "search[black tea]", "click[b85]", "click[b551]", "click[white]"]
    return (rng.choice(some) for _ in range(30))


@pytest.mark.parametrize("at", [0, 3, 9])
def test_a_snapshot_continues_exactly_in_another_instance(at: int) -> None:
    """Whatever that one has played before; random searches included."""
    env, other = WebShopEnv(split="test"), WebShopEnv(split="test")
    other.reset(seed=5)
    play(other, "search[<r>]")
    for seed in range(10):
        env.reset(options={"task": seed})
        actions = list(random_actions(seed))
        for action in actions[:at]:
            env.step(action)
        snapshot = pickle.loads(pickle.dumps(env.snapshot()))
        rest = episode(env, iter(actions[at:]))
        other.restore(snapshot)
        assert episode(other, iter(actions[at:])) == rest


def test_the_same_task_gives_the_same_episode_and_the_global_generators_are_left_alone() -> None:
    state, legacy = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    records = []
    for _ in range(2):
        env = WebShopEnv(split="train")
        assert env.reset(seed=3)[0] == env.reset(seed=3)[0]
        records.append(episode(env, random_actions(0)))
    assert records[0] == records[1]
    assert random.getstate() == state
    assert np.random.get_state()[1].tolist() == legacy  # type: ignore[index]  # noqa: NPY002


def test_before_the_first_reset_there_is_nothing() -> None:
    env = WebShopEnv()
    for premature in (lambda: env.step("search[x]"), lambda: env.goal, env.snapshot):
        with pytest.raises(ResetNeeded):
            premature()


# ---------------------------------------------------------------------- splits


def test_no_product_is_in_two_splits() -> None:
    env = shared()
    assert env.splits == ("train", "demonstrations", "validation", "test")
    titles: dict[str, set[str]] = {}
    by_key = {goal.key: goal for goal in env.goals}
    for split in env.splits:
        panel = env.tasks(split)
        assert len({task.key for task in panel}) == len(panel), "no task twice"
        titles[split] = {by_key[task.key].title for task in panel}
        assert all(task.key.startswith(product_key(by_key[task.key].title)) for task in panel)
        assert all(task.type == by_key[task.key].category for task in panel)
    names = list(titles)
    for number, split in enumerate(names):
        for other in names[number + 1 :]:
            assert not titles[split] & titles[other]
    assert (len(env.tasks("validation")), len(env.tasks("test"))) == (256, 512)


def test_the_first_tasks_of_a_panel_are_of_different_products() -> None:
    env = shared()
    first = [env.goals[env._splits.number("test", index)].title for index in range(64)]
    assert len(set(first)) == 64


def test_the_panels_never_change() -> None:
    """Evaluations that name these hashes are of the same goals in the same order."""
    assert {split: shared().tasks(split).hash for split in shared().splits} == PANEL_HASHES


PANEL_HASHES = {
    "train": "140590ef8f05a5fd",
    "demonstrations": "a5332edf33903f7e",
    "validation": "9049cb4335af5703",
    "test": "dff0e043278b29a8",
}


def test_the_papers_splits_go_by_the_official_order() -> None:
    env = WebShopEnv(split_scheme="verl_agent")
    assert env.splits == ("train", "test")
    assert [len(env.tasks(split)) for split in env.splits] == [len(env.goals) - 500, 500]
    for split, index, number in (("test", 7, 7), ("train", 0, 500)):
        env.reset(options={"split": split, "task": index})
        assert env.goal.number == number
        assert env.tasks(split)[index].key == env.goal.key
    original = WebShopEnv(split_scheme="original")
    assert [len(original.tasks(split)) for split in ("test", "validation")] == [500, 1000]
    original.reset(options={"split": "train", "task": 0})
    assert original.goal.number == 1500


@pytest.mark.skipif(not OFFICIAL.exists(), reason=f"needs the official products: {OFFICIAL} (TURNWISE_DATA)")
def test_the_papers_split_does_not_train_on_a_goal_of_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the official goals one is in both: a product lists a value twice."""
    monkeypatch.setenv("WEBSHOP_DATA", str(OFFICIAL))
    env = WebShopEnv("official", split_scheme="verl_agent")
    train, test = ({task.key for task in env.tasks(split)} for split in env.splits)
    assert not train & test
    assert [len(env.tasks(split)) for split in env.splits] == [6409, 500]
    env.reset(options={"split": "train", "task": 6408})
    assert env.goal.key == env.tasks("train")[6408].key


def test_official_data_without_a_folder_says_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WEBSHOP_DATA", "TURNWISE_DATA"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="the folder that WEBSHOP_DATA names, and it is not set"):
        WebShopEnv("official")
    monkeypatch.setenv("TURNWISE_DATA", "/nowhere")
    with pytest.raises(ValueError, match="There is no folder /nowhere/webshop"):
        WebShopEnv("official")


def test_another_seed_draws_other_prices_but_no_other_wishes() -> None:
    env = WebShopEnv(seed=1)
    assert env.goals.prices != shared().goals.prices
    assert {goal.instruction_text.split(", and price")[0] for goal in env.goals} == {
        goal.instruction_text.split(", and price")[0] for goal in shared().goals
    }


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observation_mode": "txt"}, "Unknown observation_mode 'txt'.* Did you mean 'text'"),
        ({"reward": "rawr"}, "Did you mean 'raw'"),
        ({"goals": "humans"}, "Unknown kind of goals 'humans'.* Did you mean 'human'"),
        ({"split_scheme": "leakfree"}, "Did you mean 'leak_free'"),
        ({"results_per_page": 0}, "results_per_page must be at least 1, got 0"),
        ({"title_words": 0}, "title_words must be at least 1, got 0"),
        ({"num_products": 0}, "num_products must be at least 1, got 0"),
        ({"data": "/nowhere"}, "There is no folder /nowhere: `data` is the folder of the official files"),
        ({"step_limit": 0}, "step_limit must be at least 1"),
    ],
)
def test_wrong_settings_say_what_is_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WebShopEnv(**settings)


def test_wrong_splits_and_experts_say_what_is_right() -> None:
    env = shared()
    with pytest.raises(
        ValueError, match=r"Unknown split 'tets' in turnwise/WebShop-v0 \(leak_free\). Did you mean 'test'"
    ):
        env.tasks("tets")
    with pytest.raises(ValueError, match="Did you mean 'knowing'"):
        env.expert("knowin")
    with pytest.raises(ValueError, match=r"Split 'train' of 'verl_agent' is empty, with .* synthetic goals in all"):
        WebShopEnv(num_products=20, split_scheme="verl_agent").tasks("train")
    with pytest.raises(ValueError, match=r"Split 'test' of 'leak_free' is empty, with 0 human goals in all"):
        WebShopEnv(goals="human").tasks("test")
