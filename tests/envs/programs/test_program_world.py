"""Programs as worlds: coroutines, functions and command lines, played by dictation."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.envs.programs import agents
from turnwise.envs.interface import HasClient, capability, speaks_in_roles
from turnwise.envs.process import ProcessEnv
from turnwise.envs.programs import running
from turnwise.envs.programs.results import ProgramError
from turnwise.envs.programs.world import Endpoint, ProgramEnv
from turnwise.envs.said import Call, said
from turnwise.envs.tasks import make_env, panel, refuse, start, step
from turnwise.errors import AgentError

ROWS = [{"question": f"Question {number}?", "type": "odd" if number % 2 else "even"} for number in range(40)]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    agents.SEEN.clear()
    agents.RELEASE.clear()
    yield
    agents.RELEASE.set()
    assert Endpoint._open is None, "a world was left open"


@pytest.fixture
def world() -> Iterator[Callable[..., ProgramEnv]]:
    made = []

    def make(name: str, rows: list[dict[str, Any]] | None = None, **more: Any) -> ProgramEnv:
        run = name if " " in name else f"tests.envs.programs.agents:{name}"
        made.append(ProgramEnv(run, rows or ROWS, **more))
        return made[-1]

    yield make
    agents.RELEASE.set()
    for env in made:
        env.close()


def begun(env: ProgramEnv, index: int = 0) -> tuple[str, dict[str, Any]]:
    return env.reset(seed=3, options={"split": "train", "task": index})


@pytest.mark.parametrize("name", ["twice", "twice_async"])
def test_an_episode_is_what_the_program_does(world: Callable[..., ProgramEnv], name: str) -> None:
    env = world(name)
    observation, info = begun(env)
    asked = info["messages"][0]["content"]
    assert observation == f"[user] {asked}"
    assert info["task"]["question"] == asked
    assert "after" not in info
    observation, reward, terminated, truncated, info = env.step(said("hello"))
    assert (observation, reward, terminated, truncated) == ("[user] Say it again.", 0.0, False, False)
    assert (info["after"], info["messages"]) == (0, [{"role": "user", "content": "Say it again."}])
    _, reward, terminated, _, info = env.step(said("eeex"))
    assert (reward, terminated) == (0.75, True)
    assert info.get("success") == (True if name == "twice_async" else None)


def test_it_is_a_world_like_others() -> None:
    env = make_env("turnwise/Program-v0", run="tests.envs.programs.agents:twice", tasks=ROWS)
    tasks = panel(env, "train")
    start(env, tasks[0], 0)
    assert step(env, "plain words are content")[4]["after"] == 0
    start(env, tasks[1], 0)  # in the middle of an episode
    env.close()


def test_a_reply_with_a_fault_is_not_valid(world: Callable[..., ProgramEnv]) -> None:
    env = world("twice")
    begun(env)
    assert env.step(said("x", fault="broken JSON"))[4]["valid"] is False
    assert env.step(said("x"))[4]["valid"] is True


def test_the_client_hears_how_long_its_reply_was(world: Callable[..., ProgramEnv]) -> None:
    env = world("counts")
    begun(env)
    env.counted(11, 4, False)
    env.step(said("x"))
    assert agents.SEEN == [("length", {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15})]


FAILING: list[tuple[str, dict[str, Any], str]] = [
    ("raises", {}, r"agents:raises raised KeyError \(agents.py, line \d+\): 'no such city'"),
    ("leaves", {}, r"raised SystemExit"),
    ("cancels_itself", {}, r"raised CancelledError .*: of its own"),
    ("returns", {"returned": None}, r"returned None: return the reward"),
    ("returns", {"returned": "good"}, r"returned 'good': return the reward"),
    ("returns", {"returned": "not a number"}, r"returned nan: return the reward"),
    ("returns", {"returned": {"rewards": 1}}, r"returned the key 'rewards'"),
    ("returns", {"returned": {"reward": 1, "score": 2}}, r"score': number in \[0, 1\]"),
    ("returns", {"returned": {"success": True}}, r"return the reward"),
]


@pytest.mark.parametrize(("name", "row", "why"), FAILING)
def test_a_program_that_fails_fails_its_episode(
    world: Callable[..., ProgramEnv], name: str, row: dict[str, Any], why: str
) -> None:
    env = world(name, [{"number": number, **row} for number in range(20)])
    begun(env)
    with pytest.raises(ProgramError, match=why):
        env.step(said("x"))


@pytest.mark.parametrize(
    ("returned", "reward", "info"),
    [
        (1, 1.0, {}),
        (True, 1.0, {}),
        ({"reward": 0.5, "success": False, "score": 0.25}, 0.5, {"success": False, "score": 0.25}),
    ],
)
def test_what_it_returns_is_the_reward(
    world: Callable[..., ProgramEnv], returned: Any, reward: float, info: dict[str, Any]
) -> None:
    env = world("returns", [{"number": number, "returned": returned} for number in range(20)])
    begun(env)
    found = env.step(said("x"))
    assert (found[1], found[2]) == (reward, True)
    assert found[4] == {"valid": True, **info}


def test_a_program_that_asks_nothing_is_named(world: Callable[..., ProgramEnv]) -> None:
    with pytest.raises(ProgramError, match="without asking the model"):
        begun(world("asks_nothing"))


def test_a_program_that_never_ends_is_stopped(
    world: Callable[..., ProgramEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where its threads stay, too many of them end the run."""
    monkeypatch.setattr("turnwise.envs.programs.world._POLL_S", 0.02)
    monkeypatch.setattr(running, "MAX_STRAY", 1)
    env = world("never_ends", timeout_s=0.1)
    for _ in range(2):
        begun(env)
        with pytest.raises(ProgramError, match=r"took more than 0.1 s without a request or an end .*env_order=free"):
            env.step(said("x"))
    begun(env)
    with pytest.raises(AgentError, match="2 threads of it still run after their episodes"):
        env.step(said("x"))


def test_a_program_that_asks_for_ever_is_truncated(world: Callable[..., ProgramEnv]) -> None:
    env = world("asks_for_ever", step_limit=3)
    begun(env)
    found = [env.step(said("x"))[2:4] for _ in range(3)]
    assert found == [(False, False), (False, False), (False, True)]
    _wait_for(lambda: agents.SEEN == [200, 200, 200, 409])


def test_a_request_after_the_end_is_refused(world: Callable[..., ProgramEnv]) -> None:
    env = world("calls_later")
    begun(env)
    assert env.step(said("x"))[2]
    _wait_for(lambda: bool(agents.SEEN))
    status, body = agents.SEEN[0]
    assert (status, body["error"]["code"]) == (409, "episode_over")


def test_a_library_may_take_its_time_to_be_imported(
    world: Callable[..., ProgramEnv], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "heavy.py").write_text("import time\ntime.sleep(1.5)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "heavy", raising=False)
    monkeypatch.setattr("turnwise.envs.programs.world._POLL_S", 0.05)
    monkeypatch.setattr(running, "BLOCKED_S", 0.5)
    begun(world("imports"))  # it asks behind its import
    assert "heavy" in sys.modules


def test_a_coroutine_that_blocks_the_loop_is_named(
    world: Callable[..., ProgramEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two programs: the first holds the loop until it is answered, so that the second never asks."""
    monkeypatch.setattr("turnwise.envs.programs.world._POLL_S", 0.05)
    monkeypatch.setattr(running, "BLOCKED_S", 1.0)
    env, other = world("blocks"), world("twice_async")
    begun(env)
    with pytest.raises(AgentError, match=r"agents:twice_async blocks the event loop: .* plain def"):
        begun(other)
    monkeypatch.setattr(running, "BLOCKED_S", 60.0)  # the loop may still be held when the first asks for its state
    assert env.step(said("four"))[1] == 4.0  # answered, it goes on
    env.close()


def test_a_full_context_is_told_to_the_program(world: Callable[..., ProgramEnv]) -> None:
    env = world("shortens")
    begun(env)
    observation, reward, terminated, truncated, info = env.refuse()
    assert (observation, reward, terminated, truncated) == ("[user] short", 0.0, False, False)
    assert agents.SEEN == ["context_length_exceeded"]
    assert "after" not in info
    assert env.step(said("x"))[1:3] == (1.0, True)
    begun(env)
    env.refuse()
    assert env.refuse()[2:4] == (False, True)


def test_it_says_that_it_speaks_in_roles(world: Callable[..., ProgramEnv]) -> None:
    assert speaks_in_roles(world("twice"))


def test_an_episode_repeats(world: Callable[..., ProgramEnv]) -> None:
    """The same task and seed show the same, the ids of calls included."""
    env = world("twice")
    replies = [said("I look", [Call("find", {"q": 1})]), said("eee")]
    seen = []
    for _ in range(2):
        begun(env, 2)
        seen.append([env.step(reply)[:2] for reply in replies])
    assert seen[0] == seen[1]


COMMAND = """
import json, os, sys
sys.path.insert(0, {root!r})
from types import SimpleNamespace
from tests.envs.programs.agents import post, said, user
task = json.loads(os.environ["TURNWISE_TASK"])
told = {{name: os.environ["OPENAI_" + name.upper()] for name in ("base_url", "api_key", "model")}}
model = SimpleNamespace(name=told.pop("model"), **told)
text = said(post(model, [user(task["question"])]))["content"]
print("noise")
if text == "fail":
    raise SystemExit("the city is unknown")
print(json.dumps({{"reward": len(text), "success": "SECRET" in os.environ}}) if text != "nothing" else "bye")
"""


def test_a_command_line_is_told_by_the_environment(
    world: Callable[..., ProgramEnv], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "cli.py"
    script.write_text(COMMAND.format(root=str(Path(__file__).parents[3])))
    monkeypatch.setenv("SECRET", "x")
    run = f"{sys.executable} {script}"
    env = world(run)
    begun(env)
    found = env.step(said("four"))
    assert (found[1], found[4]["success"]) == (4.0, False)
    begun(env)
    with pytest.raises(ProgramError, match="ended with code 1: the city is unknown"):
        env.step(said("fail"))
    begun(env)
    with pytest.raises(ProgramError, match="wrote 'bye' as its last line"):
        env.step(said("nothing"))
    named = world(run, env=["SECRET"])
    begun(named)
    assert named.step(said("four"))[4]["success"] is True


def test_a_command_that_is_stopped_ends_with_its_children(world: Callable[..., ProgramEnv], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = tmp_path / "cli.sh"
    script.write_text(f"(sleep 1; touch {mark}) & echo $$ > {tmp_path}/pid; sleep 30\n")
    env = world(f"bash {script}", timeout_s=0.3)
    with pytest.raises(ProgramError, match="took more than"):
        begun(env)
    time.sleep(1.3)
    assert not mark.exists()


def test_a_command_is_over_when_it_ends_whoever_holds_its_output(
    world: Callable[..., ProgramEnv], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_GRACE_S", 0.2)
    script = tmp_path / "cli.sh"
    script.write_text("sleep 30 &\necho 1\n")
    with pytest.raises(ProgramError, match="without asking the model"):
        begun(world(f"bash {script}", timeout_s=10))


WRONG: list[tuple[str, str]] = [
    ("nowhere:agent", "cannot be imported as module:function"),
    ("tests.envs.programs.agents:nobody", "cannot be imported as module:function"),
    ("tests.envs.programs.agents:user", "not callable as agent"),
    ("tests.envs.programs.agents:SEEN", "not callable as agent"),
    ("no_such_command --now", "there is no command 'no_such_command'"),
    ("python 'open", "is no command line"),
]


@pytest.mark.parametrize(("run", "why"), WRONG)
def test_a_program_that_is_not_there_is_named(run: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ProgramEnv(run, ROWS)


def test_variables_for_a_command_must_be_there_and_used() -> None:
    with pytest.raises(ValueError, match="NOT_THERE, which are not set"):
        ProgramEnv("bash x.sh", ROWS, env=["NOT_THERE"])
    with pytest.raises(ValueError, match="is for command lines"):
        ProgramEnv("tests.envs.programs.agents:twice", ROWS, env=["HOME"])


def test_wishes_that_are_not_followed_are_told_once(world: Callable[..., ProgramEnv]) -> None:
    env = world("wishes")
    with pytest.warns(UserWarning, match="asks for top_p, seed, which the run decides otherwise"):
        _, info = begun(env)
    assert info["sampling"] == {"temperature": 0.5}
    strict = world("wishes", strict=True)
    begun(strict)
    assert agents.SEEN == [400]


def test_programs_at_once_share_one_endpoint(world: Callable[..., ProgramEnv]) -> None:
    """32 programs in 32 threads, each with its own question: nobody gets the reply of another."""
    envs = [world("twice") for _ in range(32)]
    rewards: list[Any] = [None] * 32

    def play(number: int) -> None:
        env = envs[number]
        begun(env, number % len(env.tasks("train")))
        env.step(said("x" * number))
        rewards[number] = env.step(said("e" * number + "x" * (32 - number)))[1]

    threads = [threading.Thread(target=play, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rewards == [number / 32 for number in range(32)]


def test_coroutines_that_wait_in_threads_do_not_wait_for_each_other(world: Callable[..., ProgramEnv]) -> None:
    """All have asked before the first is answered, as where answers are admitted in a fixed order."""
    envs = [world("twice_async", timeout_s=20) for _ in range(40)]
    for env in envs:
        begun(env)
    for env in envs:
        env.step(said("x"))
    assert [env.step(said("e"))[1] for env in envs] == [1.0] * 40


def _wait_for(found: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not found():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def test_tasks_are_read_once_and_again_where_the_file_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"question": "a"}\n')
    run = "tests.envs.programs.agents:twice"
    first, second = (ProgramEnv(run, {"train": str(file)}) for _ in range(2))
    assert first._rows is second._rows
    file.write_text('{"question": "a"}\n{"question": "b"}\n')
    os.utime(file, ns=(1, 1))
    assert len(ProgramEnv(run, {"train": str(file)}).tasks("train")) == 2


def test_a_program_in_a_process_of_its_own() -> None:
    """Its client hears the same, and it is told of a full context too."""
    run = "tests.envs.programs.agents:told"
    with closing(ProcessEnv("turnwise/Program-v0", {"run": run, "tasks": ROWS})) as env:
        env.reset(seed=3, options={"split": "train", "task": 0})
        client = capability(env, HasClient)
        assert client is not None
        assert refuse(env, client)[:4] == ("[user] once more", 0.0, False, False)
        client.counted(11, 4, False)
        assert step(env, said("x"))[:3] == ("the program returned 15", 15.0, True)
