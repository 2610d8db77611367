"""The expert that tells why: it acts as the searching one does, and what it says is so."""

from __future__ import annotations

import re
import runpy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from turnwise.cloning.demonstrations import Demonstration, demonstrate
from turnwise.cloning.settings import WarmstartConfig
from turnwise.envs.webshop.env import WebShopEnv
from turnwise.envs.webshop.expert import words
from turnwise.envs.webshop.thinking import FOLLOWS

NUM = 120


@lru_cache(maxsize=1)
def _shop() -> WebShopEnv:
    return WebShopEnv(num_products=2000)


@lru_cache(maxsize=2)
def _shown(kind: str) -> list[Demonstration]:
    shop, config = _shop(), WarmstartConfig(expert=kind)
    tasks = shop.tasks("demonstrations")
    return [shown for n in range(NUM) for shown in demonstrate(shop, tasks[n], config, n)]


def test_it_acts_as_the_searching_expert_does_also_after_actions_of_others() -> None:
    assert [shown.actions for shown in _shown("thinking")] == [shown.actions for shown in _shown("searching")]
    assert all(shown.thoughts == ("",) * len(shown.actions) for shown in _shown("searching"))


def test_what_it_says_of_a_page_is_so() -> None:
    counts = dict.fromkeys(("yes", "no", "tried", "over", "under", "good", "take", "lacks", "read", "fits"), 0)
    for shown in _shown("thinking"):
        clicked: set[str] = set()
        read: dict[str, set[str]] = {}
        """Product -> words of its title and of the pages below."""
        product = ""
        instruction = shown.observations[0]
        for page, thought, action in zip(shown.observations, shown.thoughts, shown.actions, strict=True):
            title, priced, _ = page.partition("\nprice: ")
            if not page.startswith(("page ", "instruction:")):
                read.setdefault(product, set()).update(words(title))
            lines = thought.splitlines()
            if not action.startswith("click[b") and (last := lines[-1].rpartition(" ")[2] if lines else "") in FOLLOWS:
                follows = {"click[< prev]": "lacks", "click[features]": "read"}.get(action, "fits")
                assert last == follows if priced else follows == "lacks", (page, thought, action)
                counts[last] += 1
            states = [FOLLOWS.index(found[1]) for found in re.finditer(r", (fits|read|lacks)$", thought, re.MULTILINE)]
            assert states == sorted(states), thought
            for line in (re.sub(r", (fits|read|lacks)$", "", line) for line in lines):
                name, _, verdict = line.rpartition(" ")
                if line.startswith("- "):
                    assert (set(words(name)) <= read[product]) == (verdict == "yes"), (page, line)
                    assert name[1:] in instruction, "the same tokens, with the space before the word"
                elif verdict in ("yes", "no"):
                    assert (name in re.split(r"[\[\]|]", page)) == (verdict == "yes"), (page, line)
                    assert name in instruction
                elif found := re.fullmatch(r"(\[(b\d+)\] .*?)(?: of [\d.]+)?: (tried|good|over|take|no \w+)", line):
                    assert found[1] in page.splitlines()
                    verdict = found[3].split()[0]
                    assert (verdict == "tried") <= (found[2] in clicked)
                    assert (verdict in ("good", "take")) <= (action == f"click[{found[2]}]")
                elif found := re.fullmatch(r"price: \$([\d.]+).* of ([\d.]+): (over|under)", line):
                    verdict = found[3]
                    assert (float(found[1]) > float(found[2])) == (verdict == "over")
                    assert f"lower than {found[2]} dollars" in instruction
                counts[verdict] = counts.get(verdict, 0) + 1
            opened = set(re.findall(r"click\[(b\d+)\]", action)) if page.startswith("page ") else set()
            clicked |= opened
            product = min(opened, default=product)
    assert all(
        counts[verdict] >= 10 for verdict in ("yes", "no", "tried", "under", "good", "take", "lacks", "read", "fits")
    ), counts


def test_it_counts_its_steps_and_says_when_it_is_in_a_hurry() -> None:
    hurried = 0
    for shown in _shown("thinking"):
        own = [(n, thought) for n, thought in enumerate(shown.thoughts) if thought]
        assert all(thought.splitlines()[0] == f"left {15 - n}" for n, thought in own)
        hurried += sum("hurry" in thought for _, thought in own)
    assert hurried > NUM / 10


def test_another_expert_is_unknown() -> None:
    with pytest.raises(ValueError, match="knowing, searching, thinking"):
        _shop().expert("thinkin")


def test_thoughts_of_a_model_are_compared_line_by_line() -> None:
    """The expert's own episode with one line changed, and another action behind it."""
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "webshop_thoughts.py"))
    shop, config = _shop(), WarmstartConfig(expert="thinking", noise=0)
    every = ((task, demonstrate(shop, task, config, 0)[0]) for task in _shop().tasks("demonstrations"))
    task, played = next((task, played) for task, played in every if all(played.learn))  # without a mistake
    replies = [f"<think>\n{t}\n</think>\n\n{a}" for t, a in zip(played.thoughts, played.actions, strict=True)]
    page = next(n for n, t in enumerate(played.thoughts) if ": under" in t and played.actions[n] != "click[< prev]")

    def compared(replies: list[str], actions: Sequence[str]) -> Any:
        turns = [SimpleNamespace(reply=r, action=a) for r, a in zip(replies, actions, strict=True)]
        found = script["Comparison"]()
        found.add(shop, SimpleNamespace(task=task, turns=turns, success=True))
        return found

    same = compared(replies, played.actions)
    assert sum(same.lines.values()) == sum(len(thought.split("\n")) for thought in played.thoughts)
    assert (same.differing, dict(same.first)) == ({}, {(True, "none"): 1})
    replies[page] = replies[page].replace(": under", ": over")
    wrong = compared(replies, [*played.actions[:page], "click[< prev]", *played.actions[page + 1 :]])
    assert dict(wrong.first) == {(True, "item: price, under"): 1}
    assert wrong.differing["item: price, under"] == 1
    assert any(row.startswith("item: price, under") and row.endswith("%") for row in wrong.rows())
