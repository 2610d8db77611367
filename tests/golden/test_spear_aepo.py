"""SPEAR's and AEPO's parts against numbers and event traces that the official implementations produced."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.algorithms.fakes import BigramPolicy, learner
from tests.golden.builders import Given, batch_of, context_of, loss_of
from tests.golden.vectors import cases, close, tensor
from turnwise.algorithms.aepo import BalancedClip, EntropyAdvantage, aepo_released
from turnwise.algorithms.branching import Branch, LockStep, Segment, Shape, initial_attempts, segment_entropy
from turnwise.algorithms.common import FreshGroups, PPOClip
from turnwise.algorithms.drbot import has_action, repeats_itself, widest_groups
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.selfimitation import STREAM, Recalibrated, ReplaySettings, SelfImitation, units
from turnwise.algorithms.spear import SPEARConfig, StepBonus
from turnwise.learning.parts import Samples, Stream, Streams
from turnwise.learning.primitives import kl_estimate, masked_mean
from turnwise.learning.recipe import StreamRecipe
from turnwise.learning.rewards import raw_rewards
from turnwise.learning.schedules import cosine_fall, cosine_rise
from turnwise.learning.settings import RunInfo
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group, Task, Trajectory, Turn


def kinds(name: str, kind: str) -> list[Any]:
    return cases(name, lambda case: kind in case or case.get("kind") == kind)


@pytest.mark.parametrize("case", kinds("spear_schedules", "replay_weight"))
def test_spear_replay_weight(case: dict[str, Any]) -> None:
    found = case["replay_loss_coef"] * cosine_rise(case["global_step"], case["max_replay_loss_steps"])
    assert found == pytest.approx(case["weight"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("case", kinds("spear_schedules", "toolcall_bonus_cosine"))
def test_spear_bonus(case: dict[str, Any]) -> None:
    bonus = StepBonus(1.0, 0.1, lambda step: cosine_fall(step, case["max_toolcall_steps"]))
    assert bonus.bonus(case["episode_length"], case["global_step"]) == pytest.approx(case["bonus"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("case", kinds("spear_response_filters", "tokens"))
def test_spear_repetition(case: dict[str, Any]) -> None:
    assert repeats_itself(case["tokens"]) is case["repetitive"]


@pytest.mark.parametrize("case", kinds("spear_response_filters", "text"))
def test_spear_completeness(case: dict[str, Any]) -> None:
    assert has_action(case["text"]) is case["complete"]


@pytest.mark.parametrize("case", cases("spear_group_filter"))
def test_spear_group_filter(case: dict[str, Any]) -> None:
    """Released: a trajectory's value is the mean reward of its step rows."""
    rows: dict[str, dict[str, list[float]]] = {}
    for group, trajectory, reward in case["rows"]:
        rows.setdefault(group, {}).setdefault(trajectory, []).append(reward)
    returns = [[float(np.mean(own)) for own in members.values()] for members in rows.values()]
    names = list(rows)
    assert [float(np.std(group)) for group in returns] == pytest.approx(list(case["group_std"].values()), abs=1e-9)
    assert [names[place] for place in widest_groups(returns, case["filter_ratio"])] == case["groups_kept"]


def memory_of(settings: ReplaySettings) -> SelfImitation:
    return SelfImitation(FreshGroups(), settings, lambda update: 1.0, seed=0)


def turn(reward: float, number: int = 0) -> Turn:
    """One training row of one token, whose id is ``number``."""
    ids, nats = np.array([number], np.int32), np.zeros(1, np.float32)
    return Turn("", np.array([1], np.int32), False, ids, nats, nats, "", "", True, reward)


def trajectory(name: str, group: str, turns: list[Turn]) -> Trajectory:
    task = Task("golden", "train", 0, group)
    return Trajectory(name, task, 0, 0, tuple(turns), "terminated", None, None)


@pytest.mark.parametrize("case", cases("spear_advantage_recalibration"))
@pytest.mark.parametrize("normalize_std", [False, True])
def test_spear_recalibration(case: dict[str, Any], normalize_std: bool) -> None:
    """P50 of the recorded history, the recalibrated advantages, and which of them are kept."""
    memory = memory_of(SPEARConfig(keep="at_least", normalize_std=normalize_std))
    history = case["group_mean_history"]
    memory.returns.add([[mean - case["p50_std"], mean + case["p50_std"]] for mean in history])
    rewards, mask = tensor(case["token_level_rewards"]).sum(1).tolist(), tensor(case["response_mask"])
    buffer = TrajectoryBuffer(10)
    for number, reward in enumerate(rewards):
        made = trajectory(str(number), str(number), [turn(reward)])
        buffer.keep(Group(made.task, (made,)), 0, STREAM, (((reward,), (0.0,)),))
    streams = memory.compose(1, Samples((), raw_rewards([])), buffer)
    assert memory.median is not None
    assert memory.median == pytest.approx((case["p50"], case["p50_std"]), rel=1e-5)
    suffix = f"std{int(normalize_std)}"
    kept = [bool(flag) for flag in case[f"keep_ge0_{suffix}"]]
    assert [unit.trajectory.episode for unit in memory.eligible(buffer)] == [str(n) for n, k in enumerate(kept) if k]
    assert [stream.name for stream in streams] == ["fresh"]  # nothing fresh: nothing is drawn
    every = memory_of(SPEARConfig(keep="at_least", normalize_std=normalize_std, draw=100))
    every.returns, official = memory.returns, tensor(case[f"adv_{suffix}"])
    replay = every.compose(1, Samples((), raw_rewards([])), buffer)[STREAM]
    found = Recalibrated(every).estimate(replay)[replay.batch.action_mask]
    first = torch.tensor([int(row.argmax()) for row in mask])
    close(found, official[torch.arange(len(kept)), first][torch.tensor(kept)].tolist())


@pytest.mark.parametrize("case", cases("spear_replay_buffer"))
def test_spear_replay_buffer(case: dict[str, Any]) -> None:
    """The released buffer's events, one by one; a row's token id is its official number."""
    settings = SPEARConfig(
        replay="when_full", unit="row", powers=True, keep="at_least", age_from="newest",
        buffer_size=case["buffer_size"], tolerance=case["tolerate_steps"], baseline_groups=case["baseline_buffer_size"],
    )  # fmt: skip
    memory, buffer = memory_of(settings), TrajectoryBuffer(1000)
    metrics = learner(build(GRPOConfig(), RunInfo(1, 2)), BigramPolicy()).update(TrajectoryBuffer(), 0)  # of nothing
    for event in case["events"]:
        step, rows = event["step"], event["rows"]
        groups: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for number, row in enumerate(rows):
            members = groups.setdefault(row["group"], {})
            members.setdefault(row["traj"], []).append((1000 * step + number, row["reward"]))
        made = [
            Group(Task("golden", "train", 0, group), tuple(
                trajectory(name, group, [turn(r if i == len(own) - 1 else 0.0, n) for i, (n, r) in enumerate(own)])
                for name, own in members.items()
            ))
            for group, members in groups.items()
        ]  # fmt: skip
        samples = Samples(tuple(made), raw_rewards([t for g in made for t in g.trajectories]))
        before = list(units(buffer))
        assert memory.is_full(buffer) is event["full_before_update"]
        streams = memory.compose(step, samples, buffer)
        assert (STREAM in [stream.name for stream in streams]) is event["full_before_update"]
        if event["full_before_update"]:
            assert memory.median is not None
            assert memory.median[0] == pytest.approx(event["p50_baseline"])
            if event["p50_std"]:  # where it is 0 nothing is divided by it; another scale may stand there
                assert memory.median[1] == pytest.approx(event["p50_std"])
            assert [int(u.trajectory.turns[0].action_ids[0]) for u in before] == event["stored_row_ids"]
            assert [u.total for u in before] == pytest.approx(event["stored_rewards"])
            replay = streams[STREAM]
            drawn = replay.batch.tokens[replay.batch.action_mask].tolist()
            assert len(drawn) == len(set(drawn)) == event["replay_sample_size"]
            kept = dict(zip(event["recalibrated_kept_row_ids"], event["recalibrated_adv"], strict=True))
            assert set(drawn) <= set(kept)
            close(Recalibrated(memory).estimate(replay)[replay.batch.action_mask], [kept[n] for n in drawn])
        fresh = streams["fresh"]
        order = fresh.batch.tokens[fresh.batch.action_mask] - 1000 * step
        advantages = tensor(event["advantage_row"])[order].unsqueeze(1) * fresh.batch.action_mask
        memory.after_update(step, Streams((fresh.with_columns(advantages=advantages),)), metrics)
        held = [(entry.update, len(entry.group.trajectories)) for entry in buffer.entries(STREAM)]
        steps = sorted({update for update, _ in held})
        assert steps == event["buffer_steps_after"]
        assert [sum(n for u, n in held if u == s) for s in steps] == event["buffer_rows_after"]
        assert memory.num_above(buffer) == event["buffer_size_metric"]
        assert len(memory.returns) == event["baseline_groups"]
        assert event["full_threshold"] == 1.5 * case["buffer_size"]


def token_entropies(logprobs: list[list[float]]) -> Any:
    """-Σ p ln p over the recorded most probable tokens, [T]."""
    recorded = np.array(logprobs)
    return -(np.exp(recorded) * recorded).sum(1)


@pytest.mark.parametrize("case", cases("aepo_budget_allocation"))
def test_aepo_budget_allocation(case: dict[str, Any]) -> None:
    if case.get("formula_only"):
        difference = case["H_root_minus_H_tool"]
    else:
        segments = [case["root_topk_logprobs"], *case["step_topk_logprobs"]]
        found = [segment_entropy(token_entropies(s), 20, math.log(case["vocab_size"])) for s in segments]
        assert found == pytest.approx([case["H_root"], *case["H_steps"]], rel=1e-6)
        assert float(np.mean(found[1:])) == pytest.approx(case["H_tool_avg"], rel=1e-6)
        difference = found[0] - float(np.mean(found[1:]))
    found_attempts = initial_attempts(case["total_budget_n"], difference, case.get("beta", 0.5))
    assert found_attempts == case["official_initial_rollouts"]


@pytest.mark.parametrize("case", cases("aepo_branch_rollout_trace"))
def test_aepo_branch_rollout_trace(case: dict[str, Any]) -> None:
    """The released controller, round by round: which paths are active, of what length, and what became of them."""
    settings, root, tool = case["config"], case["prompt_len"], case["tool_result_len"]
    draws = iter(case["uniform_draws"])
    rule = partial(aepo_released, weight=settings["entropy_weight"], threshold=settings["branch_probability"])
    shape = Shape(case["n"], settings["beam_size"] - 1, partial(rule, penalty=0.05), "own")
    expander = LockStep(shape, lambda: next(draws))
    length: dict[int, int] = {}
    calls: dict[int, int] = {}
    tokens: dict[int, int] = {}

    def grow(branches: list[Branch]) -> None:
        for branch in branches:
            parent = branch.parent
            length[branch.path] = root if parent is None else length[parent]
            calls[branch.path], tokens[branch.path] = (0, 0) if parent is None else (calls[parent], tokens[parent])

    grow(expander.start([settings["initial_rollouts"]] * case["batch"]))
    for segments in case["iterations"]:
        active = [number for number, path in enumerate(expander.paths) if path.active]
        assert [length[number] for number in active] == [segment["prompt_len"] for segment in segments]
        branches: list[Branch] = []
        for number, segment in zip(active, segments, strict=True):
            assert not branches
            goes_on = segment["tool_call"] and calls[number] < settings["call_limit"]
            calls[number] += goes_on
            tokens[number] += segment["n_tokens"] + (segment["tool_call"] and not goes_on)  # the end token at the limit
            length[number] += segment["n_tokens"] + tool * goes_on
            branches = expander.expand(number, Segment(expander.paths[number].turns, segment["entropy"], goes_on))
        grow(branches)
    assert not [path for path in expander.paths if path.active]
    assert next(draws, None) is None
    first = {n: path.first for n, path in enumerate(expander.paths)}
    assert {n: first[int(n)] for n in case["H_init_by_rollout_index"]} == pytest.approx(case["H_init_by_rollout_index"])
    assert {str(p): expander.streaks.get(p, 0) for p in range(case["batch"])} == case["final_consecutive_branches"]
    by_task = [n for p in range(case["batch"]) for n, path in enumerate(expander.paths) if path.task == p]
    assert len(by_task) == case["n_outputs"]
    assert [tokens[n] for n in by_task] == case["out_loss_mask_sum"]


@pytest.mark.parametrize("case", cases("aepo_policy_loss"))
def test_aepo_policy_loss(case: dict[str, Any]) -> None:
    """Clip and entropy-aware advantage, each on and off. The official code gives nan for a lone token; ours 1 * A."""
    logprobs, mask = tensor(case["log_prob"]).requires_grad_(), tensor(case["response_mask"]).bool()
    batch = batch_of(
        mask,
        behaviour_logprobs=tensor(case["old_log_prob"]),
        behaviour_entropies=tensor(case["entropy"]),
        advantages=tensor(case["advantages"]),
    )
    if case["entropy_advantage"]:
        stream = Stream(Samples((), raw_rewards([])), batch)
        batch = batch.with_columns(advantages=EntropyAdvantage(case["alpha"]).modify(stream))
    clip = PPOClip(case["clip_low"], case["clip_high"], case["clip_c"])
    recipe = StreamRecipe(Given(), clip=BalancedClip(clip) if case["balanced_clip"] else clip)
    ctx, view = context_of(batch, logprobs, recipe.aggregation)
    loss, tally = loss_of(recipe, ctx, view)
    (found,) = torch.autograd.grad(loss, logprobs)
    if case["loss"] == "nan":
        assert int(mask.sum()) == 1
        assert torch.isfinite(loss)
        assert torch.isfinite(found).all()
        return
    close(loss, case["loss"])
    close(found, case["grad_log_prob"], gradient=True)
    close(tally.per_token("clipped") or 0.0, case["clipfrac"])
    close(tally.per_token("dual_clipped") or 0.0, case["clipfrac_lower"])
    close(masked_mean(kl_estimate(ctx.old_logprobs, logprobs, "k1"), mask), case["ppo_kl"])
