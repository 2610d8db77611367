"""The environment contract of ``turnwise/ALFWorld-v0``, on houses built by hand (no data needed)."""

from __future__ import annotations

import pickle
import resource
import warnings
from dataclasses import replace
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import turnwise.envs  # noqa: F401  (registers the environments)
from tests.envs.alfworld_house import ENV_ID, GOALS, Houses, house
from turnwise.envs.alfworld.env import ALFWorldEnv
from turnwise.envs.alfworld.world import World
from turnwise.envs.bench import bench
from turnwise.envs.interface import HasExpert, HasSnapshots, HasTasks, capability, state_key_of

PLAN = [
    *("go to desk 1", "take cd 1 from desk 1", "go to cabinet 1", "open cabinet 1"),
    "move cd 1 to cabinet 1",
]
PICK: dict[str, Any] = {"task": 0}


def make(**kwargs: Any) -> gymnasium.Env[str, str]:
    return gymnasium.make(ENV_ID, source=Houses(), **kwargs)


def transcript(env: gymnasium.Env[str, str], seed: int, num_steps: int = 60) -> list[Any]:
    """Random episodes, restarted where they end; the actions are drawn from what is admissible."""
    observation, info = env.reset(seed=seed)
    lines: list[Any] = [(observation, info)]
    for step in range(num_steps):
        actions = info["admissible_actions"]
        result = env.step(actions[(7 * step + seed) % len(actions)])
        info = result[4]
        lines.append(result)
        if result[2] or result[3]:
            observation, info = env.reset()
            lines.append((observation, info))
    return lines


def test_gymnasium_finds_nothing_to_complain_about() -> None:
    env = make()
    assert env.unwrapped is env, "no wrapper between the caller and the world"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)


def test_a_win_pays_one_and_ends() -> None:
    env = make()
    _, info = env.reset(options=PICK)
    assert (info["success"], info["score"], info["valid"]) == (False, 0.0, True)
    assert (info["task_type"], info["task"], info["game"]) == (*("pick_and_place_simple", "do pick.", "train/pick"),)
    results = [env.step(action) for action in PLAN]
    assert [result[1] for result in results] == [0.0] * 4 + [1.0]
    assert [result[2] for result in results] == [False] * 4 + [True]
    assert not any(result[3] for result in results)
    assert (results[-1][4]["success"], results[-1][4]["score"]) == (True, 1.0)


def test_the_key_tells_states_with_one_text_apart() -> None:
    """What fails changes nothing, and answers alike everywhere. The key follows the state, not the way to it."""
    env = make()
    _, info = env.reset(options=PICK)
    keys = [info["state_key"]]
    for action in ("nonsense", PLAN[0], "nonsense", PLAN[1], "nonsense", "look"):
        observation, *_, info = env.step(action)
        keys.append(info["state_key"])
        assert (observation == "Nothing happens.") == (action == "nonsense")
    start, failed, at_desk, failed_there, holding, failed_holding, looked = keys
    assert (start, at_desk, holding, holding) == (failed, failed_there, failed_holding, looked)
    assert len({start, at_desk, holding}) == 3
    for action in ("move cd 1 to desk 1", "take cd 1 from desk 1"):
        *_, info = env.step(action)
    assert info["state_key"] == holding


def test_a_step_makes_no_copy_for_the_key_and_a_record_has_its_hash() -> None:
    """A hash of whole numbers is the same in every process."""
    env = make()
    _, info = env.reset(options=PICK)
    *_, later = env.step(PLAN[0])
    assert all(one is other for one, other in zip(info["state_key"][2:], later["state_key"][2:], strict=True))
    assert info["state_key"] == env._playing().world.start
    assert state_key_of({"state_key": (0, -1, ((1, 2), (True,)))}) == "78d2f4487919f4ff"
    assert [state_key_of({"state_key": found}) for found in ("at the door", None)] == ["at the door", ""]


def test_any_string_is_an_action_and_nothing_else_is() -> None:
    env = make()
    _, before = env.reset(options=PICK)
    for action in ("", "GO TO DESK 1", "take 本 from 机", "x" * 10_000, "\x00"):
        observation, reward, terminated, truncated, info = env.step(action)
        assert (observation, reward, terminated, truncated) == ("Nothing happens.", 0.0, False, False)
        assert info["valid"] is False
        assert info["admissible_actions"] == before["admissible_actions"]
    bad: Any
    for bad in (3, None, b"look", ["look"]):
        with pytest.raises(TypeError, match="An action is a string"):
            env.step(bad)


@pytest.mark.parametrize("through_make", [True, False])
def test_truncation(through_make: bool) -> None:
    env = make(step_limit=5) if through_make else ALFWorldEnv(Houses(), step_limit=5)
    assert env.unwrapped is env, "the limit is the environment's own, not a wrapper's"
    env.reset(options=PICK)
    assert [env.step("look")[2:4] for _ in range(5)] == [(False, False)] * 4 + [(False, True)]
    env.reset(options=PICK)
    assert [env.step(action)[2:4] for action in PLAN][-1] == (True, False), "a win on the last step is a win"


def test_make_can_raise_the_limit() -> None:
    env = make(step_limit=70)
    env.reset(options=PICK)
    assert [env.step("look")[3] for _ in range(70)] == [False] * 69 + [True]


def test_stepping_outside_an_episode_is_an_error() -> None:
    env = make()
    with pytest.raises(ResetNeeded):
        env.step("look")
    with pytest.raises(ResetNeeded):
        env.unwrapped.snapshot()  # type: ignore[attr-defined]
    env.reset(options=PICK)
    for action in PLAN:
        env.step(action)
    with pytest.raises(ResetNeeded):
        env.step("look")
    env.reset()
    env.step("look")


def test_the_same_seed_gives_the_same_transcript_and_seeds_differ() -> None:
    assert transcript(make(), 3) == transcript(make(), 3)
    env = make()
    starts = [env.reset(seed=seed)[0] for seed in range(20)]
    assert len(set(starts)) > 1
    drawn = {env.reset()[1]["task"] for _ in range(60)}
    assert len(drawn) == len(GOALS), "every task is drawn"


def test_interleaved_instances_do_not_disturb_each_other() -> None:
    alone = [transcript(make(), seed) for seed in (1, 2)]
    source = Houses()
    envs = [gymnasium.make(ENV_ID, source=source) for _ in range(2)]
    together: list[list[Any]] = [[env.reset(seed=seed)] for env, seed in zip(envs, (1, 2), strict=True)]
    infos = [lines[0][1] for lines in together]
    for step in range(60):
        for number, (env, seed) in enumerate(zip(envs, (1, 2), strict=True)):
            actions = infos[number]["admissible_actions"]
            result = env.step(actions[(7 * step + seed) % len(actions)])
            together[number].append(result)
            infos[number] = result[4]
            if result[2] or result[3]:
                together[number].append(env.reset())
                infos[number] = together[number][-1][1]
    assert together == alone


def test_a_list_given_out_is_the_callers_own() -> None:
    env = make()
    _, info = env.reset(options=PICK)
    info["admissible_actions"].clear()
    assert env.step("look")[4]["admissible_actions"]


def test_capabilities() -> None:
    env = make()
    for protocol in (HasTasks, HasSnapshots, HasExpert):
        assert capability(env, protocol) is not None
    assert capability(env, HasExpert).expert("searching", seed=1).act  # type: ignore[type-abstract,union-attr]
    assert "go to" in ALFWorldEnv.instructions


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("same_env", [True, False])
def test_a_restored_episode_continues_as_the_original(same_env: bool, pickled: bool) -> None:
    env = ALFWorldEnv(Houses(), step_limit=8)
    _, info = env.reset(options={"task": 5})
    for _ in range(3):
        info = env.step(info["admissible_actions"][0])[4]
    snapshot = env.snapshot()
    actions = ["go to desk 1", "nonsense", "take cd 1 from desk 1", "examine cd 1", "look"]
    original = [env.step(action) for action in actions]
    assert original[-1][3], "three steps before the copy and five after it reach the limit"
    other = env if same_env else ALFWorldEnv(Houses(), step_limit=50)
    other.restore(pickle.loads(pickle.dumps(snapshot)) if pickled else snapshot)
    assert [other.step(action) for action in actions] == original


def test_a_snapshot_of_an_ended_episode_is_ended() -> None:
    env = ALFWorldEnv(Houses(), step_limit=1)
    env.reset()
    env.step("look")
    snapshot = env.snapshot()
    env.reset()
    env.restore(snapshot)
    with pytest.raises(ResetNeeded):
        env.step("look")


def test_the_knowing_expert_plays_through_the_environment() -> None:
    env = make()
    for split in ("train", "test"):
        for task in env.unwrapped.tasks(split):  # type: ignore[attr-defined]
            observation, info = env.reset(options={"split": split, "task": task.index})
            assert info["task_type"] == task.type
            expert = env.unwrapped.expert("knowing")  # type: ignore[attr-defined]
            expert.begin(observation, info)
            won = False
            while not won:
                observation, _, won, truncated, info = env.step(expert.act(observation, info))
                assert info["valid"]
                assert not truncated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": "train"}, r"Unknown reset options \['splits'\]: expected 'split' and 'task'"),
        ({"split": "tests"}, r"Unknown split 'tests'.*Did you mean 'test'\? Expected one of: train, test"),
        ({"task": 6}, r"Task 6 is not in split 'train': it has 0 to 5"),
        ({"task": "first"}, r"options\['task'\] is the index of a task, got 'first'"),
        ({"task": -1}, r"Task -1 is not in split 'train': it has 0 to 5"),
    ],
)
def test_wrong_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().reset(options=options)


def test_wrong_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        ALFWorldEnv(Houses(), step_limit=0)
    with pytest.raises(ValueError, match="got both"):
        ALFWorldEnv(Houses(), data="somewhere")
    with pytest.raises(ValueError, match="Unknown expert 'oracle': expected 'knowing' or 'searching'"):
        ALFWorldEnv(Houses()).expert("oracle")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectorized(mode: str) -> None:
    envs = gymnasium.make_vec(ENV_ID, num_envs=3, vectorization_mode=mode, source=Houses())
    try:
        observations, infos = envs.reset(seed=[4, 5, 6])  # type: ignore[arg-type]
        singles = [make() for _ in range(3)]
        expected = [env.reset(seed=seed) for env, seed in zip(singles, (4, 5, 6), strict=True)]
        assert list(observations) == [observation for observation, _ in expected]
        assert list(infos["task"]) == [info["task"] for _, info in expected]
        observations, rewards, terminated, truncated, infos = envs.step(("look", "go to fridge 1", "日本"))
        assert list(observations) == [
            "You are in the middle of a room. Looking quickly around you, you see nothing.",
            "You arrive at fridge 1. The fridge 1 is closed.",
            "Nothing happens.",
        ]
        assert list(infos["valid"]) == [True, True, False]
        assert not any([*rewards, *terminated, *truncated])
    finally:
        envs.close()


def test_bench_measures() -> None:
    speed = bench(num_games=3, seconds=0.3, source=Houses())
    assert speed.num_games == 3
    assert speed.num_steps > 100
    assert speed.steps_per_s > 0
    assert 0 < speed.load_ms <= speed.load_max_ms


def test_memory_does_not_grow_over_many_episodes() -> None:
    """Peak memory of the process in KiB; games are prepared anew in every episode. (10,000 of real games: a
    slow test in tests/parity.)"""
    env = make(step_limit=10)
    peaks = []
    for num_episodes in (500, 2_500):
        for episode in range(num_episodes):
            _, info = env.reset(options={"task": episode % len(GOALS)})
            over = False
            while not over:
                actions = info["admissible_actions"]
                _, _, terminated, truncated, info = env.step(actions[episode % len(actions)])
                over = terminated or truncated
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[1] - peaks[0] < 4 * 1024


def test_a_game_that_contradicts_itself_is_an_error() -> None:
    game = house()
    lost = replace(game, things=(replace(game.things[0], receptacle="Nowhere_bar_1"),))
    with pytest.raises(ValueError, match="Nowhere_bar_1, which is not one of its receptacles"):
        World(lost)
