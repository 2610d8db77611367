"""The first cases of every kind of bad input (all of them: ``python benchmarks/fuzz.py``), and what fuzzing found."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.fuzz.configurations import combined
from tests.fuzz.harness import Kind, attempts, clear
from tests.fuzz.kinds import KINDS
from tests.fuzz.prompts import chats, observation
from tests.fuzz.texts import CONTROL
from tests.fuzz.worlds import KEYS
from tests.models import tokenizer
from turnwise.agents.chat import ChatFormat
from turnwise.agents.episode import SuccessRule
from turnwise.agents.spelling import encodable
from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.envs import interface
from turnwise.envs.returned import check_seen, check_step
from turnwise.jsonfile import read_object

_CASES = {
    "configuration files": 60,
    "settings": 60,
    "combinations": 60,
    "trajectory files": 100,
    "replies": 200,
    "observations": 60,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_bad_input_ends_well(kind: Kind) -> None:
    tally = attempts(kind, _CASES.get(kind.name, 15))
    assert not tally.faults, f"python benchmarks/fuzz.py --kind {kind.name!r} --case {tally.faults[0].number}\n" + (
        tally.faults[0].text
    )


def test_every_section_is_tried() -> None:
    """By the few cases that the ordinary tests take; a section that is new in ``RunConfig`` is too."""
    words = [word for number in range(_CASES["combinations"]) for word in combined(random.Random(number))]
    assert {word.partition("=")[0].partition(".")[0] for word in words} == set(RunConfig.model_fields)


def test_every_key_of_info_that_is_read_is_tried() -> None:
    """Those that ``turnwise.envs.interface`` lists, and those of games."""
    listed = set(re.findall(r"^    ([a-z_]+)   +\S", interface.__doc__ or "", re.MULTILINE))
    of_games = set(re.findall(r'``info\["([a-z]+)"\]``', interface.HasPlayers.__doc__ or ""))
    assert len(listed) > 10 < len(listed | of_games) <= len(KEYS)
    assert listed | of_games <= set(KEYS)


def test_the_fuzzer_sees_a_control_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: ChatFormat, segment: str, behind: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(encodable(segment), add_special_tokens=False))

    for chat in chats():
        monkeypatch.setattr(chat, "_plain", partial(careless, chat))
    tally = attempts(Kind("observations", "", observation, 1.0), 40)
    assert len(tally.faults) > 10


def test_the_fuzzer_sees_a_message_that_is_for_no_one() -> None:
    for message in ("no", "ValueError <class 'int'>", "1 validation error for RunConfig", "x" * 7000):
        with pytest.raises(AssertionError):
            clear(message)


def test_a_million_characters_are_shown_as_text() -> None:
    special = set(tokenizer().all_special_ids)
    chat = ChatFormat(tokenizer())
    huge = "".join(CONTROL) * 16_000
    assert len(huge) > 1_000_000
    shown, own = chat.open(huge), [i for i in chat.open("").tolist() if i in special]
    assert [i for i in shown.tolist() if i in special] == own


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=.inf"], "optimizer.lr: expected a finite number"),
        (["env.success_threshold=nan"], "env.success_threshold: expected a finite number"),
        (["algorithm.base.clip_high=.inf", "optimizer.eps=.inf"], "clip_high.*optimizer.eps|optimizer.eps.*clip_high"),
        (["env.split=2020-99-99"], "is not a YAML value"),
    ],
)
def test_settings_that_fuzzing_found(words: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("smoke", words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"extends: 3\n", "extends should name another configuration"),
        (b"extends: HERE\n", "and not lead back"),
        (b"extends: " + b"a" * 5000, "no configuration"),
        (b"\xff\xfe: 1\n", "is not valid YAML"),
        (b"x: 2020-99-99\n", "is not valid YAML"),
        (b"x: " + b"[" * 1000, "is not valid YAML"),
    ],
)
def test_files_that_fuzzing_found(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content.replace(b"HERE", str(path).encode()))
    with pytest.raises(ValueError, match=message):
        load_config(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b"NaN", b"[" * 100_000])
def test_a_file_that_is_no_json_object_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged: "):
        read_object(path)


@pytest.mark.parametrize(
    ("info", "what"),
    [
        (None, "info None.*dictionary"),
        ({"score": "high"}, r"info\['score'\].*'high'"),
        ({"score": math.nan}, "score"),
        ({"success": np.array([])}, "success"),
        ({"valid": "no"}, "valid"),
        ({"admissible_actions": "look"}, "admissible_actions"),
        ({"rewards": {"a": math.inf}}, "rewards"),
        ({"successes": None}, "successes"),
    ],
)
def test_infos_that_fuzzing_found(info: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        check_seen(gymnasium.Env[str, str](), "text", info, ("a",))


def test_what_a_world_may_return() -> None:
    world = gymnasium.Env[str, str]()
    sound = {"success": np.bool_(True), "score": np.float32(0.5), "admissible_actions": (), "own": object()}
    check_seen(world, "", sound)
    check_seen(world, "", {"rewards": "its own"})
    check_seen(world, "", {"success": None, "score": None, "rewards": {"a": 1, "b": -0.5}}, ("a", "b"))
    check_step(world, np.int64(1), np.bool_(True), 0, {})
    for reward in (math.nan, math.inf, "1", None, np.array([1.0])):
        with pytest.raises(ValueError, match="the reward"):
            check_step(world, reward, True, False, {})
    with pytest.raises(ValueError, match="terminated"):
        check_step(world, 1.0, "yes", False, {})
    assert SuccessRule(0.5).judge({"success": None}, 1.0) is True
