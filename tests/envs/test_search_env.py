"""SearchEnv on the generated world: the gymnasium contract, rewards, the last turn, experts and random players."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import turnwise.envs  # noqa: F401  (registers turnwise/Search-v0)
from turnwise.envs.interface import CanBeOverruled, HasExpert, HasSnapshots, HasTasks, Info, capability
from turnwise.envs.search.env import SearchEnv
from turnwise.envs.search.facts import PRESETS, GeneratedQuestions
from turnwise.envs.search.retrieval import MemoryRetriever
from turnwise.envs.search.wording import read_facts

SPLITS = ("train", "demonstrations", "validation", "test")
Player = Callable[[str, Info], str]


def play(env: SearchEnv, split: str, index: int, player: Player, first: Any = None) -> tuple[Info, int]:
    """(last info, turns) of an episode; ``first`` hears the first observation."""
    observation, info = env.reset(options={"split": split, "task": index})
    if first is not None:
        first(observation, info)
    for turns in range(1, 100):
        observation, _, terminated, truncated, info = env.step(player(observation, info))
        if terminated or truncated:
            return info, turns
    raise AssertionError("the episode never ended")


def with_expert(env: SearchEnv, split: str, index: int, kind: str) -> tuple[Info, int]:
    expert = env.expert(kind)
    return play(env, split, index, expert.act, expert.begin)


def random_player(seed: int) -> Player:
    rng = random.Random(seed)
    return lambda observation, info: rng.choice(info["admissible_actions"])


def golden(env: SearchEnv, split: str = "train", index: int = 0) -> str:
    return env.rules.source.question(split, index).answers[0]


def test_gymnasium_accepts_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(SearchEnv(), skip_render_check=True)


def test_made_by_its_id_it_offers_everything() -> None:
    env = gymnasium.make("turnwise/Search-v0", difficulty="medium", split="validation")
    for protocol in (HasTasks, HasSnapshots, HasExpert):
        assert capability(env, protocol) is not None
    observation, info = env.reset(seed=1)
    assert observation == info["question"]
    assert info["task_type"] in PRESETS["medium"].types
    assert (info["success"], info["score"], info["valid"], info["documents"]) == (False, 0.0, True, [])


def test_an_episode_word_for_word() -> None:
    env = SearchEnv()
    observation, info = env.reset(options={"split": "train", "task": 0})
    (name,) = env.rules.source.question("train", 0).names
    assert observation == f"who is the mayor of {name}?"
    assert info["admissible_actions"] == [f"search: {name}", f"answer: {name}"]
    observation, reward, terminated, truncated, info = env.step(f"search: {name}")
    lines = observation.splitlines()
    assert len(lines) == len(info["documents"]) == 3
    assert lines[0].startswith(f"{name} is a city in ")
    assert lines[0].endswith(f". the mayor is {golden(env)}.")
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, False)
    assert f"answer: {golden(env)}" in info["admissible_actions"]
    observation, reward, terminated, truncated, info = env.step("look around")
    assert (observation, reward, info["valid"]) == ("write search: words, or answer: words.", 0.0, False)
    assert "answer" not in info
    observation, reward, terminated, truncated, info = env.step(f"answer: {golden(env).upper()}.")
    assert (observation, reward, terminated, truncated) == ("", 1.0, True, False)
    assert (info["success"], info["score"], info["valid"]) == (True, 1.0, True)
    assert info["answer"] == golden(env).lower(), "what it is compared by"
    with pytest.raises(ResetNeeded):
        env.step("search: more")


@pytest.mark.parametrize(("reward", "expected"), [("em", 0.0), ("f1", 2 / 3), ("sub_em", 0.0)])
def test_half_an_answer_earns_by_the_reward_chosen(reward: str, expected: float) -> None:
    env = SearchEnv(reward=reward)
    env.reset(options={"task": 0})
    _, earned, terminated, _, info = env.step(f"answer: {golden(env).split()[0]}")
    assert earned == pytest.approx(expected)
    assert terminated
    assert not info["success"]
    assert info["score"] == pytest.approx(2 / 3)


def test_more_than_the_answer_earns_by_sub_em_only() -> None:
    env = SearchEnv(reward="sub_em")
    env.reset(options={"task": 0})
    _, earned, _, _, info = env.step(f"answer: it is {golden(env)}")
    assert (earned, info["success"]) == (1.0, False)


def test_the_last_turn_searches_no_more() -> None:
    env = SearchEnv(protocol="search_r1", step_limit=2)
    env.reset(options={"task": 0})
    (name,) = env.rules.source.question("train", 0).names
    found, _, _, truncated, info = env.step(f"<search> {name} </search>")
    assert f'Doc 1(Title: "{name}")' in found
    assert (truncated, len(info["documents"])) == (False, 3)
    nothing, reward, terminated, truncated, info = env.step(f"<search> {name} </search>")
    assert nothing == "\n\n<information></information>\n\n"
    assert (reward, terminated, truncated, info["documents"]) == (0.0, False, True, [])


@pytest.mark.parametrize("difficulty", PRESETS)
def test_the_preset_sets_the_step_limit(difficulty: str) -> None:
    limit = PRESETS[difficulty].step_limit
    assert play(SearchEnv(difficulty=difficulty), "train", 0, lambda *_: "search: x")[1] == limit
    assert play(SearchEnv(difficulty=difficulty, step_limit=3), "train", 0, lambda *_: "hm")[1] == 3


def test_topk_is_the_number_of_documents() -> None:
    env = SearchEnv(topk=5)
    env.reset(options={"task": 0})
    observation, *_, info = env.step("search: city")
    assert len(observation.splitlines()) == len(info["documents"]) == 5


def test_same_seed_same_transcript_and_interleaved_envs_do_not_disturb_each_other() -> None:
    def transcript(envs: list[SearchEnv]) -> list[list[str]]:
        rngs = [random.Random(7) for _ in envs]
        now = [env.reset(seed=3) for env in envs]
        record = [[observation] for observation, _ in now]
        for _ in range(4):
            for which, env in enumerate(envs):
                searches = [a for a in now[which][1]["admissible_actions"] if a.startswith("search")]
                action = rngs[which].choice(searches)
                observation, _, _, _, info = env.step(action)
                now[which] = observation, info
                record[which] += [action, observation]
        return record

    (alone,) = transcript([SearchEnv()])
    first, second = transcript([SearchEnv(), SearchEnv()])
    assert alone == first == second


def test_a_snapshot_continues_exactly_in_another_env() -> None:
    env, player = SearchEnv(difficulty="medium"), random_player(5)
    observation, info = env.reset(options={"split": "train", "task": 12})
    for _ in range(3):
        action = next(a for a in info["admissible_actions"] if a.startswith("search"))
        observation, *_, info = env.step(action)
    saved, copy = env.snapshot(), SearchEnv(difficulty="easy", protocol="search_r1", topk=1)
    copy.reset(seed=0)
    copy.restore(saved)
    while True:
        action = player(observation, info)
        observation, reward, terminated, truncated, info = env.step(action)
        assert copy.step(action) == (observation, reward, terminated, truncated, info)
        if terminated or truncated:
            break
    env.restore(saved)  # what came later left the snapshot as it was
    again = env.step("answer: nothing")
    assert again[2:4] == (True, False)


@pytest.mark.parametrize("protocol", ["plain", "search_r1"])
@pytest.mark.parametrize("difficulty", PRESETS)
def test_both_experts_win_every_task_by_admissible_actions(difficulty: str, protocol: str) -> None:
    env = SearchEnv(difficulty=difficulty, protocol=protocol)
    for split in SPLITS:
        for index in range(60):
            info, turns = with_expert(env, split, index, "searching")
            assert info["success"], (split, index)
            assert turns < env.step_limit  # with turns to spare for a mistake
            assert with_expert(env, split, index, "knowing") == (info, turns)
            assert env.snapshot().state.answer is not None


def test_a_prompt_lists_no_answer_that_can_only_be_wrong() -> None:
    for difficulty in ("easy", "hard"):
        env = SearchEnv(difficulty=difficulty)
        for index in range(60):
            observation, info = env.reset(options={"split": "validation", "task": index})
            assert not [a for a in info["listed_actions"] if a.startswith("answer")], "nothing was read yet"
            expert, ended = env.expert("knowing"), False
            expert.begin(observation, info)
            while not ended:
                action = expert.act(observation, info)
                assert action in info["listed_actions"]
                assert set(info["listed_actions"]) <= set(info["admissible_actions"])
                observation, _, ended, _, info = env.step(action)


def test_what_an_expert_does_is_admissible() -> None:
    env = SearchEnv(difficulty="hard")
    for index in range(60):
        expert = env.expert()

        def checked(observation: str, info: Info, act: Player = expert.act) -> str:
            action = act(observation, info)
            assert action in info["admissible_actions"]
            return action

        assert play(env, "train", index, checked, expert.begin)[0]["success"]


@pytest.mark.parametrize("kind", ["searching", "knowing"])
def test_experts_recover_from_searches_that_are_not_theirs(kind: str) -> None:
    env, wins = SearchEnv(difficulty="medium", step_limit=20), 0
    for index in range(100):
        rng, expert = random.Random(index), env.expert(kind)

        def noisy(observation: str, info: Info, rng: random.Random = rng, expert: Any = expert) -> str:
            action = str(expert.act(observation, info))
            if rng.random() < 0.4:
                action = rng.choice([a for a in info["admissible_actions"] if a.startswith("search")] + ["hm"])
                if isinstance(expert, CanBeOverruled):
                    expert.overrule(action)
            return action

        wins += play(env, "demonstrations", index, noisy, expert.begin)[0]["success"]
    assert wins == 100


@pytest.mark.parametrize("difficulty", PRESETS)
def test_a_random_player_hardly_wins(difficulty: str) -> None:
    env, wins = SearchEnv(difficulty=difficulty), Counter[str]()
    for index in range(512):
        info, _ = play(env, "test", index, random_player(index))
        wins[info["task_type"]] += info["success"]
    assert 0 < sum(wins.values()) / 512 < 0.05
    assert max(wins.values()) / (512 / len(PRESETS[difficulty].types)) < 0.12


def test_another_world_has_other_facts() -> None:
    one, other = SearchEnv(), SearchEnv(world=1)
    keys = [{task.key for task in env.tasks("test")} for env in (one, other)]
    assert not keys[0] & keys[1]
    assert one.tasks("train") != other.tasks("train")


def test_shared_documents_are_reported() -> None:
    env = SearchEnv()
    assert env.shared_documents("test", "test") == 1.0
    share = env.shared_documents("train", "test")
    needed = {title for index in range(512) for title in env.rules.source.question("test", index).titles}
    known = {title for index in range(1000) for title in env.rules.source.question("train", index).titles}
    assert share == len(needed & known) / len(needed)
    assert 0.5 < share < 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"difficulty": "eazy"}, "Did you mean 'easy'"),
        ({"retriever": "bm52"}, "Unknown retriever 'bm52'"),
        ({"retriever": "ftp://here"}, "http://host:port"),
        ({"reward": "EM"}, "Unknown reward"),
        ({"protocol": "r1"}, "Unknown protocol"),
        ({"topk": 0}, "topk must be at least 1"),
        ({"step_limit": 0}, "step_limit must be at least 1"),
        ({"corpus": "x.jsonl"}, "needs `questions`"),
        ({"questions": "q.jsonl", "difficulty": "easy"}, "leave them out"),
        ({"questions": "q.jsonl", "corpus": "c.jsonl", "retriever": "http://localhost"}, "brings its own"),
        ({"questions": "q.jsonl"}, "no file q.jsonl"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchEnv(**settings)


def test_unknown_experts_and_early_calls() -> None:
    env = SearchEnv()
    with pytest.raises(ValueError, match="Did you mean 'knowing'"):
        env.expert("knowning")
    with pytest.raises(ResetNeeded):
        env.snapshot()


def test_a_retriever_of_ones_own() -> None:
    """Its documents are what episodes show: here those of another world, which has the same names for other facts."""
    other = GeneratedQuestions(world=5).world
    env = SearchEnv(retriever=MemoryRetriever(other.corpus))
    env.reset(options={"split": "test", "task": 0})
    (name, *_) = env.rules.source.question("test", 0).names
    facts = read_facts(env.step(f"search: {name}")[0])
    assert facts
    assert all(other.facts[entity][relation] == value for (entity, relation), value in facts.items())
    assert any(GeneratedQuestions().world.facts.get(e, {}).get(r) != value for (e, r), value in facts.items())
