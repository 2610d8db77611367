"""The learner: one update, from collected groups to the last optimizer step; knows no model, no algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turnwise.clock import Clock
from turnwise.learning.metrics import Agreement, Metrics, Tally, deviations
from turnwise.learning.optimizer import Parameters, flat_state, load_flat_state, make_optimizer, set_learning_rate, step
from turnwise.learning.parts import Critic, MinibatchView, Samples, Stream, Streams, UpdateContext, required
from turnwise.learning.planning import Scorer
from turnwise.learning.primitives import Counts, clipped_surrogate, kl_estimate, masked_mean
from turnwise.learning.recipe import Recipe, StreamRecipe
from turnwise.learning.rewards import RewardTable, raw_rewards, shapers_of
from turnwise.learning.settings import OptimizerConfig, RunInfo
from turnwise.replay.batch import TokenBatch, layout, microbatches, minibatches
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group, Trajectory

Verify = Callable[[Agreement], None]


class Learner:
    """Trains a scorer's parameters (and the parts' own) by a recipe.

    Everything random is drawn from (run.seed, update), so that a resumed run repeats what an unbroken one
    does.
    """

    def __init__(self, recipe: Recipe, scorer: Scorer, config: OptimizerConfig, run: RunInfo) -> None:
        self.recipe, self.scorer, self.config, self.run = recipe.checked(), scorer, config, run
        self.parts = recipe.parts()
        self.clock = Clock()
        for part in self.parts:
            part.attach(scorer)
        own = [Parameters(list(p.module.parameters()), p.module_lr) for p in self.parts if p.module is not None]
        self.policy = Parameters(list(scorer.parameters()))
        if not self.policy.tensors:
            raise ValueError("The scorer has no parameters: there is nothing to train")
        self.optimizer = make_optimizer([self.policy, *own], config)

    def shape(self, trajectories: tuple[Trajectory, ...]) -> RewardTable:
        """The reward table of trajectories, shaped by the run's rewards and then by the recipe; raw ones stay."""
        return shaped_rewards(self.recipe, self.run, trajectories, self.scorer)

    def update(self, buffer: TrajectoryBuffer, update: int, verify: Verify | None = None) -> Metrics:
        """Train on the buffer's groups of ``update`` (and what the composer adds), then prune the buffer.

        ``verify`` is called once, before the first optimizer step that has action tokens to learn from, with the
        agreement of learner and sampler on that minibatch (where it holds nothing fresh: on some of ``update``'s rows);
        what it raises stops the update. Without any row to train on, nothing is optimized or compared, and the metrics
        stay finite.
        """
        groups = buffer.fresh(update)
        samples = Samples(groups, self.shape(tuple(t for g in groups for t in g.trajectories)))
        streams = self._credit(self.recipe.composer.compose(update, samples, buffer))
        for part in self.parts:
            part.before_update(update, streams)
        rate = set_learning_rate(self.optimizer, self.config, update, self.run.num_updates)
        tally = Tally()
        prove = partial(self._prove, verify, groups, update, tally)
        alive = [stream for stream in streams if len(stream.batch)]
        phases = [alive] if self.recipe.phases == "joint" else [[stream] for stream in alive]
        for phase in phases:
            for epoch in range(self.config.epochs):
                self._epoch(phase, update, epoch, tally, prove)
        metrics = _metrics(tally, samples, streams, rate)
        for part in self.parts:
            part.after_update(update, streams, metrics)
        buffer.prune(update + 1)
        return replace(metrics, mechanisms=self.recipe.acted())

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(JSON-able, tensors by flat name): optimizer and parts; the scorer saves its own parameters."""
        state = {"version": 1, "parts": {name: part.state_dict() for name, part in self._named_parts()}}
        tensors = flat_state(self.optimizer)
        for name, part in self._named_parts():
            if part.module is not None:
                tensors.update({f"parts.{name}.{k}": v for k, v in part.module.state_dict().items()})
        return state, tensors

    def load_state_dict(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` gave; ValueError if it was saved from other parts."""
        expected = {name for name, _ in self._named_parts()}
        if state.get("version") != 1 or set(state.get("parts", {})) != expected:
            raise ValueError(
                f"The saved learner does not fit recipe {self.recipe.name!r}: expected version 1 with the "
                f"parts {sorted(expected)}, got version {state.get('version')} with "
                f"{sorted(state.get('parts', {}))}"
            )
        load_flat_state(self.optimizer, tensors)
        for name, part in self._named_parts():
            part.load_state_dict(state["parts"][name])
            if part.module is not None:
                prefix = f"parts.{name}."
                part.module.load_state_dict(
                    {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                )

    def _named_parts(self) -> Iterable[tuple[str, Any]]:
        return [(f"{i}.{type(part).__name__}", part) for i, part in enumerate(self.parts)]

    def _credit(self, streams: Streams) -> Streams:
        """Fill the columns that each stream's parts need, then its advantages."""
        filled = []
        for stream in streams:
            plan = self.recipe[stream.name]
            stream = stream.with_columns(**self._columns(stream.batch, plan))
            if plan.estimator is not None:
                advantages = plan.estimator.estimate(stream)
                stream = stream.with_columns(advantages=advantages)
                if stream.batch.values is not None:
                    stream = stream.with_columns(returns=advantages + stream.batch.values)
            for modifier in plan.modifiers:
                stream = stream.with_columns(advantages=modifier.modify(stream))
            filled.append(stream)
        return Streams(tuple(filled), streams.dropped_groups)

    def _columns(self, batch: TokenBatch, plan: StreamRecipe) -> dict[str, Tensor]:
        """What the parts of a stream need to know about its tokens before the update."""
        columns = {}
        if "reference" in plan.needs:
            columns["reference_logprobs"], _ = self._scored(batch, reference=True)
        if plan.needs & {"proximal", "values"}:
            proximal, values = self._scored(batch, critic=plan.critic)
            columns |= {"proximal_logprobs": proximal} if "proximal" in plan.needs else {}
            columns |= {"values": values} if plan.critic is not None else {}
        return columns

    @torch.no_grad()
    def _scored(
        self, batch: TokenBatch, *, reference: bool = False, critic: Critic | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and values (0 without a critic) of the whole batch by microbatches, [B, T] on its device."""
        logprobs, values = (torch.zeros_like(batch.behaviour_logprobs) for _ in range(2))
        for rows in microbatches(batch, self.config.microbatch_tokens):
            micro = batch.select(rows).to(self._device)
            with self.clock.stage("score", int(micro.lengths.sum())):
                scores = self.scorer.score(micro, entropy=False, reference=reference, hidden=critic is not None)
            width = micro.tokens.shape[1]
            logprobs[rows, :width] = scores.logprobs.to(logprobs)
            if critic is not None:
                values[rows, :width] = critic.values(required(scores.hidden, "hidden"), micro.action_mask).to(values)
        return logprobs, values

    @property
    def _device(self) -> torch.device:
        return self.policy.tensors[0].device

    def _prove(self, verify: Verify | None, fresh: tuple[Group, ...], update: int, tally: Tally) -> None:
        """Compare learner and sampler, once an update, while the learner holds the weights that sampled."""
        if tally.is_proved:
            return
        tally.is_proved = True
        if not sum(map(len, tally.deviations)):
            tally.deviations.append(self._fresh_deviations(fresh, update))
        if verify is not None:
            verify(tally.agreement())

    @torch.no_grad()
    def _fresh_deviations(self, fresh: tuple[Group, ...], update: int) -> Tensor:
        """Of one microbatch of what was sampled for ``update``, whether or not it is trained on; perhaps none."""
        batch = layout(fresh, version=update)
        for rows in microbatches(batch, self.config.microbatch_tokens):
            micro = batch.select(rows).to(self._device)
            with self.clock.stage("score", int(micro.lengths.sum())):
                found = deviations(self.scorer.score(micro, entropy=False).logprobs, micro)
            if len(found):
                return found
        return torch.empty(0)

    def _epoch(self, phase: list[Stream], update: int, epoch: int, tally: Tally, prove: Callable[[], None]) -> None:
        """One pass over the streams of a phase; their i-th minibatches share the i-th optimizer step."""
        splits = []
        for place, stream in enumerate(phase):
            generator = np.random.default_rng([self.run.seed, update, epoch, place])
            groups = stream.batch.group.tolist()
            whole = self.config.minibatch_unit == "group" and len(set(groups)) >= self.config.num_minibatches
            units = groups if whole else range(len(groups))
            splits.append(minibatches(units, self.config.num_minibatches, generator))
        for i in range(max(map(len, splits), default=0)):
            learns = False
            for place, (stream, parts) in enumerate(zip(phase, splits, strict=True)):
                if i < len(parts):
                    seed = (self.run.seed, update, epoch, place, i)
                    learns |= self._backward(stream, stream.batch.select(parts[i]), seed, tally)
            if learns:
                prove()
            with self.clock.stage("train", 0):
                norm = step(self.optimizer, self.config)
            tally.count_step(norm)

    def _backward(self, stream: Stream, batch: TokenBatch, seed: tuple[int, ...], tally: Tally) -> bool:
        """Add a minibatch's gradient, microbatch by microbatch; ``seed`` is (run, update, epoch, stream, step).

        Says whether there was something to learn: an action token in a row that is computed.
        """
        plan, update = self.recipe[stream.name], seed[1]
        counts, unit = Counts.of(batch.action_mask, batch.turn_index), plan.success(self.run.rewards)
        view = MinibatchView(update, batch, counts, lambda: self._scored(batch)[0], seed, unit)
        for part in plan.parts():
            part.prepare(view)
        learning = plan.learning(batch)
        for part_of in microbatches(batch.select(learning), self.config.microbatch_tokens):
            rows = learning[part_of]
            micro = batch.select(rows).to(self._device)
            with self.clock.stage("train", int(micro.lengths.sum())):
                scores = self.scorer.score(micro, entropy="entropy" in plan.needs, hidden="hidden" in plan.needs)
                if not tally.is_proved:
                    tally.deviations.append(deviations(scores.logprobs, micro))
                ctx = UpdateContext(
                    update,
                    micro,
                    scores.logprobs,
                    scores.entropies,
                    counts,
                    plan.aggregation,
                    scores.hidden,
                    rows,
                    unit,
                )
                loss = stream_loss(plan, ctx, tally) * stream.coef
                tally.add(loss=loss.detach())
                if loss.requires_grad:  # not so for rows without a single action token
                    loss.backward()  # type: ignore[no-untyped-call]
        return bool(batch.action_mask[learning].any())


def shaped_rewards(recipe: Recipe, run: RunInfo, trajectories: tuple[Trajectory, ...], scorer: Scorer) -> RewardTable:
    """Raw rewards through the run's shapers (scale, penalty), then the recipe's."""
    rewards = raw_rewards(trajectories)
    for shaper in (*shapers_of(run.rewards), *recipe.shapers):
        rewards = shaper.shape(trajectories, rewards, scorer)
    return rewards


def stream_loss(plan: StreamRecipe, ctx: UpdateContext, tally: Tally) -> Tensor:
    """Share of the minibatch's loss: surrogate + u · w · Σ coef · (regularizer or objective), a scalar.

    u and w put what is added beside the surrogate (``Regularizer``); both are 1 where there is none.
    """
    loss = ctx.logprobs.new_zeros(())
    if plan.clip is not None:
        surrogate = plan.clip.surrogate(ctx)
        clipped = clipped_surrogate(surrogate.ratio, ctx.advantages, *surrogate[1:])
        weight = ctx.batch.weight.unsqueeze(1)
        for weighter in plan.weighters:
            weight = weight * weighter.weight(ctx)
        policy = ctx.aggregate(weight * clipped.loss)
        loss = loss + policy
        _tally_policy(tally, ctx, surrogate.ratio, policy, clipped.clipped, clipped.dual_clipped)
    beside = ctx.unit * ctx.surrogate_weight if plan.clip is not None else 1.0
    terms = [(part, coef * beside, part.term(ctx)) for part, coef in plan.regularizers]
    losses = [(part, coef * beside, part.loss(ctx)) for part, coef in plan.objectives]
    for part, coef, term in (*terms, *losses):
        tally.add(**{f"term/{type(part).__name__}": term.detach()})
        loss = loss + coef * term
    return loss


@torch.no_grad()
def _tally_policy(
    tally: Tally, ctx: UpdateContext, ratio: Tensor, policy: Tensor, clipped: Tensor, dual: Tensor
) -> None:
    def total(values: Tensor) -> Tensor:
        return values.masked_fill(~ctx.mask, 0.0).double().sum()

    behaviour, reference = ctx.batch.behaviour_logprobs, ctx.batch.reference_logprobs
    tally.add(
        policy_loss=policy,
        tokens=ctx.mask.sum(),
        clipped=total(clipped.double()),
        dual_clipped=total(dual.double()),
        ratio=total(ratio),
        kl_behaviour=total(kl_estimate(behaviour, ctx.logprobs, "k3")),
    )
    if reference is not None:
        tally.add(kl_reference=total(kl_estimate(ctx.logprobs, reference, "k3")))
    if ctx.entropy is not None:
        tally.add(entropy=total(ctx.entropy))
    tally.ratio_max = max(tally.ratio_max, float(ratio.masked_fill(~ctx.mask, 0.0).max()) if ratio.numel() else 0.0)


def _metrics(tally: Tally, samples: Samples, streams: Streams, rate: float) -> Metrics:
    tokens = np.concatenate([np.empty(0), *(turn.entropies for t in samples.trajectories for turn in t.turns)])
    returns = [samples.rewards.total(i) for i in range(len(samples.trajectories))]
    advantages = [s.batch.advantages[s.batch.action_mask] for s in streams if s.batch.advantages is not None]
    credit = torch.cat(advantages).double() if advantages else torch.zeros(0, dtype=torch.double)
    norms = [norm for norm in tally.grad_norms if np.isfinite(norm)]
    return Metrics(
        loss=tally.per_step("loss"),
        policy_loss=tally.per_step("policy_loss"),
        entropy=_mean(tokens) if tokens.size else None,
        policy_entropy=tally.per_token("entropy"),
        clip_share=tally.per_token("clipped") or 0.0,
        dual_clip_share=tally.per_token("dual_clipped") or 0.0,
        ratio_mean=tally.per_token("ratio") or 0.0,
        ratio_max=tally.ratio_max,
        kl_behaviour=tally.per_token("kl_behaviour") or 0.0,
        kl_reference=tally.per_token("kl_reference"),
        grad_norm=_mean(np.array(norms)),
        learning_rate=rate,
        return_mean=_mean(np.array(returns)),
        advantage_mean=float(masked_mean(credit, torch.ones_like(credit, dtype=torch.bool))),
        advantage_std=float(credit.std(correction=0)) if credit.numel() else 0.0,
        num_trajectories=len(returns),
        num_rows=sum(len(s.batch) for s in streams),
        num_action_tokens=sum(s.batch.num_action_tokens for s in streams),
        dropped_groups=streams.dropped_groups,
        optimizer_steps=tally.steps,
        skipped_steps=tally.skipped,
        agreement=tally.agreement(),
        regularizers={
            name.removeprefix("term/"): tally.per_step(name) for name in tally.sums if name.startswith("term/")
        },
        stream_rows={s.name: len(s.batch) for s in streams} if len(streams.streams) > 1 else {},
    )


def _mean(values: np.ndarray[Any, Any]) -> float:
    """Mean in float64, 0 of nothing."""
    return float(values.mean(dtype=np.float64)) if values.size else 0.0
