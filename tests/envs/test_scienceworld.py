"""ScienceWorldEnv: the official simulator, repeatable, and alive again after its process was killed."""

from __future__ import annotations

import builtins
import copy
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from turnwise.envs.interface import CanBeOverruled, HasExpert, HasTasks, capability
from turnwise.envs.scienceworld.env import ScienceWorldEnv
from turnwise.envs.scienceworld.simulator import Simulator, SimulatorError
from turnwise.envs.scienceworld.tasks import VARIATIONS, starts, variations
from turnwise.envs.tasks import make_env

ALL = tuple(VARIATIONS)
QUICK = ("boil", "find-animal", "lifespan-shortest-lived", "grow-fruit")


@pytest.fixture(scope="module")
def env() -> Iterator[ScienceWorldEnv]:
    _needs_the_simulator()
    made = ScienceWorldEnv(tasks=QUICK)
    yield made
    made.close()


@pytest.fixture(scope="module")
def other() -> Iterator[ScienceWorldEnv]:
    """In a process of its own."""
    _needs_the_simulator()
    made = ScienceWorldEnv(tasks=QUICK)
    yield made
    made.close()


def _sharing(env: ScienceWorldEnv, **settings: Any) -> ScienceWorldEnv:
    """Other settings on the process of ``env``: starting one takes seconds."""
    made = ScienceWorldEnv(**settings)
    env.reset()
    made._simulator = env.simulator
    return made


def _needs_the_simulator() -> None:
    pytest.importorskip("scienceworld", reason="needs the scienceworld package")
    if shutil.which("java") is None:
        pytest.skip("needs Java")


def _play(env: ScienceWorldEnv, index: int, actions: list[str], listing: bool = False) -> list[Any]:
    """What the actions led to, without the admissible actions; ``listing`` looks at those before every step."""
    observation, info = env.reset(options={"task": index})
    seen: list[Any] = [observation]
    for action in actions:
        if listing:
            assert len(info["admissible_actions"]) > 1
        observation, reward, terminated, truncated, info = env.step(action)
        plain = {key: value for key, value in info.items() if key != "admissible_actions"}
        seen.append((observation, reward, terminated, truncated, plain))
    return seen


def _random_actions(env: ScienceWorldEnv, index: int, count: int, seed: int = 0) -> list[str]:
    """Admissible ones that end nothing."""
    rng, chosen = random.Random(seed), []
    info = env.reset(options={"task": index})[1]
    for _ in range(count):
        chosen.append(rng.choice([a for a in info["admissible_actions"] if not a.startswith("focus")]))
        info = env.step(chosen[-1])[-1]
    return chosen


def _rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def _is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def _wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


# Panels: no Java needed.


def test_the_official_splits() -> None:
    sizes = {split: len(starts(ALL, split)) for split in ("train", "dev", "test")}
    assert sizes == {"train": 3592, "dev": 1796, "test": 1819}
    assert list(variations("boil", "dev")) == list(range(14, 21))  # 30 variations: 14, 7, 9
    everything = [start for split in sizes for start in starts(ALL, split)]
    assert len(set(everything)) == sum(VARIATIONS.values()) == 7207


def test_panels_are_balanced_fixed_and_keyed_by_content() -> None:
    env = ScienceWorldEnv()
    train = env.tasks("train")
    assert [task.type for task in train[:30]] == list(ALL)
    assert len({task.key for task in train}) == len(train)
    assert ScienceWorldEnv().tasks("train").hash == train.hash
    assert ScienceWorldEnv(simplifications="").tasks("train").hash != train.hash
    boil = ScienceWorldEnv(tasks="boil").tasks("train")
    assert {task.key for task in boil} == {task.key for task in train if task.type == "boil"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": "boyl"}, "Did you mean 'boil'"),
        ({"tasks": ["boil", "boil"]}, "none twice"),
        ({"tasks": []}, "at least one"),
        ({"simplifications": "easi"}, "Did you mean 'easy'"),
        ({"simplifications": "easy,openDoors"}, "stands alone"),
        ({"tasks": "test-conductivity", "simplifications": "noElectricalAction"}, "test-conductivity"),
        ({"success": "score_10"}, "Did you mean 'score_100'"),
        ({"admissible": "lasy"}, "Did you mean 'lazy'"),
        ({"heap_mb": 8}, "at least 64"),
        ({"step_limit": 0}, "at least 1"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScienceWorldEnv(**settings)


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        ScienceWorldEnv().tasks("trian")


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "scienceworld":
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[envs\]"'):
        ScienceWorldEnv().reset()


def test_missing_java_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("scienceworld", reason="needs the scienceworld package")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="Java 11 or newer"):
        ScienceWorldEnv().reset()


# The contract.


@pytest.mark.slow
def test_gymnasium_accepts_it(env: ScienceWorldEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = _sharing(env, tasks="lifespan-shortest-lived", admissible="always")
        check_env(made, skip_render_check=True, skip_close_check=True)


def test_made_by_its_id_it_offers_tasks_and_an_expert() -> None:
    env = make_env("turnwise/ScienceWorld-v0", tasks="boil")
    assert capability(env, HasTasks) is not None
    assert capability(env, HasExpert) is not None
    with pytest.raises(ValueError, match="only 'knowing'"):
        capability(env, HasExpert).expert("searching")  # type: ignore[union-attr]


def test_the_first_observation_is_the_task_and_the_room(env: ScienceWorldEnv) -> None:
    observation, info = env.reset(options={"task": 0})
    assert observation.startswith("Task Description:\nYour task is to boil ")
    assert "\nThis room is called the " in observation
    assert (info["success"], info["score"], info["official_score"], info["valid"]) == (False, 0.0, 0, True)
    assert info["task_type"] == "boil"
    assert env.simulator.look().strip() in observation
    assert env.simulator.inventory().startswith("In your inventory, you see:")


@pytest.mark.slow
def test_equal_actions_equal_text_in_another_process_too(env: ScienceWorldEnv, other: ScienceWorldEnv) -> None:
    """Whatever was played before, and although the simulator orders objects by hash when left to itself."""
    transcripts = []
    for index in range(len(QUICK)):
        actions = [*_random_actions(env, index, 5), "teleport to art studio", "look around", "look in hallway"]
        transcripts.append((index, actions, _play(env, index, actions)))
    for index, actions, transcript in reversed(transcripts):
        assert _play(other, index, actions) == transcript


def test_listing_the_actions_changes_nothing(env: ScienceWorldEnv) -> None:
    """Neither the text nor later lists, although the simulator draws from the bees' generator for it."""
    actions = [*_random_actions(env, 3, 4), "teleport to outside", *["wait"] * 3, "look around", "wait1", "look around"]
    plain = _play(env, 3, actions)
    last = list(env._info(env.simulator.act("help"), over=False)["admissible_actions"])
    assert _play(env, 3, actions, listing=True) == plain
    assert list(env._info(env.simulator.act("help"), over=False)["admissible_actions"]) == last


@pytest.mark.slow
def test_two_interleaved_do_not_disturb_each_other(env: ScienceWorldEnv, other: ScienceWorldEnv) -> None:
    actions = _random_actions(env, 0, 6)
    alone = _play(env, 0, actions)
    seen: list[Any] = [env.reset(options={"task": 0})[0]]
    other.reset(options={"task": 1})
    for action in actions:
        seen.append(env.step(action)[0])
        other.step("look around")
    assert seen == [alone[0]] + [outcome[0] for outcome in alone[1:]]


def test_the_step_limit_truncates_and_the_end_is_final(env: ScienceWorldEnv) -> None:
    short = _sharing(env, tasks="boil", step_limit=2)
    with pytest.raises(ResetNeeded):
        short.step("look around")
    short.reset(options={"task": 0})
    assert short.step("look around")[2:4] == (False, False)
    assert short.step("no such thing")[2:4] == (False, True)
    with pytest.raises(ResetNeeded):
        short.step("look around")


def test_a_wrong_focus_ends_the_episode_with_minus_100(env: ScienceWorldEnv) -> None:
    env.reset(options={"task": 0})
    _, reward, terminated, truncated, info = env.step("focus on agent")
    assert (reward, terminated, truncated) == (-1.0, True, False)
    assert (info["official_score"], info["score"], info["success"]) == (-100, 0.0, False)


def test_what_is_not_understood(env: ScienceWorldEnv) -> None:
    env.reset(options={"task": 0})
    for action in ("", "a\nb", "\ud800", "fly 🚀", "word " * 2000):
        observation, reward, *_, info = env.step(action)
        assert (info["valid"], reward) == (False, 0.0)
        assert observation == "No known action matches that input."


def test_an_ambiguous_request_is_answered_with_a_number(env: ScienceWorldEnv) -> None:
    env.reset(options={"task": 0})
    env.step("teleport to art studio")
    observation, *_, info = env.step("look at paint")
    assert observation.startswith("Ambiguous request")
    assert list(info["admissible_actions"]) == ["0", "1", "2"]
    assert "paint" in env.step("1")[0]


def test_success_by_other_papers_definition(env: ScienceWorldEnv) -> None:
    """find-animal starts with a score above 0: by EPO's rule running into the step limit wins it."""
    epo = _sharing(env, tasks="find-animal", step_limit=2, success="completed_above_0")
    info = epo.reset(options={"task": 0})[1]
    assert info["score"] > 0
    assert [epo.step("wait1")[-1]["success"] for _ in range(2)] == [False, True]


# Admissible actions.


def test_lazy_actions_are_fetched_in_time_or_not_at_all(env: ScienceWorldEnv) -> None:
    info = env.reset(options={"task": 0})[1]
    lazy = info["admissible_actions"]
    assert "not fetched" in repr(lazy)
    assert "look around" in lazy
    later = env.step("look around")[-1]["admissible_actions"]
    assert "look around" in lazy  # looked at in time: still there
    env.step("look around")
    with pytest.raises(RuntimeError, match="not looked at in time"):
        len(later)


def test_lazy_actions_travel_as_a_plain_list(env: ScienceWorldEnv) -> None:
    lazy = env.reset(options={"task": 0})[1]["admissible_actions"]
    travelled = pickle.loads(pickle.dumps(lazy))
    assert type(travelled) is list
    assert travelled == list(lazy) == copy.deepcopy(lazy) == lazy


def test_always_and_never(env: ScienceWorldEnv) -> None:
    always = _sharing(env, tasks="boil", admissible="always").reset(options={"task": 0})[1]
    assert type(always["admissible_actions"]) is list
    never = _sharing(env, tasks="boil", admissible="never").reset(options={"task": 0})[1]
    assert "admissible_actions" not in never


# The Java process.


@pytest.mark.slow  # another Java process; tests/envs/test_process.py kills those of other worlds
def test_a_killed_process_raises_and_the_next_reset_starts_another(env: ScienceWorldEnv) -> None:
    env.reset(options={"task": 0})
    before = env.step("look around")[0]
    pid = env.simulator.pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(SimulatorError, match="SIGKILL"):
        env.step("look around")
    env.reset(options={"task": 0})
    assert env.simulator.pid != pid
    assert env.step("look around")[0] == before


@pytest.mark.slow
def test_a_hanging_process_is_stopped_after_the_time_limit() -> None:
    _needs_the_simulator()
    env = ScienceWorldEnv(tasks="boil", call_timeout_s=8.0)
    env.reset(options={"task": 0})
    pid = env.simulator.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(SimulatorError, match="call_timeout_s=8"):
        env.step("look around")
    assert not _is_running(pid)
    env.close()


@pytest.mark.slow
def test_the_heap_is_bounded() -> None:
    _needs_the_simulator()
    with pytest.raises(SimulatorError, match="raise heap_mb"):
        Simulator(heap_mb=16).start("boil", 0, "easy")


@pytest.mark.parametrize(
    "ending", ["close", *(pytest.param(e, marks=pytest.mark.slow) for e in ("forget", "exit")), "kill"]
)
@pytest.mark.slow
def test_no_process_is_left_behind(ending: str, tmp_path: Path) -> None:
    _needs_the_simulator()
    last = {"close": "env.close()", "forget": "del env", "exit": "raise SystemExit", "kill": "os.kill(os.getpid(), 9)"}
    script = tmp_path / "play.py"
    script.write_text(
        "import os, time\n"
        "from turnwise.envs.scienceworld.env import ScienceWorldEnv\n"
        "env = ScienceWorldEnv(tasks='boil')\n"
        "env.reset()\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(env.simulator.pid))\n"
        f"{last[ending]}\n"
        f"open({str(tmp_path / 'stayed')!r}, 'w').close()\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    stays = ending in ("close", "forget")
    try:
        _wait_for(lambda: (tmp_path / "stayed").exists() if stays else parent.poll() is not None)
        pid = int((tmp_path / "pid").read_text())
        _wait_for(lambda: not _is_running(pid))
    finally:
        parent.kill()
        parent.wait()


# The expert, and the official wrapper.


def test_the_expert_solves_and_finds_back_after_noise(
    env: ScienceWorldEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Takes seconds: three episodes are played to their end."""
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    for noise in ([], ["teleport to outside"], ["no such action", "look around"]):
        observation, info = env.reset(options={"task": 1})
        expert = env.expert("knowing")
        expert.begin(observation, info)
        assert env.simulator.look().strip() in observation  # making the solution did not disturb the episode
        over, turns = False, 0
        while not over:
            action = expert.act(observation, info)
            if turns in (3, 5) and noise:
                action = noise[turns == 5 and len(noise) > 1]
                assert isinstance(expert, CanBeOverruled)
                expert.overrule(action)
            observation, _, terminated, truncated, info = env.step(action)
            over, turns = terminated or truncated, turns + 1
        assert info["success"], noise
    assert len(list(tmp_path.rglob("*.txt"))) == 1


@pytest.mark.long
def test_every_task_is_solved_by_its_own_solution_or_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variation 0 of the thirty tasks, "easy", 100 steps: 27 succeed, the other three need more."""
    _needs_the_simulator()
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    simulator, unsolved, solutions = Simulator(), {}, {}
    for task in VARIATIONS:
        solutions[task] = simulator.gold_path(task, 0, "easy")
        outcome = simulator.start(task, 0, "easy")
        for action in solutions[task][:100]:
            outcome = simulator.act(action)
            if outcome.completed:
                break
        if outcome.score != 100:
            unsolved[task] = len(solutions[task])
    assert _rss_mb(simulator.pid) < 768 + 300  # heap, and what Java needs besides
    simulator.close()
    assert set(unsolved) == {
        "inclined-plane-friction-unnamed-surfaces",
        "mendelian-genetics-known-plant",
        "mendelian-genetics-unknown-plant",
    }
    assert min(unsolved.values()) > 100


@pytest.mark.long
def test_the_official_wrapper_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observations, rewards, scores and ends of all thirty tasks, with objects in the same order."""
    _needs_the_simulator()
    env = ScienceWorldEnv()
    env.reset(options={"task": 0})
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xmx768m -XX:+UnlockExperimentalVMOptions -XX:hashCode=2")
    from scienceworld import ScienceWorldEnv as Official

    official = Official("", envStepLimit=100)
    rng = random.Random(0)
    for index, (task, variation) in enumerate(starts(ALL, "train")[:30]):
        observation, info = env.reset(options={"task": index})
        official.load(task, variation, "easy")
        expected, expected_info = official.reset()
        assert observation == f"{expected_info['taskDesc']}\n{expected}"
        terminated = False
        for _ in range(8):
            if terminated:
                break
            action = rng.choice(list(info["admissible_actions"]))
            observation, reward, terminated, _, info = env.step(action)
            expected, expected_reward, expected_end, expected_info = official.step(action)
            assert (observation, terminated) == (expected, expected_end)
            assert (round(100 * reward), info["official_score"]) == (expected_reward, expected_info["score"])
    official.close()
    env.close()


@pytest.mark.slow
def test_a_vector_of_them_runs() -> None:
    _needs_the_simulator()
    import turnwise.envs  # noqa: F401  (registers the environments)

    envs = gymnasium.make_vec("turnwise/ScienceWorld-v0", 1, "async", tasks="boil", admissible="never")
    observations, _ = envs.reset()
    assert observations[0].startswith("Task Description:")
    assert "room" in envs.step(["look around"])[0][0] or "outside" in envs.step(["look around"])[0][0]
    envs.close()
