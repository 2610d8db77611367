"""HotpotQA's sample with 2Wiki's passages as distractors: a real task of several turns, and one that can be solved."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from turnwise.envs.search.corpus import open_corpus
from turnwise.envs.search.env import SearchEnv
from turnwise.envs.search.questions import Question, read_questions
from turnwise.envs.search.retrieval import open_retriever

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TURNWISE_DATA") or ROOT.parent / "shared/data") / "search"
QUESTIONS, DEV = DATA / "hotpot100_qa.jsonl", DATA / "hotpot_dev_v1_simplified.json"
CORPUS = [DATA / "hotpot100_corpus.jsonl", DATA / "2wikimultihopqa_corpus.json"]

pytestmark = pytest.mark.skipif(not QUESTIONS.is_file(), reason=f"no {QUESTIONS} (TURNWISE_DATA)")


@cache
def env(engine: str) -> SearchEnv:
    return SearchEnv(corpus=CORPUS, questions={"test": QUESTIONS}, retriever=engine, split="test")


def gold_found(engine: str, questions: list[Question]) -> tuple[int, int]:
    """Of the questions, searched for as they are: how many find a gold page, and how many find all of them."""
    found = env(engine).rules.retriever.search([question.text for question in questions], 3)
    titles = [{hit.document.title for hit in hits} for hits in found]
    pairs = list(zip(questions, titles, strict=True))
    return sum(bool(got & set(q.titles)) for q, got in pairs), sum(got >= set(q.titles) for q, got in pairs)


def test_all_of_it_is_read() -> None:
    assert len(env("bm25").tasks("test")) == 100
    assert {task.type for task in env("bm25").tasks("test")} == {"bridge", "comparison"}
    assert len(read_questions(DEV)) == 7405


@pytest.mark.parametrize(("engine", "some", "every"), [("bm25", 93, 31), ("bm25s", 95, 35)])
def test_one_search_seldom_finds_every_page(
    engine: str, some: int, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """94 and 31 were measured elsewhere, with another choice of words; what counts is that 31 is far from 94."""
    if engine == "bm25s":
        pytest.importorskip("bm25s", reason='needs pip install -e ".[envs]"')
        monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    assert gold_found(engine, read_questions(QUESTIONS)) == (
        pytest.approx(some, abs=1),
        pytest.approx(every, abs=1),
    )


def test_the_knowing_expert_finds_the_pages_and_wins() -> None:
    world = env("bm25")
    pages, turns = 0, 0
    for task in world.tasks("test"):
        observation, info = world.reset(options={"split": "test", "task": task.index})
        expert = world.expert("knowing")
        expert.begin(observation, info)
        over = False
        while not over:
            observation, reward, terminated, truncated, info = world.step(expert.act(observation, info))
            turns, over = turns + 1, terminated or truncated
        assert (reward, info["success"], info["score"]) == (1.0, True, 1.0)
        episode = world.snapshot().state
        pages += set(episode.question.titles) <= set(episode.found)
    assert pages >= 95
    assert 200 < turns < 300  # two searches and an answer, or one search that finds both pages


def test_the_first_turn_of_a_real_episode() -> None:
    world = env("bm25")
    prompt, info = world.reset(options={"split": "test", "task": 0})
    assert prompt.endswith(
        "Question: VIVA Media AG changed it's name in 2004. What does their new acronym stand for?\n"
    )
    assert "admissible_actions" not in info
    information, *_, info = world.step("<think> who? </think> <search> VIVA Media </search>")
    assert information.startswith('\n\n<information>Doc 1(Title: "VIVA')
    assert len(info["documents"]) == 3
    with pytest.raises(ValueError, match="of your own questions take 'knowing'"):
        world.expert("searching")


def test_one_file_is_divided() -> None:
    world = SearchEnv(corpus=CORPUS[0], questions=QUESTIONS)
    sizes = {split: len(world.tasks(split)) for split in world.splits}
    assert list(sizes) == ["train", "validation", "test"]
    assert sum(sizes.values()) == 100
    assert sizes["train"] > 70
    assert open_retriever("bm25", open_corpus(CORPUS[0])) is world.rules.retriever  # one index for all of its copies
