"""The toy worlds: the contract they share, each one's rules, and what their experts reach."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from itertools import combinations, product
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import turnwise.envs  # noqa: F401  (registers the environments)
from turnwise.envs.interface import HasExpert, HasSnapshots, HasTasks, Info, capability
from turnwise.envs.toys import frozenlake, mastermind, sokoban, sokoban_expert, sokoban_room, wordle
from turnwise.envs.toys.frozenlake import FrozenLakeEnv
from turnwise.envs.toys.mastermind import MastermindEnv
from turnwise.envs.toys.sokoban import SokobanEnv
from turnwise.envs.toys.toy import ToyEnv
from turnwise.envs.toys.wordle import WordleEnv
from turnwise.envs.toys.words import WORDS

WORLDS: list[Any] = [FrozenLakeEnv, SokobanEnv, WordleEnv, MastermindEnv]
DIFFICULTIES = ("easy", "medium", "hard")
each_world = pytest.mark.parametrize("world", WORLDS)
each_difficulty = pytest.mark.parametrize("difficulty", DIFFICULTIES)


def _choice(env: ToyEnv[Any], rng: random.Random, info: Info) -> str:
    return str(rng.choice(info.get("admissible_actions") or ["1 2 3 4 5", "8 7 6 5 4", "nonsense"]))


def _success(world: Any, difficulty: str, num: int, noise: float = 0.0, kind: str = "searching") -> float:
    """Share of ``num`` test tasks that the expert solves while ``noise`` of its actions are replaced."""
    env, wins, rng = world(difficulty), 0, random.Random(0)
    for index in range(num):
        observation, info = env.reset(seed=index, options={"split": "test", "task": index})
        expert = env.expert(kind, seed=index)
        expert.begin(observation, info)
        over = False
        while not over:
            action = expert.act(observation, info)
            if noise and rng.random() < noise:
                action = _choice(env, rng, info)
            observation, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
        wins += info["success"]
    return wins / num


@each_world
def test_gymnasium_accepts_it(world: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(world(), skip_render_check=True)


@each_difficulty
@each_world
def test_made_by_its_id_it_offers_everything(world: Any, difficulty: str) -> None:
    env = gymnasium.make(f"turnwise/{world.__name__.removesuffix('Env')}-v0", difficulty=difficulty)
    assert type(env.unwrapped) is world
    for protocol in (HasTasks, HasSnapshots, HasExpert):
        assert capability(env, protocol) is not None
    _, info = env.reset(seed=1)
    assert (info["success"], info["valid"]) == (False, True)
    assert 0.0 <= info["score"] < 1.0
    assert env.unwrapped.instructions  # type: ignore[attr-defined]


SLOW = ((SokobanEnv, "medium"), (SokobanEnv, "hard"))  # draw thousands of rooms


@pytest.mark.parametrize(
    ("world", "difficulty"),
    [pytest.param(*pair, marks=[pytest.mark.slow] * (pair in SLOW)) for pair in product(WORLDS, DIFFICULTIES)],
)
def test_panels_are_distinct_and_disjoint(world: Any, difficulty: str) -> None:
    env = world(difficulty)
    assert env.splits == ("train", "demonstrations", "validation", "test")
    keys = {split: [task.key for task in env.tasks(split)[:120]] for split in env.splits}
    assert all(len(env.tasks(split)) >= 120 for split in env.splits)
    for short in ("validation", "test"):
        assert len(set(keys[short])) == 120
    assert all(not set(keys[a]) & set(keys[b]) for a, b in combinations(env.splits, 2))
    assert env.tasks("train").may_contain(keys["train"][0])
    assert not env.tasks("train").may_contain(keys["test"][0])


# Raise a world's VERSION, and these, whenever the same seed gives another task.
FIRST_KEYS = {
    (FrozenLakeEnv, "easy"): "f982159f6b82b68a",
    (FrozenLakeEnv, "hard"): "d02b3885ffbca577",
    (SokobanEnv, "easy"): "ede342c743eb9b91",
    (SokobanEnv, "hard"): "ed7270209c471936",
    (WordleEnv, "easy"): "c00ae0a63348054e",
    (WordleEnv, "hard"): "c006c7e3ab14d686",
    (MastermindEnv, "easy"): "f948409c69772cc4",
    (MastermindEnv, "hard"): "cfa6f5fbbeaef5fb",
}


@pytest.mark.parametrize(
    ("world", "difficulty"), [pytest.param(*pair, marks=[pytest.mark.slow] * (pair in SLOW)) for pair in FIRST_KEYS]
)
def test_tasks_stay_what_they_are(world: Any, difficulty: str) -> None:
    assert world(difficulty).tasks("test")[0].key == FIRST_KEYS[world, difficulty]


@each_difficulty
@each_world
def test_same_seed_same_transcript_and_interleaved_envs_do_not_disturb_each_other(world: Any, difficulty: str) -> None:
    def transcript(envs: list[Any]) -> list[list[Any]]:
        rngs = [random.Random(7) for _ in envs]
        now = [env.reset(seed=3) for env in envs]
        record = [[first] for first in now]
        for _ in range(30):
            for which, env in enumerate(envs):
                action = _choice(env, rngs[which], now[which][1])
                observation, _, terminated, truncated, info = env.step(action)
                now[which] = env.reset() if terminated or truncated else (observation, info)
                record[which] += [action, observation, now[which]]
        return record

    (alone,) = transcript([world(difficulty)])
    first, second = transcript([world(difficulty), world(difficulty)])
    assert alone == first == second


@each_difficulty
@each_world
def test_a_snapshot_continues_exactly_in_another_env(world: Any, difficulty: str) -> None:
    env, rng = world(difficulty), random.Random(5)
    for index in range(5):
        _, info = env.reset(seed=index, options={"split": "train", "task": index})
        copy = world("medium")
        copy.reset(seed=99)
        copy.restore(env.snapshot())
        over = False
        while not over:
            action = _choice(env, rng, info)
            step = env.step(action)
            assert copy.step(action) == step
            _, _, terminated, truncated, info = step
            over = terminated or truncated
        with pytest.raises(ResetNeeded):
            copy.step(action)


@each_difficulty
@each_world
def test_a_snapshot_can_be_taken_up_again_and_again(world: Any, difficulty: str) -> None:
    env = world(difficulty)
    _, first = env.reset(seed=0, options={"task": 1})
    taken, played = env.snapshot(), []
    for _ in range(2):
        env.restore(taken)
        rng, info, shown = random.Random(1), first, []
        for _ in range(6):
            shown.append(env.step(_choice(env, rng, info)))
            if shown[-1][2]:
                break
        played.append(shown)
    assert played[0] == played[1]


@each_world
def test_what_is_no_action_costs_a_step_and_nothing_else(world: Any) -> None:
    env = world(step_limit=2)
    with pytest.raises(ResetNeeded):
        env.snapshot()
    env.reset(seed=0)
    before = env.save()
    for last in (False, True):
        _, reward, terminated, truncated, info = env.step("open the door")
        assert (reward, terminated, truncated, info["valid"], info["success"]) == (0.0, False, last, False, False)
    assert env.save() == before


@each_world
def test_wrong_names(world: Any) -> None:
    with pytest.raises(ValueError, match=r"Unknown difficulty 'meduim' in turnwise/.*Did you mean 'medium'"):
        world("meduim")
    with pytest.raises(ValueError, match=r"Unknown expert 'serching'.*Did you mean 'searching'"):
        world().expert("serching")
    with pytest.raises(ValueError, match="Did you mean 'test'"):
        world().tasks("tset")


@pytest.mark.parametrize(
    ("world", "difficulty", "least", "least_with_noise"),
    [
        (FrozenLakeEnv, "easy", 1.0, 0.7),
        (FrozenLakeEnv, "medium", 1.0, 0.6),
        (FrozenLakeEnv, "hard", 0.75, 0.5),
        (SokobanEnv, "easy", 0.95, 0.7),
        (SokobanEnv, "medium", 1.0, 0.7),
        pytest.param(SokobanEnv, "hard", 1.0, 0.7, marks=pytest.mark.slow),  # its plans take longest
        (WordleEnv, "easy", 0.95, 0.85),
        (WordleEnv, "medium", 0.95, 0.85),
        (WordleEnv, "hard", 0.95, 0.9),
        (MastermindEnv, "easy", 1.0, 0.97),
        (MastermindEnv, "medium", 1.0, 0.95),
        (MastermindEnv, "hard", 0.97, 0.9),
    ],
)
def test_the_searching_expert_wins_also_when_others_act_in_its_place(
    world: Any, difficulty: str, least: float, least_with_noise: float
) -> None:
    num = 24 if (world, difficulty) == (SokobanEnv, "hard") else 64
    assert _success(world, difficulty, num) >= least
    assert _success(world, difficulty, num, noise=0.2) >= least_with_noise


@pytest.mark.parametrize("world", [WordleEnv, MastermindEnv])
def test_the_knowing_expert_wins_at_once(world: Any) -> None:
    env = world("hard", step_limit=1)
    for index in range(5):
        observation, info = env.reset(options={"split": "test", "task": index})
        expert = env.expert("knowing")
        expert.begin(observation, info)
        assert env.step(expert.act(observation, info))[1:4] == (1.0, True, False)


# ---- frozen lake


@each_difficulty
def test_the_text_of_a_lake_is_the_whole_of_it(difficulty: str) -> None:
    level = frozenlake.LEVELS[difficulty]
    for seed in range(50):
        lake = frozenlake.draw(seed, level)
        assert frozenlake.read(lake.text(), level.slip) == lake
        assert (frozenlake.distance(lake) or 0) >= level.least_moves


@pytest.mark.parametrize("difficulty", ["easy", "medium"])
def test_the_lake_expert_takes_a_shortest_path(difficulty: str) -> None:
    env = FrozenLakeEnv(difficulty)
    for index in range(40):
        observation, info = env.reset(options={"split": "validation", "task": index})
        expert, moves, over = env.expert(seed=index), 0, False
        shortest = frozenlake.distance(env.state)
        while not over:
            observation, _, over, _, info = env.step(expert.act(observation, info))
            moves += 1
        assert (info["success"], moves) == (True, shortest)


def test_edges_holes_and_the_goal() -> None:
    env = FrozenLakeEnv()
    env.reset(seed=0)
    env.load((frozenlake.Lake(2, 0.0, frozenset({1}), goal=3, player=0), None))
    assert env.step("up")[:3] == ("p o\n. g", 0.0, False)
    start = env.snapshot()
    assert env.step("right")[:3] == ("you fell into a hole.", 0.0, True)
    env.restore(start)
    assert env.step("down")[:3] == (". o\np g", 0.0, False)
    observation, reward, terminated, _, info = env.step("right")
    assert (observation, reward, terminated) == ("you reached the goal.", 1.0, True)
    assert (info["success"], info["score"]) == (True, 1.0)


def test_slipping_goes_to_either_side_and_as_often_as_it_says() -> None:
    env = FrozenLakeEnv("hard")
    env.reset(seed=0)
    middle = frozenlake.Lake(3, 0.2, frozenset(), goal=8, player=4)
    went = Counter[int]()
    for _ in range(4000):
        env._state = middle
        env.act("up")
        went[env.state.player] += 1
    assert set(went) == {1, 3, 5}  # up, left, right; never down
    assert went[1] / 4000 == pytest.approx(0.8, abs=0.03)
    assert went[3] / 4000 == pytest.approx(0.1, abs=0.02)


def test_the_value_of_a_move_is_the_discounted_chance_of_the_goal() -> None:
    firm = frozenlake.action_values(frozenlake.read("p . . g\n. o o .\n. . . .\n. . . .", slip=0.0))
    assert firm[1, 0] == pytest.approx(frozenlake._DISCOUNT**3)  # right, right, right
    assert firm[2, 0] == pytest.approx(frozenlake._DISCOUNT**5)  # down, and back up again
    # One move from the goal with holes on both sides: the goal with 0.8, a hole with 0.2.
    narrow = frozenlake.read("o g o\no p o\no . o", slip=0.2)
    assert frozenlake.action_values(narrow)[0, 4] == pytest.approx(frozenlake._DISCOUNT * 0.8)


def test_who_knows_that_the_ice_is_slippery_falls_less() -> None:
    def wins(slip: float) -> int:
        env, count = FrozenLakeEnv("hard"), 0
        for index in range(150):
            observation, info = env.reset(seed=index, options={"split": "validation", "task": index})
            expert, over = frozenlake.LakeExpert(slip, seed=0), False
            while not over:
                observation, _, terminated, truncated, info = env.step(expert.act(observation, info))
                over = terminated or truncated
            count += info["success"]
        return count

    assert wins(0.2) > wins(0.0) + 15


# ---- sokoban


def _fewest_moves(room: sokoban_room.Room) -> int | None:
    """By trying everything, move by move."""
    frontier, seen, moves = {room}, {room}, 0
    while frontier:
        if any(each.solved for each in frontier):
            return moves
        frontier = {each.after(action) for each in frontier for action in sokoban_room.ACTIONS} - seen
        seen |= frontier
        moves += 1
    return None


@pytest.mark.parametrize(("difficulty", "num"), [("easy", 60), ("medium", 8)])
def test_the_solver_needs_the_fewest_moves(difficulty: str, num: int) -> None:
    for seed in range(num):
        room = sokoban_room.draw(seed, sokoban.LEVELS[difficulty])
        plan = sokoban_expert.solve(room)
        assert plan is not None
        for action in plan:
            room, before = room.after(action), room
            assert room != before
        assert room.solved
        assert len(plan) == _fewest_moves(sokoban_room.draw(seed, sokoban.LEVELS[difficulty]))


def test_the_solver_knows_when_a_room_is_lost() -> None:
    for seed in range(40):
        rng, room = random.Random(seed), sokoban_room.draw(seed, sokoban.LEVELS["easy"])
        for _ in range(12):
            room = room.after(rng.choice(sokoban_room.ACTIONS))
        assert (sokoban_expert.solve(room) is None) == (_fewest_moves(room) is None)


@each_difficulty
def test_the_text_of_a_room_is_the_whole_of_it(difficulty: str) -> None:
    level = sokoban.LEVELS[difficulty]
    for seed in range(30):
        room = sokoban_room.draw(seed, level)
        assert sokoban_room.read(room.text()) == room
        assert sokoban_room.read(f"unknown action.\n{room.text()}") == room
        assert room.boxes.bit_count() == room.targets.bit_count() == level.boxes
        assert not room.boxes & room.targets


def test_pushing() -> None:
    room = sokoban_room.read("p o . .\n. # x o\n. o o .\n. . . x")
    assert room.after("up") == room  # the edge
    assert room.after("right").text() == ". p o .\n. # x o\n. o o .\n. . . x"
    assert room.after("right").after("down") == room.after("right")  # a wall
    below = room.after("down").after("down")
    assert below.text() == ". o . .\n. # x o\np o o .\n. . . x"
    assert below.after("right") == below  # two boxes in a row


def test_a_lost_room_goes_on_and_shaping_pays_for_each_box() -> None:
    env = SokobanEnv("medium", shaping=0.25)
    env.reset(seed=0)
    env.load(sokoban_room.read(". x . x\n. o . o\n. p . .\n. . . ."))
    assert env.step("up")[1:3] == (0.25, False)
    start = env.snapshot()
    assert env.step("left")[1:3] == (0.0, False)
    env.restore(start)
    for action in ("down", "right", "right"):
        assert env.step(action)[1:3] == (0.0, False)
    observation, reward, terminated, _, info = env.step("up")
    assert (observation, reward, terminated) == (". * . *\n. . . p\n. . . .\n. . . .", 1.25, True)
    assert (info["success"], info["score"]) == (True, 1.0)

    env.reset(seed=0)
    env.load(sokoban_room.read(". . o p\n. x . .\n. x . .\n. . o ."))  # the upper box is pushed into a corner
    env.step("left")
    _, _, terminated, truncated, info = env.step("left")
    assert sokoban_expert.solve(env.state) is None
    assert (terminated, truncated, info["score"]) == (False, False, 0.0)
    expert = env.expert()
    assert expert.act(env.state.text(), info) in sokoban_room.ACTIONS


# ---- words


@pytest.mark.parametrize(
    ("word", "guess", "marks"),
    [
        ("abbey", "babes", "++==-"),  # the second b is in its place, the first is the other one
        ("crane", "eerie", "--+-="),  # one e, and it is the last
        ("hello", "llama", "++---"),
        ("apple", "apple", "====="),
        ("cat", "dog", "---"),
    ],
)
def test_marks(word: str, guess: str, marks: str) -> None:
    assert wordle.marks(word, guess) == marks


def test_each_word_is_in_one_split() -> None:
    for letters, words in WORDS.items():
        assert list(words) == sorted(set(words))
        assert {len(word) for word in words} == {letters}
        source = wordle.hidden_words(letters)
        hidden = [source.content(s, n) for s in source.splits for n in range(len(source.panel(s)))]
        assert sorted(hidden) == list(words)


def test_a_game_of_words() -> None:
    env = WordleEnv("hard")
    _, info = env.reset(options={"split": "test", "task": 0})
    assert len(info["admissible_actions"]) == len(WORDS[5])
    env.load("crane")
    assert env.step("e a r t h")[0] == "e+ a+ r+ t- h-"
    assert env.step("earth")[0] == "e+ a+ r+ t- h-"
    assert env.step("e a r")[0] == "not a known word of 5 letters."
    observation, reward, terminated, _, info = env.step("c r a n e")
    assert (observation, reward, terminated, info["success"]) == ("c= r= a= n= e=", 1.0, True, True)


def test_only_short_guesses_may_be_any_letters() -> None:
    env = WordleEnv("easy")
    env.reset(seed=0)
    env.load("cat")
    assert env.step("t z a")[0] == "t+ z- a+"
    assert env.step("t 2 a")[4]["valid"] is False
    env.load("crane")
    assert env.step("z z z z z")[4]["valid"] is False


# ---- codes


@pytest.mark.parametrize(
    ("code", "guess", "exact", "near"),
    [
        ((1, 1, 2, 3), (1, 2, 1, 1), 1, 2),  # 1 in place; one more 1 and the 2 elsewhere; the third 1 is one too many
        ((1, 2, 3), (3, 1, 2), 0, 3),
        ((1, 2, 3), (1, 2, 3), 3, 0),
        ((1, 1, 1), (2, 3, 4), 0, 0),
    ],
)
def test_answers(code: mastermind.Code, guess: mastermind.Code, exact: int, near: int) -> None:
    assert mastermind.answer(code, guess) == (exact, near)


def test_the_code_expert_keeps_exactly_the_codes_that_agree() -> None:
    codes = mastermind.all_codes(3, 4)
    rows = np.arange(len(codes.codes))
    for guess in product(range(1, 5), repeat=3):
        answers = [mastermind.answer(tuple(code), guess) for code in codes.codes.tolist()]
        for exact, near in set(answers):
            wanted = [row for row, given in enumerate(answers) if given == (exact, near)]
            assert codes.agreeing(rows, guess, exact, near).tolist() == wanted


def test_a_game_of_codes() -> None:
    env = MastermindEnv()
    observation, info = env.reset(options={"split": "test", "task": 0})
    assert observation == mastermind.clue(env.state.code, env.state.opening)
    assert len(info["admissible_actions"]) == 125
    env.load(mastermind.Game(5, (1, 3, 2), (4, 4, 4)))
    assert env.step("3 3 1")[0] == "3 3 1: exact 1 near 1"
    assert env.step("3 3 6")[0] == "not a code: 3 digits from 1 to 5."
    observation, reward, terminated, _, info = env.step("1 3 2")
    assert (observation, reward, terminated, info["success"]) == ("1 3 2: exact 3 near 0", 1.0, True, True)
    assert "admissible_actions" not in MastermindEnv("hard").reset(seed=0)[1]
