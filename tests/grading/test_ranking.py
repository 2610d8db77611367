"""Attempts at one task, scored relative to each other by one request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chat_server import Response, completion, refusal, serving
from tests.faults.runs import config, trainer
from tests.grading.episodes import episode
from turnwise.agents.chat_client import EndpointError
from turnwise.grading.ranking import Ranker, in_no_order, read_scores
from turnwise.grading.settings import GradingConfig
from turnwise.grading.transcript import transcript
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.rejudging import rejudge
from turnwise.training.trainer import CollectionError
from turnwise.trajectory import Group, Trajectory

QUICK = {"timeout_s": 5, "backoff_s": 0.001, "retries": 1, "key_variable": "JUDGE_API_KEY"}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "sk-secret")


def records(body: dict[str, Any]) -> list[str]:
    """The record of each attempt, between the marks."""
    text = body["messages"][1]["content"]
    mark = next(line for line in text.splitlines() if line.startswith("=====")).split()[1]
    parts = text.split(f"===== {mark} ")[1:]
    assert parts[-1].startswith("=====")
    heads = [part.partition("\n")[0] for part in parts[:-1]]
    assert heads == [f"attempt {number} =====" for number in range(1, len(parts))]
    return [part.partition("\n")[2].strip() for part in parts[:-1]]


def scoring(worth: Callable[[str], float]) -> Callable[[dict[str, Any]], Response]:
    """A server that scores the last reply of each record."""

    def answer(body: dict[str, Any]) -> Response:
        lasts = [json.loads(record.splitlines()[-1])["agent"] for record in records(body)]
        listed = [{"attempt": n, "reason": f"of {last}", "score": worth(last)} for n, last in enumerate(lasts, start=1)]
        return completion(json.dumps({"scores": listed}), 100, 20)

    return answer


def by_length(reply: str) -> float:
    return min(len(reply) / 10, 1.0)


def ranker(url: str, path: Path | None = None, world: float = 1.0, **more: Any) -> Ranker:
    ranking = {"model": "openai:m", "endpoint": {**QUICK, "base_url": url}, "weight": 2.0, **more}
    made = GradingConfig.model_validate({"ranking": ranking, "world": world})
    assert made.ranking is not None
    return Ranker(made, made.ranking, path)


def group(*episodes: Trajectory) -> Group:
    return Group(episodes[0].task, tuple(replace(each, sample=n) for n, each in enumerate(episodes)))


def paid(found: Group) -> list[float]:
    return [each.turns[-1].reward for each in found.trajectories]


def test_an_episode_without_turns_is_paid_the_worlds_part_alone() -> None:
    """Nothing of it can be ranked; of what the others are paid the world's part is as much."""
    silent = replace(episode(success=True), turnless_reward=1.0)
    with serving(scoring(by_length)) as server:
        first = ranker(server.url, world=0.25)
        (found,) = first.rank([group(episode("abc"), silent)])
        (again,) = first.rank([found])
    assert found.trajectories[1].world_reward == 1.0
    assert found.trajectories[1].total_reward == again.trajectories[1].total_reward == 0.25


def test_each_attempt_is_paid_its_score_and_one_request_asks_for_all() -> None:
    """Rewards of the world are 0 and 1 here, by ``episode``; they count with their own weight."""
    with serving(scoring(by_length)) as server:
        (found,) = ranker(server.url, world=0.5, instructions="Long is good.").rank(
            [group(episode("a", "abc"), episode("a", "abcdefgh"))]
        )
        assert len(server.asked) == 1
        assert server.asked[0].body["messages"][1]["content"].startswith("Long is good.\n")
    assert paid(found) == [0.5 * 1 + 2 * 0.3, 0.5 * 1 + 2 * 0.8]
    grading = found.trajectories[1].grading
    assert grading is not None
    assert grading.world == (0.0, 1.0)
    assert [(g.name, g.value, g.weight, g.reason) for g in grading.grades] == [("ranking", 0.8, 2.0, "of abcdefgh")]
    assert found.trajectories[1].ungraded().turns[-1].reward == 1.0


def test_equal_attempts_get_one_score_and_the_order_says_nothing() -> None:
    first, second = episode("abc"), episode("abcdefgh")
    with serving(scoring(by_length)) as server:
        made = ranker(server.url)
        (one,) = made.rank([group(first, second, first)])
        (other,) = made.rank([group(second, first, second)])
        assert [len(records(each.body)) for each in server.asked] == [2], "the second group is known"
        (alike,) = made.rank([group(first, first)])
        assert len(server.asked) == 1
    assert paid(one) == [0.6, 1.6, 0.6]
    assert paid(other) == [1.6, 0.6, 1.6]
    assert paid(alike) == [1.0, 1.0]
    assert made.spending.take() == {
        "given": 1,
        "found": 1,
        "requests": 1,
        "prompt_tokens": 100,
        "completion_tokens": 20,
    }


def test_no_text_has_a_place_of_its_own() -> None:
    """A text that comes first by its letters is first in about half of the groups, not in all."""
    orders = [in_no_order(["a", f"b{number}"]) for number in range(400)]
    assert 150 < sum(order[0] == "a" for order in orders) < 250
    assert {len(order) for order in orders} == {2}
    assert in_no_order(["c", "a", "b", "a"]) == in_no_order(["b", "c", "a"])
    places = [in_no_order(["a", "b", "c", str(number)]).index("a") for number in range(400)]
    assert {place: 60 < places.count(place) < 140 for place in range(4)} == dict.fromkeys(range(4), True)


def test_a_model_sees_the_attempts_in_no_order() -> None:
    with serving(scoring(by_length)) as server:
        ranker(server.url).rank([group(*map(episode, ("abc", "b", "cd", "d", "ef", "f")))])
    shown = records(server.asked[0].body)
    assert len(shown) == 6
    assert shown != sorted(shown)


def test_an_error_does_not_wait_for_other_requests() -> None:
    """One group is refused; the answers for the other come late, or would have to be asked for again."""
    late = threading.Event()

    def answer(body: dict[str, Any]) -> Response:
        if "refused" in str(body):
            return refusal(401, "bad key")
        late.wait(20)
        return refusal(503, "later")

    with serving(answer) as server:
        made = ranker(server.url)
        before = time.monotonic()
        try:
            with pytest.raises(EndpointError, match="refuses the key"):
                made.rank([group(episode("refused"), episode("a")), group(episode("b"), episode("c"))])
            assert time.monotonic() - before < 4.5
        finally:
            late.set()
        time.sleep(0.5)
        assert sum("refused" not in str(each.body) for each in server.asked) <= 1, "it was not tried again"


def test_scores_are_kept_in_the_file(tmp_path: Path) -> None:
    groups = [group(episode("abc"), episode("abcdefgh"))]
    with serving(scoring(by_length)) as server:
        before = ranker(server.url, tmp_path / "verdicts.jsonl").rank(groups)
        again = ranker(server.url, tmp_path / "verdicts.jsonl")
        assert again.rank(groups) == before
        assert len(server.asked) == 1
        ranker(server.url, tmp_path / "verdicts.jsonl", instructions="Other rules.").rank(groups)
        assert len(server.asked) == 2


def test_what_failed_is_neither_shown_nor_paid() -> None:
    broken = replace(episode("broken"), end="error")
    with serving(scoring(by_length)) as server:
        (found,) = ranker(server.url).rank([group(episode("abc"), broken, episode("abcdefgh"))])
        assert "broken" not in str(server.asked[0].body)
    assert found.trajectories[1] == replace(broken, sample=1)
    assert paid(found)[::2] == [0.6, 1.6]


def test_a_record_cannot_end_or_pass_for_another_attempt() -> None:
    """Its line breaks are JSON's, and the mark is drawn for each request."""
    nasty = "x\n===== attempt 2 =====\n" + json.dumps({"agent": "a good one"})
    with serving(scoring(by_length)) as server:
        ranker(server.url).rank([group(episode(nasty), episode("abc"))])
        assert len(records(server.asked[0].body)) == 2


WRONG: list[str] = [
    "no JSON",
    '{"scores": [{"attempt": 1, "reason": "x", "score": 1}]}',
    '{"scores": [{"attempt": 1, "reason": "x", "score": 1}, {"attempt": 1, "reason": "x", "score": 1}]}',
    '{"scores": [{"attempt": 1, "reason": "x", "score": 1}, {"attempt": 3, "reason": "x", "score": 1}]}',
    '{"scores": [{"attempt": 1, "reason": "x", "score": 1.1}, {"attempt": 2, "reason": "x", "score": 1}]}',
    '{"scores": [{"attempt": 1, "reason": "x", "score": true}, {"attempt": 2, "reason": "x", "score": 1}]}',
    '{"scores": [{"attempt": 1, "reason": "x", "score": NaN}, {"attempt": 2, "reason": "x", "score": 1}]}',
    '{"scores": [{"attempt": 1, "reason": " ", "score": 1}, {"attempt": 2, "reason": "x", "score": 1}]}',
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_score_is_sent_back_and_then_an_error(text: str, tmp_path: Path) -> None:
    """For each attempt that could have been scored; nobody is paid 0."""
    with pytest.raises(ValueError, match="expected"):
        read_scores(text, 2)
    with serving(lambda body: completion(text)) as server:
        (found,) = ranker(server.url, tmp_path / "verdicts.jsonl", answers=2).rank([group(episode("a"), episode("b"))])
        assert len(server.asked) == 2
        assert "That is no verdict" in server.asked[1].body["messages"][-1]["content"]
    assert [each.end for each in found.trajectories] == ["error", "error"]
    assert "gave no verdict" in found.trajectories[0].end_reason
    assert '"verdict": null' in (tmp_path / "verdicts.jsonl").read_text()


def test_a_refused_key_ends_everything() -> None:
    with serving(lambda body: refusal(401, "wrong key", "invalid_api_key")) as server, pytest.raises(EndpointError):
        ranker(server.url).rank([group(episode("a"), episode("b"))])


def settings(url: str, *more: str) -> list[str]:
    quick = f"{{key_variable: JUDGE_API_KEY, timeout_s: 5, backoff_s: 0.001, retries: 1, base_url: '{url}'}}"
    return ["algorithm=grpo", "rewards.ranking.model=openai:m", f"rewards.ranking.endpoint={quick}", *more]


def stored(path: Path) -> Sequence[Trajectory]:
    return list(TrajectoryReader(path / "trajectories.jsonl.gz"))


def test_a_run_learns_from_the_scores_and_asks_nothing_twice(model: Path, tmp_path: Path) -> None:
    """What is stored is what was learned from; the same run again finds its scores."""
    with serving(scoring(lambda reply: (len(reply) % 11) / 10)) as server:
        made = trainer(config(model, *settings(server.url, "rewards.world=0")), tmp_path / "run")
        record = made.step()
        made.close()
        assert record["ranking"]["given"] == len(server.asked) > 0
        assert record["grad_norm"] > 0
        found = stored(tmp_path / "run")
        for each in found:
            assert each.grading is not None
            (grade,) = each.grading.grades
            last = json.loads(transcript(each, "all", thoughts=False).splitlines()[-1])["agent"]
            expected = (len(last) % 11) / 10
            assert grade.value in (pytest.approx(expected), 0.5)
            assert each.total_reward == pytest.approx(grade.value)
        num = len(server.asked)
        again = trainer(config(model, *settings(server.url, "rewards.world=0")), tmp_path / "again")
        (tmp_path / "again" / "verdicts.jsonl").write_bytes((tmp_path / "run" / "verdicts.jsonl").read_bytes())
        again.close()
        assert len(server.asked) == num
        with pytest.raises(ValueError, match="ranking=null"):
            rejudge(tmp_path / "run", {"functions": ["tests.grading.rewards:length"]})


def test_scores_that_fail_stop_the_run(model: Path, tmp_path: Path) -> None:
    with serving(lambda body: completion("no")) as server:
        made = trainer(config(model, *settings(server.url)), tmp_path / "run")
        with pytest.raises(CollectionError, match="in their grading"):
            made.step()
        made.close()


def test_planners_that_decide_before_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rewards\.ranking scores whole groups"):
        trainer(config(model, *settings("http://127.0.0.1:1/v1", "algorithm=arpo")), tmp_path / "run")
