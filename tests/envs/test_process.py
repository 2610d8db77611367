"""ProcessEnv: failures are contained and reported, and otherwise nothing tells it from the world itself."""

from __future__ import annotations

import inspect
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import gymnasium
import pytest
from gymnasium.error import ResetNeeded

from tests.envs.faulty import Faulty
from tests.worlds import Echo
from turnwise.envs.interface import (
    CanBeOverruled,
    HasExpert,
    HasPlayers,
    HasSnapshots,
    HasTasks,
    Panel,
    capability,
    gives_answers,
    speaks_in_roles,
)
from turnwise.envs.process import EnvDiedError, EnvRaisedError, EnvTimeoutError, ProcessEnv
from turnwise.envs.tasks import make_env, step

FAULTY = "tests.envs.faulty:tests/Faulty-v0"
HELPED = "tests.envs.faulty:tests/Helped-v0"
LAKE, WORDS = "turnwise/FrozenLake-v0", "turnwise/Wordle-v0"
Env = gymnasium.Env[str, str]


@pytest.fixture
def faulty() -> Iterator[ProcessEnv]:
    env = ProcessEnv(FAULTY, step_timeout_s=0.3, reset_timeout_s=20)
    yield env
    env.close()


def _gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether a process ends (a zombie has ended) within some seconds."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False


FAILURES = {
    "sleep": (EnvTimeoutError, r"step\(\) took longer than step_timeout_s = 0.3 s"),
    "exit": (EnvDiedError, r"step\(\) got no answer: the environment's process exited with code 3\."),
    "kill": (EnvDiedError, r"the environment's process was killed by SIGKILL\."),
    "raise": (EnvRaisedError, r"step\(\) raised LookupError: no such door"),
}


@pytest.mark.parametrize("action", FAILURES)
def test_a_failure_is_reported_and_a_reset_starts_a_fresh_process(faulty: ProcessEnv, action: str) -> None:
    error, message = FAILURES[action]
    first = faulty.reset()[1]["pid"]
    assert faulty.step("wait")[0] == "step 1"
    with pytest.raises(error, match=message):
        faulty.step(action)
    assert _gone(first)
    with pytest.raises(ResetNeeded, match="call reset"):
        faulty.step("wait")
    second = faulty.reset()[1]["pid"]
    assert len({first, second, os.getpid()}) == 3
    assert faulty.step("wait")[0] == "step 1"


def test_what_the_world_raised_keeps_its_type_message_and_traceback(faulty: ProcessEnv) -> None:
    faulty.reset()
    with pytest.raises(RuntimeError) as caught:
        faulty.step("raise")
    error = cast(EnvRaisedError, caught.value)
    assert (error.type_name, error.message) == ("LookupError", "no such door")
    assert 'raise LookupError("no such door")' in error.trace
    assert error.trace in error.__notes__[0]
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.trace) == (str(error), error.trace)


def test_a_reset_has_its_own_limit() -> None:
    env = ProcessEnv(FAULTY, step_timeout_s=20, reset_timeout_s=5)
    env._reset_limit = "reset_timeout_s", 0.2
    with pytest.raises(EnvTimeoutError, match=r"reset\(\) took longer than reset_timeout_s = 0.2 s"):
        env.reset(options={"sleep": 1000})
    env._reset_limit = "reset_timeout_s", 20
    assert env.reset()[0] == "ready"


def test_a_process_that_dies_between_two_calls_is_noticed(faulty: ProcessEnv) -> None:
    os.kill(faulty.reset()[1]["pid"], signal.SIGKILL)
    with pytest.raises(EnvDiedError, match=r"step\(\) got no answer: .* was killed by SIGKILL"):
        faulty.step("wait")
    pid = faulty.reset()[1]["pid"]
    os.kill(pid, signal.SIGKILL)
    assert _gone(pid)
    assert faulty.reset()[0] == "ready"


def test_an_interrupted_call_does_not_answer_the_next_one(faulty: ProcessEnv) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    faulty._step_limit = "step_timeout_s", 20
    faulty.reset()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            faulty.step("sleep")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert faulty.reset()[0] == "ready"


def test_info_arrives_by_value(faulty: ProcessEnv) -> None:
    faulty.reset()
    assert faulty.step("wait")[4]["admissible_actions"] == ["wait", "raise"]  # a tuple in the world
    with pytest.raises(EnvRaisedError, match="pickle"):
        faulty.step("lock")


def test_a_reward_that_is_no_number_is_refused_as_without_a_process(faulty: ProcessEnv) -> None:
    faulty.reset(seed=0)
    with pytest.raises(ValueError, match=r"returned the reward '1.0'; expected a finite number"):
        step(faulty, "word")


def test_what_the_world_started_ends_with_it(faulty: ProcessEnv) -> None:
    pid = faulty.reset()[1]["pid"]
    started = faulty.step("start")[4]["started"]
    faulty.close()
    assert _gone(pid)
    assert _gone(started)


def test_a_close_that_hangs_is_cut_short() -> None:
    env = ProcessEnv(FAULTY, {"close_s": 1000.0}, step_timeout_s=0.2)
    pid = env.reset()[1]["pid"]
    env.close()
    assert _gone(pid)


def test_the_process_ends_with_the_object() -> None:
    env = ProcessEnv(FAULTY)
    pid = env.reset()[1]["pid"]
    del env
    assert _gone(pid)


SCRIPT = """\
import os, threading
from turnwise.envs.process import ProcessEnv
print("started", flush=True)
env = ProcessEnv("tests.envs.faulty:tests/Faulty-v0")
print(env.reset()[1]["pid"], flush=True)
env.step("sleep")
"""


def test_a_hanging_process_does_not_outlive_a_killed_parent_nor_run_its_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert parent.stdout is not None
    lines = [parent.stdout.readline().strip() for _ in range(2)]
    parent.kill()
    parent.wait()
    assert lines[0] == "started"
    assert _gone(int(lines[1]))
    assert parent.stdout.read() == ""
    parent.stdout.close()


def test_environment_variables_are_those_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("one", "two"):
        monkeypatch.setenv("TURNWISE_TEST", value)
        env = ProcessEnv(FAULTY)
        assert env.reset()[1]["variable"] == value
        env.close()


def test_a_world_that_cannot_be_made_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"starting the environment raised ValueError: .*Did you mean"):
        ProcessEnv("turnwise/FrozenLak-v0")
    with pytest.raises(RuntimeError, match="Unknown difficulty 'eazy'"):
        ProcessEnv(LAKE, {"difficulty": "eazy"})


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="step_timeout_s must be a positive number"):
        ProcessEnv(LAKE, step_timeout_s=0)
    with pytest.raises(ValueError, match="Did you mean 'spawn'"):
        ProcessEnv(LAKE, start_method="spwan")
    with pytest.raises(ValueError, match="without any"):
        ProcessEnv(lambda: Faulty(), {"close_s": 1.0})


def test_a_function_may_make_the_world_in_a_new_interpreter() -> None:
    seconds = 0.0
    env = ProcessEnv(lambda: Faulty(seconds), start_method="spawn")
    assert env.reset()[0] == "ready"
    env.close()


PROTOCOLS = {
    "tasks": HasTasks,
    "snapshot": HasSnapshots,
    "restore": HasSnapshots,
    "expert": HasExpert,
    "role": HasPlayers,
}


@pytest.mark.parametrize(
    ("source", "offered"),
    [
        (FAULTY, set()),
        (HELPED, {"expert", "role"}),
        (LAKE, {"tasks", "snapshot", "restore", "expert"}),
        ("tests.worlds:tests/Cue-v0", {"expert"}),
        ("turnwise/SQL-v0", {"tasks", "snapshot", "restore", "expert"}),
        ("turnwise/Search-v0", {"tasks", "snapshot", "restore", "expert"}),
    ],
)
def test_it_offers_what_the_world_offers(source: str, offered: set[str]) -> None:
    env = ProcessEnv(source)
    for method, protocol in PROTOCOLS.items():
        assert (capability(env, protocol) is not None) == (method in offered)
        # Python 3.12 looks without __getattr__, Python 3.11 with it.
        assert (inspect.getattr_static(env, method, None) is not None) == hasattr(env, method) == (method in offered)
    plain = make_env(source)
    assert env.spec is not None
    assert plain.spec is not None
    assert env.spec.id == plain.spec.id
    assert env.instructions == getattr(plain.unwrapped, "instructions", "")
    assert speaks_in_roles(env) == speaks_in_roles(plain)
    assert gives_answers(env) == gives_answers(plain) == (source == "turnwise/Search-v0")
    assert getattr(env, "splits", None) == getattr(plain.unwrapped, "splits", None)
    env.close()


def test_players_and_an_expert_that_is_overruled() -> None:
    env = ProcessEnv(HELPED, step_timeout_s=0.3)
    game = capability(env, HasPlayers)
    world = capability(env, HasExpert)
    assert game is not None
    assert world is not None
    assert game.players == ("north", "south")
    assert [game.role(player) for player in game.players] == ["n", "s"]
    observation, info = env.reset()
    experts = [world.expert() for _ in range(3)]
    for number, expert in enumerate(experts):
        expert.begin(observation, info)
        assert isinstance(expert, CanBeOverruled)
        expert.overrule(f"jump {number}")
    del experts[1]
    experts.append(world.expert())
    assert [e.act(observation, info) for e in experts] == ["jump 0", "jump 2", "wait"]
    with pytest.raises(EnvTimeoutError, match=r"ask_expert\(\) took longer"):
        experts[0].act("sleep", info)
    env.reset()
    with pytest.raises(ResetNeeded):  # it ended with its world
        experts[1].act(observation, info)


def _transcript(envs: list[Env], num_steps: int) -> list[list[Any]]:
    """Random play, the environments taking turns: what each showed."""
    players = [random.Random(4) for _ in envs]
    now = [env.reset(seed=5, options={"split": "test", "task": 3}) for env in envs]
    shown: list[list[Any]] = [[first] for first in now]
    for _ in range(num_steps):
        for which, env in enumerate(envs):
            action = players[which].choice(now[which][1]["admissible_actions"])
            observation, reward, terminated, truncated, info = env.step(action)
            shown[which].append((action, observation, reward, terminated, truncated, info))
            now[which] = (observation, info) if not (terminated or truncated) else env.reset(seed=6)
    return shown


def test_two_of_them_interleaved_play_as_the_world_itself() -> None:
    def remote() -> ProcessEnv:
        return ProcessEnv(LAKE, {"difficulty": "hard"})

    (alone,) = _transcript([make_env(LAKE, difficulty="hard")], 60)
    first, second = _transcript([remote(), remote()], 60)
    assert alone == first == second


@pytest.mark.parametrize(("env_id", "split"), [(LAKE, "train"), (LAKE, "validation"), (WORDS, "test")])
def test_panels_equal_those_of_the_world(env_id: str, split: str) -> None:
    env = ProcessEnv(env_id)
    there, here = _panel(env, split), _panel(make_env(env_id), split)
    assert (there.hash, len(there), there.env, there.split) == (here.hash, len(here), here.env, here.split)
    assert there == _panel(env, split)
    assert hash(there) == hash(_panel(env, split))
    for index in (0, -1, slice(0, 300), slice(20, 2, -3)):
        assert there[index] == here[index]
    assert [task for task, _ in zip(there, range(300), strict=False)] == list(here[:300])
    for task in (*here[:5], *_panel(make_env(env_id), "demonstrations")[:5]):
        assert there.may_contain(task.key) == here.may_contain(task.key)
    with pytest.raises(IndexError):
        there[len(here)]
    with pytest.raises(RuntimeError, match="Did you mean 'train'"):
        _panel(env, "trian")
    env.close()
    assert there[7] == here[7]  # a fresh process looks it up


def _panel(env: Env, split: str) -> Panel:
    world = capability(env, HasTasks)
    assert world is not None
    return world.tasks(split)


@pytest.mark.parametrize("kind", ["searching", "knowing"])
def test_experts_play_as_those_of_the_world(kind: str) -> None:
    def game(env: Env) -> list[tuple[str, str]]:
        world = capability(env, HasExpert)
        assert world is not None
        observation, info = env.reset(seed=0, options={"split": "test", "task": 8})
        expert = world.expert(kind, seed=3)
        expert.begin(observation, info)
        shown, over = [(observation, "")], False
        while not over:
            action = expert.act(observation, info)
            observation, _, terminated, truncated, info = env.step(action)
            shown.append((observation, action))
            over = terminated or truncated
        return shown

    assert game(ProcessEnv(WORDS)) == game(make_env(WORDS))


def test_snapshots_pass_between_processes_and_the_world_itself() -> None:
    def snapshots(env: Env) -> HasSnapshots:
        world = capability(env, HasSnapshots)
        assert world is not None
        return world

    def taken(env: Env) -> Any:
        env.reset(seed=1, options={"split": "test", "task": 0})
        env.step("up")
        return snapshots(env).snapshot()

    def continued(env: Env, snapshot: Any) -> list[Any]:
        snapshots(env).restore(snapshot)
        shown = []
        for action in ("left", "up", "right", "up"):
            shown.append(env.step(action))
            if shown[-1][2]:
                break
        return shown

    remote, plain = ProcessEnv(LAKE, {"difficulty": "hard"}), make_env(LAKE, difficulty="hard")
    snapshot = taken(remote)
    assert snapshot == taken(plain)
    fresh = ProcessEnv(LAKE, {"difficulty": "hard"})
    first, *others = [continued(env, snapshot) for env in (remote, plain, fresh, fresh)]
    assert len(first) == 4
    assert all(other == first for other in others)


def test_a_world_without_panels_starts_from_seeds() -> None:
    remote, plain = ProcessEnv("tests.worlds:tests/Echo-v0"), Echo()
    for seed in range(4):
        assert remote.reset(seed=seed) == plain.reset(seed=seed)
