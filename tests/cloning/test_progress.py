"""What is told of a warm start, and one that is interrupted."""

from __future__ import annotations

import io
import json
import warnings
from contextlib import closing
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.cloning.test_cloning import AGENT, SHOWN
from tests.models import scratch_folder, tiny_model, tokenizer
from tests.training.tiny import MODEL
from turnwise.agents.chat import ChatFormat
from turnwise.assembly.run import Assembly
from turnwise.assembly.warmstart import WarmStart
from turnwise.cloning import partial
from turnwise.cloning.cloner import KindScore, Progress, clone
from turnwise.cloning.losses import END, FIRST, KINDS, OBSERVATION, REST, ByPolicy, CloningRow, Whole
from turnwise.cloning.partial import Partial
from turnwise.cloning.rounds import Round, RoundScore
from turnwise.cloning.rows import rows_of
from turnwise.cloning.settings import TakeoversConfig, WarmstartConfig
from turnwise.cloning.steps import Cloner
from turnwise.commands.display import LiveDisplay
from turnwise.config.files import load_config
from turnwise.jobs import warmstart
from turnwise.models.policy import Policy


def rows(weight: float = 0.3) -> list[CloningRow]:
    return rows_of(SHOWN, ChatFormat(tokenizer()), AGENT, "", weight)


def test_every_token_has_its_kind() -> None:
    (row,) = rows()
    told = {kind: tokenizer().decode(row.ids[row.kinds == kind]) for kind in (FIRST, REST, END)}
    assert told[END] == "<|end|>" * 3
    whole = "".join(tokenizer().decode(row.ids[row.kinds != OBSERVATION]).split("<|end|>"))
    assert whole == "go to drawer 1lookgo to drawer 2"
    firsts = [tokenizer().decode([token]) for token in row.ids[row.kinds == FIRST]]
    assert all(text.startswith(first) for text, first in zip(SHOWN.actions, firsts, strict=True))


@pytest.mark.parametrize("by_policy", [False, True])
def test_scores_by_kind_are_those_of_the_plain_forward(by_policy: bool) -> None:
    """Probabilities and hits of the tokens that count: not those of noise, and none before a row's first token."""
    model, of = tiny_model(), rows() * 2
    cloner = Cloner(Whole(model), WarmstartConfig(warmup_steps=0))
    for _ in range(12):  # so that some tokens are the likeliest
        cloner.step(of)
    (row,) = of[:1]
    with torch.no_grad():
        full = model(torch.from_numpy(row.ids.astype(np.int64))[None]).logits[0, :-1].softmax(-1)
    counts = row.weights[1:] > 0
    true = row.ids[1:].astype(np.int64)
    chosen = full.gather(-1, torch.from_numpy(true)[:, None])[:, 0].numpy()
    hits = full.argmax(-1).numpy() == true
    cloned = ByPolicy(Policy(model, tokenizer(), lora=None), 60) if by_policy else Whole(model)
    scored = cloned.backward(of)
    for kind in range(len(KINDS)):
        own = counts & (row.kinds[1:] == kind)
        assert scored.num[kind] == 2 * own.sum()
        assert abs(scored.probability[kind] - 2 * chosen[own].sum()) < 1e-4
        assert scored.best[kind] == 2 * hits[own].sum()
    assert 0 < scored.best.sum() < scored.num.sum()


def test_the_display_tells_the_kinds() -> None:
    console = Console(record=True, width=140, file=io.StringIO())
    display = LiveDisplay(console, 0, "title")
    kinds = {"first": KindScore(0.512, 0.75), "end": KindScore(1.0, 1.0)}
    for tokens in (4, 5, 9, 12, 13):
        display.cloning(Progress(tokens, 100, 0.25, None, 1.0, kinds))
    told = console.export_text().splitlines()
    assert len(told) == 1, "a line for every tenth"
    assert "12 tokens  loss 0.250  probability of true tokens: first 0.51 (75.0 %), end 1.00 (100.0 %)" in told[0]


# --- what a warm start leaves out ---


@pytest.mark.parametrize("steps", [{"batch_episodes": 4}, {"num_steps": 10}])
def test_demonstrations_that_do_not_fit_are_told(steps: dict[str, int]) -> None:
    """A quarter of them is too long: the clone has learned the others alone."""
    made = rows()
    config = WarmstartConfig(max_tokens=40 * len(made[0].ids), **steps)
    with pytest.warns(UserWarning, match=r"^2[45]\.\d % of the demonstrations did not fit into the context"):
        clone(Whole(tiny_model()), None, cycle([made, [], made, made]), config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clone(Whole(tiny_model()), None, cycle([made]), config)


def test_a_goal_that_is_never_measured_is_told() -> None:
    made = rows()
    config = WarmstartConfig(stop_success=0.5, max_tokens=len(made[0].ids))
    with pytest.warns(UserWarning, match=r"stop_success=0.5 stops nothing: .* every warmstart.check_every=150,000"):
        progress, _ = clone(Whole(tiny_model()), None, cycle([made]), config, measure=lambda *_: 1.0)
    assert progress.success is None


def test_what_was_measured_before_a_round_is_not_told_in_it() -> None:
    made = rows()
    size = 16 * len(made[0].ids)
    score = RoundScore(1, 1, 4, 0.25, 0.25, 1.0)

    class Rounds:
        settings = TakeoversConfig(rounds=1, tokens=size)

        def keep(self, number: int) -> bool:
            return True

        def play(self, *given: Any) -> None: ...

        def round(self, number: int, demonstrations: Any) -> Round:
            return Round(score, demonstrations)

    config = WarmstartConfig(stop_success=1.0, max_tokens=size, check_every=1, takeovers=Rounds.settings)
    rounds: Any = Rounds()
    found, lines = clone(Whole(tiny_model()), None, cycle([made]), config, measure=lambda *_: 0.75, rounds=rounds)
    assert [line.get("success") for line in lines] == [0.75, None]
    assert (found.round, found.success) == (score, None)


def test_a_mean_return_is_not_taken_for_a_success_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(success=None, mean_return=3.0, too_many_errors=lambda share: "")
    monkeypatch.setattr("turnwise.assembly.warmstart.evaluate_policy", lambda *_, **__: (told, []))
    monkeypatch.setattr(WarmStart, "_playing", lambda *_: None)
    config = load_config("smoke", ["warmstart.stop_success=0.5"])
    with closing(Assembly(config)) as assembly, pytest.warns(UserWarning, match="its mean return is compared"):
        assert assembly.warmstart._measure(None, None) == 3.0


# --- interrupted ---

SETTINGS = [*MODEL, "env.id=tests.levers:test/Levers-v0", "warmstart.split=train", "warmstart.max_tokens=6000"]
PRETRAINED = [
    "agent.action_format=plain",
    "agent.show_admissible=false",
    "agent.max_context_tokens=256",
    "agent.max_reply_tokens=8",
]


class _StopError(Exception):
    pass


def stop_after(steps: int) -> Any:
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == steps:
            raise _StopError

    return watch


@pytest.mark.parametrize("kind", ["scratch", "pretrained"])
def test_an_interrupted_warm_start_goes_on_to_the_same_weights(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "EVERY_S", 0.0)
    given = [*SETTINGS, "warmstart.batch_episodes=4", "warmstart.num_demonstrations=6", "warmstart.cooldown_share=0.5"]
    if kind == "pretrained":
        given = [f"model.path={scratch_folder(tmp_path / 'model')}", *given[len(MODEL) :], *PRETRAINED]
    config = load_config("smoke", given)
    file = "model.safetensors" if kind == "scratch" else "adapter_model.safetensors"
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "whole"))
    whole = warmstart(config)
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "broken"))
    for _ in range(2):
        with pytest.raises(_StopError):
            warmstart(config, stop_after(3))
    broken = warmstart(config)
    assert [path.name for path in broken.parent.iterdir()] == [broken.name], "and nothing is left beside it"
    assert broken.name == whole.name
    ours, theirs = load_file(whole / file), load_file(broken / file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    lines = [
        [{**json.loads(line), "cpu_s": 0} for line in (folder / "cloning.jsonl").read_text().splitlines()]
        for folder in (whole, broken)
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) > 6
    assert set(lines[0][-1]["kinds"]) >= {"first", "rest", "end"}


def test_afresh_it_begins_at_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "EVERY_S", 0.0)
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    config = load_config("smoke", SETTINGS)
    with pytest.raises(_StopError):
        warmstart(config, stop_after(2))
    seen: list[int] = []
    warmstart(config, lambda progress: seen.append(progress.tokens), fresh=True)
    first = seen[0]
    with pytest.raises(_StopError):
        warmstart(load_config("smoke", [*SETTINGS, "seed=3"]), stop_after(2))
    assert first < 2 * max(np.diff(seen))


def test_a_damaged_save_is_left_alone(tmp_path: Path) -> None:
    left = Partial(tmp_path / "x.partial.safetensors")
    assert left.load() is None
    cloner = Cloner(Whole(tiny_model()), WarmstartConfig())
    cloner.step(rows())
    left.save({"course": 1}, cloner.state())
    found = left.load()
    assert found is not None
    assert found[0] == {"course": 1}
    left.path.write_bytes(left.path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="is damaged .* begins again"):
        assert left.load() is None
    with pytest.warns(UserWarning, match="cannot be saved"):
        Partial(tmp_path / "x.partial.safetensors" / "inside").save({}, {})
