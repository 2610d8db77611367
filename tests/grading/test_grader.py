"""What functions and a judge pay, errors that name the function, and grading beside episodes that are played."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.agents.test_collector import SAMPLING, collector, tasks
from tests.chat_server import Response, completion, in_turn, refusal, serving
from tests.grading import rewards
from tests.grading.episodes import episode, judging, verdict
from turnwise.agents.collector import Collector
from turnwise.agents.jobs import jobs_for
from turnwise.agents.rollouts import Rollouts
from turnwise.agents.seating import Seating
from turnwise.commands.display import grades_text
from turnwise.config.files import changed_grading, parse_section
from turnwise.config.sections import RewardsConfig
from turnwise.evaluation.tables import spent_text
from turnwise.grading.agreement import graded, judged_text
from turnwise.grading.functions import FunctionError
from turnwise.grading.grader import Grader, grader_of
from turnwise.grading.settings import GradingConfig
from turnwise.grading.verdicts import spent_in
from turnwise.replay.codec import from_record, to_record
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter
from turnwise.trajectory import RolloutEnded, RolloutFinished, Trajectory, TurnFinished

HERE = "tests.grading.rewards:"
RUBRIC: dict[str, Any] = {"criteria": [{"name": "brief", "text": "It is brief."}]}


def grading(**more: Any) -> GradingConfig:
    return GradingConfig.model_validate({"functions": [HERE + "length"], "threads": 0, **more})


def judge(url: str, **more: Any) -> dict[str, Any]:
    quick = {"timeout_s": 5.0, "backoff_s": 0.001, "retries": 1}
    return {"model": f"openai:m@{url}", "rubric": RUBRIC, "endpoint": quick, **more}


def test_what_is_paid_stands_on_the_last_turn_and_the_worlds_reward_beside_it() -> None:
    functions = {HERE + "length": 0.5, HERE + "exact": -2}
    with serving(in_turn(completion(verdict(brief="yes")))) as server:
        made = Grader(grading(functions=functions, world=0.25, judge=judge(server.url, weight=3)))
        played = episode("abc", "Paris!", given={"answer": "Paris"}, success=True)  # the world pays 0, then 1
        paid = made.grade(played)
        made.close()
    assert paid.rewards == [0.0, 0.25 * 1 + 0.5 * (3 + 6) - 2 * 1 + 3 * 1]
    assert paid.grading is not None
    assert paid.grading.world == (0.0, 1.0)
    assert paid.world_reward == 1.0
    assert [(g.name, g.value, g.weight) for g in paid.grading.grades] == [
        (HERE + "length", 9.0, 0.5),
        (HERE + "exact", 1.0, -2.0),
        ("judge:brief", 1.0, 3.0),
    ]
    assert paid.grading.verdict == 1.0
    assert paid.success is True
    assert to_record(paid.ungraded()) == to_record(played)
    assert to_record(from_record(to_record(paid))) == to_record(paid)
    assert from_record(to_record(paid)).grading == paid.grading


def test_a_graded_file_is_read_back_and_an_ungraded_one_is_as_before(tmp_path: Path) -> None:
    paid, plain = Grader(grading()).grade(episode("abc", given={"answer": "ä"})), episode("abc")
    writer = TrajectoryWriter(tmp_path / "file")
    writer.append(0, [plain])
    writer.append(1, [plain, paid])
    assert [*map(to_record, TrajectoryReader(tmp_path / "file"))] == [*map(to_record, (plain, plain, paid))]
    assert {"given", "grading"}.isdisjoint(to_record(plain))
    broken = {**to_record(paid), "grading": {**to_record(paid)["grading"], "world": [1.0, 2.0]}}
    with pytest.raises(ValueError, match="rewards of 2 turns, and there are 1"):
        from_record(broken)


def test_what_cannot_be_paid_stays_as_it_is() -> None:
    made = Grader(grading())
    for played in (episode(), episode("a", end="error"), episode("a", sample=-1)):
        assert made.grade(played) == played
    assert grader_of(GradingConfig()) is None


@pytest.mark.parametrize("weight", [0.25, 0.0])
def test_an_episode_without_turns_is_paid_the_worlds_part_alone(weight: float, tmp_path: Path) -> None:
    """A player of a game won before its first turn. The group's other attempts are paid as much of a win."""
    won = replace(episode(success=True), player="second", turnless_reward=1.0)
    paid = Grader(grading(world=weight)).grade(won)
    assert (paid.total_reward, paid.world_reward, paid.success) == (weight, 1.0, True)
    assert paid.ungraded() == won
    found = graded([paid])
    assert found is not None
    assert (found.world_return, found.means) == (1.0, {})
    TrajectoryWriter(tmp_path / "file").append(0, [paid])
    assert list(TrajectoryReader(tmp_path / "file")) == [paid]
    assert b'"version": 9' in gzip.decompress((tmp_path / "file").read_bytes())
    assert Grader(grading()).grade(won) == won
    assert "turnless" not in to_record(Grader(grading()).grade(episode("abc")))["grading"]


def test_success_of_what_is_paid_where_the_world_does_not_say_it() -> None:
    made = Grader(grading(success_threshold=4))
    assert [made.grade(episode(said)).success for said in ("abc", "abcd")] == [False, True]
    assert made.grade(episode("abcd", success=False)).success is False
    paid = made.grade(episode("abcd"))
    assert paid.grading is not None
    assert paid.grading.success is None  # what the world says
    assert paid.ungraded().success is None


def test_async_functions_share_one_loop_and_a_slow_one_is_an_error() -> None:
    rewards.LOOPS.clear()
    made = Grader(grading(functions=[HERE + "slow_length"]))
    assert [made.grade(episode(said)).total_reward for said in ("abc", "abcd")] == [3.0, 4.0]
    assert len(rewards.LOOPS) == 1
    made.close()
    hung = Grader(grading(functions=[HERE + "never"], timeout_s=0.05))
    failed = hung.grade(episode("a"))
    hung.close()
    assert failed.end == "error"
    assert "never raised TimeoutError: it took more than rewards.timeout_s=0.05" in failed.end_reason


@pytest.mark.parametrize(("name", "shown"), [("nothing", "None"), ("nan", "nan"), ("text", "'1.0'")])
def test_a_function_that_returns_no_number_ends_everything(name: str, shown: str) -> None:
    told = rf"rewards.functions: tests.grading.rewards:{name} returned {shown} for train-0-0-0; expected a function of"
    with pytest.raises(FunctionError, match=told):
        Grader(grading(functions=[HERE + name])).grade(episode("a"))


@pytest.mark.parametrize(("name", "raised"), [("raising", r"KeyError AT: 'answer'"), ("leaving", "SystemExit AT: 3")])
def test_a_function_that_raises_fails_the_episode_and_pays_nothing(name: str, raised: str) -> None:
    where = raised.replace("AT", r"\(rewards\.py, line \d+\)")
    failed = Grader(grading(functions=[HERE + name])).grade(episode("a", success=True))
    assert (failed.end, failed.success, failed.score) == ("error", None, None)
    assert re.fullmatch(f"RuntimeError: tests.grading.rewards:{name} raised {where}", failed.end_reason)
    assert failed.grading is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (HERE + "of_one", r"of_one takes \(episode: .*; expected a function of episode and task"),
        (HERE + "of_three", "of_three takes"),
        (HERE + "number", "number is a float; expected a function"),
        (HERE + "missing", "'tests.grading.rewards:missing' cannot be imported as module:name .*no attribute"),
        ("tests.nowhere:f", "cannot be imported as module:name .No module named"),
    ],
)
def test_what_is_no_reward_function_is_refused_by_name(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Grader(grading(functions=[name]))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"world": 0.5}, "rewards.world is for rewards.functions or rewards.judge"),
        ({"threads": 2}, "rewards.threads is for"),
        ({"functions": ["length"]}, "'length' is no module:name"),
        ({"functions": {"a:b": "much"}}, "rewards.functions.a:b"),
        ({"judge": {"model": "openai:m"}}, "rewards.judge.rubric"),
        ({"judge": {"model": "m", "rubric": RUBRIC}}, "'m' names no model: expected openai:MODEL"),
        ({"judge": {"model": "openai:m", "rubric": "nowhere.yaml"}}, "no rubric can be read from 'nowhere.yaml'"),
        ({"judge": {"model": "openai:m", "rubric": RUBRIC, "endpoint": {"concurrency": 3}}}, "rewards.threads at once"),
        ({"judge": {"model": "openai:m", "rubric": RUBRIC, "endpoint": {"send_seed": True}}}, "draws nothing anew"),
        ({"judge": {"model": "openai:m", "rubric": RUBRIC, "endpoint": {"key_variable": "sk-1"}}}, "is the name of an"),
        ({"judge": {"model": "openai:m", "rubric": RUBRIC, "vue": "last"}}, "Known here: model, weight, view"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as raised:
        parse_section(RewardsConfig, given, "rewards")
    assert "sk-1" not in str(raised.value)


def test_graders_are_changed_one_by_one_and_left_out() -> None:
    own = RewardsConfig.model_validate({"functions": {"a:b": 2}, "world": 0, "judge": judge("http://127.0.0.1:1/v1")})
    assert changed_grading(own, {}).model_dump() == own.model_dump(include=set(GradingConfig.model_fields))
    fewer = changed_grading(own, {"functions": ["c:d"], "judge": {"weight": 3}})
    assert fewer.functions == {"c:d": 1.0}
    assert fewer.judge is not None
    assert own.judge is not None
    assert fewer.judge.model_dump() == {**own.judge.model_dump(), "weight": 3.0}
    assert changed_grading(own, {"functions": None, "judge": None}) == GradingConfig()
    with pytest.raises(ValueError, match=r"rewards\.world is for"):
        changed_grading(own, {"functions": None, "judge": None, "world": 0.5})


def test_a_key_that_is_not_there_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    asked = judge("https://example.org/v1", endpoint={"key_variable": "JUDGE_API_KEY"})
    with pytest.raises(ValueError, match="JUDGE_API_KEY: that environment variable is not set"):
        Grader(grading(judge=asked))


# --- episodes that are played ---


def played(grader: Grader | None, **how: Any) -> tuple[list[Trajectory], list[str]]:
    """Trajectories by number, and the kinds of events by rollout where an episode ends."""
    source: Collector = collector(**how)
    source.grader = grader
    rollouts, ends, found = Rollouts(source, SAMPLING, key=1), list[str](), dict[int, Trajectory]()
    for task in tasks(4):
        for sample in range(3):
            rollouts.start(task, sample)
    for event in rollouts.events():
        if isinstance(event, RolloutEnded | RolloutFinished):
            ends.append(f"{type(event).__name__} {event.rollout}")
        if isinstance(event, RolloutFinished):
            found[event.rollout] = event.trajectory
    source.close()
    return [found[number] for number in sorted(found)], ends


@pytest.mark.parametrize("threads", [0, 3])
def test_graded_episodes_are_the_same_and_every_one_is_paid(threads: int) -> None:
    rewards.THREADS.clear()
    plain, _ = played(None)
    paid, ends = played(Grader(grading(threads=threads)))
    assert [t.ungraded().turns[-1].reply for t in paid] == [t.turns[-1].reply for t in plain]
    assert all(t.grading is not None and t.world_reward == p.total_reward for t, p in zip(paid, plain, strict=True))
    assert all(t.total_reward == 1 + sum(len(turn.reply) % 7 for turn in t.turns) for t in paid)
    assert ("MainThread" in rewards.THREADS) == (threads == 0)
    assert len(rewards.THREADS) <= max(threads, 1)
    assert sorted(ends) == sorted(f"{kind} {n}" for kind in ("RolloutEnded", "RolloutFinished") for n in range(12))
    assert all(ends.index(f"RolloutEnded {n}") < ends.index(f"RolloutFinished {n}") for n in range(12))


def test_with_threads_the_order_does_not_depend_on_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logs = []
    for slow_s in (0.0, 0.004):

        def timed(episode: Trajectory, task: dict[str, Any], slow_s: float = slow_s) -> float:
            time.sleep(slow_s * (len(episode.turns[-1].reply) % 3))
            return 1.0

        monkeypatch.setattr(rewards, "timed", timed, raising=False)
        logs.append(played(Grader(grading(functions=[HERE + "timed"], threads=4)))[1])
    assert logs[0] == logs[1]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("world", ["Telling", "Copied"])
def test_a_fork_knows_what_its_task_told(world: str, late: bool) -> None:
    env_id = f"tests.grading.worlds:tests/{world}-v0"
    source = collector(env_id)
    source.grader = Grader(grading(functions=[HERE + "word"]))
    rollouts, found = Rollouts(source, SAMPLING, key=1), list[Trajectory]()
    first = rollouts.start(tasks(1, env_id)[0], 0)
    for event in rollouts.events():
        if isinstance(event, TurnFinished) and event.rollout == first and event.turn == int(late):
            rollouts.fork(first, 1)
        if isinstance(event, RolloutFinished):
            found.append(event.trajectory)
    source.close()
    assert [t.fork is not None for t in found] == [False, True]
    assert len({t.given for t in found}) == 1
    assert {t.total_reward - 1 for t in found} == {found[0].told()["word"]}
    assert found[0].told()["of"] == ["a", "b"]


def test_every_seat_of_a_game_is_graded() -> None:
    env_id = "tests.worlds:tests/Nim-v0"
    source = collector(env_id)
    source.grader = Grader(grading(functions=[HERE + "by_seat"]))
    source.seating = Seating({"": source.seating.models[0]})
    paid = source.collect(jobs_for(tasks(2, env_id), 1, 0), SAMPLING)
    source.close()
    assert [(t.player, t.total_reward - t.world_reward) for t in paid] == [("first", 1), ("second", 2)] * 2


def test_a_rollout_that_is_stopped_while_it_is_graded_gives_no_trajectory() -> None:
    source = collector()
    source.grader = Grader(grading(threads=1))
    rollouts = Rollouts(source, SAMPLING)
    numbers = [rollouts.start(task, 0) for task in tasks(3)]
    finished = []
    for event in rollouts.events():
        if isinstance(event, RolloutEnded) and event.rollout == numbers[1]:
            rollouts.stop(event.rollout)
        if isinstance(event, RolloutFinished):
            finished.append(event.rollout)
    source.close()
    assert sorted(finished) == [numbers[0], numbers[2]]


def test_nobody_waits_for_a_judge_that_does_not_answer() -> None:
    """Walking away, and closing, while requests are on their way; each environment and slot is free."""
    answers, asked = threading.Event(), threading.Event()
    answered = []

    def choices(lines: Any) -> dict[str, str]:
        asked.set()
        answers.wait(20)
        answered.append(lines)
        return {"brief": "yes"}

    with serving(judging(choices)) as server:
        source = collector()
        source.grader = Grader(grading(functions=[], judge=judge(server.url, endpoint={"timeout_s": 30}), threads=2))
        rollouts = Rollouts(source, SAMPLING)
        for task in tasks(4):
            rollouts.start(task, 0)
        events = rollouts.events()
        for event in events:
            if isinstance(event, RolloutEnded) and asked.wait(5):
                break
        events.close()  # type: ignore[attr-defined]
        free = source.engines[0].num_free
        source.close()
        assert not answered
        answers.set()
    assert free == source.engines[0].num_slots


def test_several_verdicts_are_asked_for_at_once() -> None:
    asking, together = [0], threading.Event()

    def choices(lines: Any) -> dict[str, str]:
        asking[0] += 1
        if asking[0] > 1:
            together.set()
        together.wait(5)
        asking[0] -= 1
        return {"brief": "yes"}

    with serving(judging(choices)) as server:
        paid, _ = played(Grader(grading(functions=[], judge=judge(server.url), threads=8)))
    assert together.is_set()
    assert all(t.grading is not None and t.grading.verdict == 1.0 for t in paid)


def test_a_judge_that_gives_no_verdict_fails_episodes_and_a_refused_key_all() -> None:
    with serving(lambda body: completion("I like it")) as server:
        failed, _ = played(Grader(grading(functions=[], judge=judge(server.url, answers=1))))
    assert {t.end for t in failed} == {"error"}
    assert all(t.end_reason.startswith("JudgeError: m gave no verdict") and t.grading is None for t in failed)
    with serving(lambda body: refusal(401, "no")) as server, pytest.raises(ValueError, match="refuses the key"):
        played(Grader(grading(functions=[], judge=judge(server.url), threads=2)))


def test_answers_without_a_count_of_tokens_are_told(tmp_path: Path) -> None:
    def uncounted(body: dict[str, Any]) -> Response:
        whole = json.loads(judging(lambda lines: {"brief": "yes"})(body).content)
        return Response(json.dumps({"choices": whole["choices"]}).encode())

    priced = {"timeout_s": 5.0, "input_price": 1.0, "output_price": 2.0}
    with serving(uncounted) as server:
        made = Grader(grading(functions=[], judge=judge(server.url, endpoint=priced)), tmp_path / "verdicts.jsonl")
        for reply in ("a", "bb"):
            made.grade(episode(reply))
        first, second = made.take_spent(), made.take_spent()
        made.close()
    assert first["uncounted"] == 2
    assert "uncounted" not in second
    told = "; 2 answers came without a count of tokens: more was used"
    assert judged_text(first).endswith(f"0 prompt and 0 completion tokens, cost 0.0000{told}")
    assert "more was used" not in judged_text(second)
    spent = spent_in(tmp_path / "verdicts.jsonl")
    assert spent.uncounted == 2
    assert spent_text(spent, None).endswith(told)
    record = {"grades": {"judge:brief": 1.0}, "judge": first}
    assert grades_text(record).endswith("2 requests, cost at least 0.0000")
    assert grades_text({**record, "judge": {**second, "cost": 0.5}}).endswith("0 requests, cost 0.5000")


def test_agreement_is_of_verdicts_with_what_the_world_says() -> None:
    def choices(lines: Any) -> dict[str, str]:
        return {"brief": "yes" if len(lines[-1]["agent"]) < 4 else "no"}

    with serving(judging(choices)) as server:
        made = Grader(grading(functions=[HERE + "length"], judge=judge(server.url, weight=0), world=0))
        said = {"a": True, "bb": True, "long": False, "longer": False, "ccc": False, "so long": None}
        paid = [made.grade(episode(reply, success=won)) for reply, won in said.items()]
        made.close()
        spent = made.take_spent()
    assert [t.total_reward for t in paid] == [1, 2, 4, 6, 3, 0]  # the judge only reports
    found = graded([*paid, episode("x"), replace(paid[0], end="error")])
    assert found is not None
    assert (found.num, found.means) == (6, {HERE + "length": 16 / 6, "judge:brief": 0.5})
    assert found.agreement is not None
    assert (found.agreement.value, found.agreement.num) == (4 / 5, 5)
    assert (found.on_won, found.on_lost, found.verdict) == (1.0, pytest.approx(1 / 3), 0.5)
    assert found.judge.startswith("m, rubric ")
    assert spent == {"given": 6, "found": 0, "requests": 6, "prompt_tokens": 600, "completion_tokens": 120}
    assert graded([episode("x")]) is None
