"""The learner: one update, from collected groups to the last optimizer step.

An update shapes the rewards, composes streams of rows, computes advantages, and steps through minibatches. The recipe
says how, and a ``Scorer`` stands for the model: this file names no algorithm and no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turnwise.clock import Clock
from turnwise.learning.answers import References, beliefs
from turnwise.learning.metrics import Agreement, Metrics, Tally, deviations
from turnwise.learning.optimizer import Parameters, flat_state, load_flat_state, make_optimizer, set_learning_rate, step
from turnwise.learning.parts import Critic, MinibatchView, Samples, Stream, Streams, UpdateContext, required
from turnwise.learning.planning import Reading, Scorer
from turnwise.learning.primitives import Counts, clipped_surrogate, kl_estimate, masked_mean
from turnwise.learning.ranks import Alone, Ranks, deal, divided, sum_gradients
from turnwise.learning.recipe import Recipe, StreamRecipe
from turnwise.learning.rewards import RewardTable, ShaperOfUpdate, raw_rewards, shapers_of
from turnwise.learning.scored import Scored
from turnwise.learning.settings import OptimizerConfig, RunInfo
from turnwise.replay.batch import TokenBatch, layout, microbatches, minibatches
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group, Trajectory, counted

Verify = Callable[[Agreement], None]


class Learner:
    """Trains a scorer's parameters, and those of the recipe's parts, by a recipe.

    All random numbers are seeded with (run.seed, update). So a resumed run computes what an uninterrupted one does.
    ``ranks`` are the processes that share the work. Each has a learner of its own with equal weights, and makes the
    same calls with the same groups. ``teacher`` is a frozen scorer of the same tokens, and ``references`` know the
    tasks' right answers, where a part needs them.
    """

    def __init__(
        self,
        recipe: Recipe,
        scorer: Scorer,
        config: OptimizerConfig,
        run: RunInfo,
        ranks: Ranks | None = None,
        teacher: Scorer | None = None,
        references: References | None = None,
    ) -> None:
        self.recipe, self.scorer, self.config, self.run = recipe.checked(), scorer, config, run
        self.teacher, self.references = teacher, references
        assert teacher is not None or not recipe.needs_teacher, f"{recipe.name} needs a teacher"
        assert references is not None or not recipe.needs_answers, f"{recipe.name} needs answers"
        self.ranks: Ranks = ranks or Alone()
        self.parts = recipe.parts()
        self.clock = Clock()
        for part in self.parts:
            part.attach(scorer)
        own = [Parameters(list(p.module.parameters()), p.module_lr) for p in self.parts if p.module is not None]
        self.policy = Parameters(list(scorer.parameters()))
        if not self.policy.tensors:
            raise ValueError("The scorer has no parameters: there is nothing to train")
        self.optimizer = make_optimizer([self.policy, *own], config)

    def shape(self, trajectories: tuple[Trajectory, ...], update: int) -> RewardTable:
        """The shaped rewards of an update's trajectories: by the run's settings, then by the recipe.

        Raw rewards do not change.
        """
        return shaped_rewards(self.recipe, self.run, trajectories, self.scorer, update)

    def update(self, buffer: TrajectoryBuffer, update: int, verify: Verify | None = None) -> Metrics:
        """Train on the buffer's groups of ``update`` and on what the composer adds, then prune the buffer.

        ``verify`` is called once, before the first optimizer step that has action tokens to learn from. It gets the
        agreement of learner and sampler on that minibatch, or on some of ``update``'s rows if the minibatch holds
        nothing fresh. An error that it raises stops the update. Without any row to train on, nothing is optimized or
        compared, and the metrics are finite all the same.
        """
        groups = buffer.fresh(update)
        samples = Samples(groups, self.shape(tuple(t for g in groups for t in g.trajectories), update))
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
        tally.join(self.ranks)
        metrics = _metrics(tally, samples, streams, rate, self.run.ahead)
        for part in self.parts:
            part.after_update(update, streams, metrics)
            part.occurred.join(self.ranks)
        buffer.prune(update + 1)
        return replace(metrics, mechanisms=self.recipe.acted())

    def halve_microbatches(self) -> None:
        """Halve optimizer.microbatch_tokens from now on."""
        half = max(1, self.config.microbatch_tokens // 2)
        self.config = self.config.model_copy(update={"microbatch_tokens": half})

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """State of optimizer and parts: what is JSON-able, and tensors by flat name. The scorer's is its own matter."""
        state = {"version": 1, "parts": {name: part.state_dict() for name, part in self._named_parts()}}
        tensors = flat_state(self.optimizer)
        for name, part in self._named_parts():
            if part.module is not None:
                tensors.update({f"parts.{name}.{k}": v for k, v in part.module.state_dict().items()})
        return state, tensors

    def load_state_dict(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned. Raises ValueError if it was saved with other parts."""
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
        """Fill in the columns that each stream's parts need, then its advantages."""
        filled = []
        for stream in streams:
            recipe = self.recipe[stream.name]
            stream = stream.with_columns(**self._columns(stream.batch, recipe))
            if self.references is not None and "answers" in recipe.needs:
                found = beliefs(stream.samples.groups, self.references, lambda batch: self._scored(batch)[0])
                stream = replace(stream, beliefs=found)
            if recipe.estimator is not None:
                advantages = recipe.estimator.estimate(stream)
                stream = stream.with_columns(advantages=advantages)
                if stream.batch.values is not None:
                    stream = stream.with_columns(returns=advantages + stream.batch.values)
            for modifier in recipe.modifiers:
                stream = stream.with_columns(advantages=modifier.modify(stream))
            filled.append(stream)
        return Streams(tuple(filled), streams.dropped_groups)

    def _columns(self, batch: TokenBatch, recipe: StreamRecipe) -> dict[str, Any]:
        """The columns that a stream's parts need, [B, T] each, computed before anything is optimized."""
        columns: dict[str, Any] = {}
        if "reference" in recipe.needs:
            columns["reference_logprobs"], *_ = self._scored(batch, reference=True)
        if "teacher" in recipe.needs:
            columns["teacher_logprobs"], *_ = self._scored(batch, scorer=self.teacher)
        if recipe.needs & {"proximal", "values"} or recipe.opening:
            proximal, values, *read = self._scored(batch, critic=recipe.critic, readings=recipe.opening)
            columns |= {"proximal_logprobs": proximal} if "proximal" in recipe.needs else {}
            columns |= {"values": values} if recipe.critic is not None else {}
            columns |= {"opening": dict(zip(recipe.opening, read, strict=True))}
        return columns

    @torch.no_grad()
    def _scored(
        self,
        batch: TokenBatch,
        *,
        scorer: Scorer | None = None,
        reference: bool = False,
        critic: Critic | None = None,
        readings: Sequence[Reading] = (),
    ) -> tuple[Tensor, ...]:
        """Log-probs (nats), values (0 without a critic) and readings of the whole batch, [B, T] each, on its device.

        ``scorer`` is the policy, where none is given.
        """
        found = torch.zeros_like(batch.behaviour_logprobs).repeat(2 + len(readings), 1, 1)
        logprobs, values, *read = found
        asked = {"reference": reference, "hidden": critic is not None}
        self.clock.add("score", 0.0, int(batch.lengths.sum()))  # those of all ranks: their seconds pass together
        for rows, counts in self._dealt(batch):
            micro = batch.select(rows).to(self._device)
            with self.clock.stage("score", 0):
                scores = (scorer or self.scorer).score(micro, entropy=False, **asked, readings=readings)
            if not counts:
                continue
            width = micro.tokens.shape[1]
            logprobs[rows, :width] = scores.logprobs.to(logprobs)
            for column, values_read in zip(read, scores.readings, strict=True):
                column[rows, :width] = values_read.to(column)
            if critic is not None:
                values[rows, :width] = critic.values(required(scores.hidden, "hidden"), micro.action_mask).to(values)
        self.ranks.add_up(found.view(-1))  # a row is 0 on all ranks but one
        return tuple(found)

    def _dealt(self, batch: TokenBatch) -> Iterable[tuple[Tensor, bool]]:
        """Row numbers of this rank's microbatches, and whether each counts (``deal``)."""
        return deal(divided(batch, self.config.microbatch_tokens, self.ranks), self.ranks)

    @property
    def _device(self) -> torch.device:
        return self.policy.tensors[0].device

    def _prove(self, verify: Verify | None, fresh: tuple[Group, ...], update: int, tally: Tally) -> None:
        """Compare learner and sampler once an update, while the learner still has the weights that sampled."""
        if tally.is_proved:
            return
        tally.is_proved = True
        tally.join_deviations(self.ranks)
        if not sum(map(len, tally.deviations)):
            tally.deviations.append(self._fresh_deviations(fresh, update))
        if verify is not None:
            verify(tally.agreement())

    @torch.no_grad()
    def _fresh_deviations(self, fresh: tuple[Group, ...], update: int) -> Tensor:
        """Deviations [n] (nats) on one microbatch of what was sampled for ``update``, trained on or not; n may be 0.

        What was played ahead is scored with the weights that played it.
        """
        version = update
        if self.run.ahead:
            version = max((t.policy_version for group in fresh for t in group.trajectories), default=update)
        batch = layout(fresh, version=version)
        with nullcontext() if version == update else self.scorer.as_of(version):
            for rows in microbatches(batch, self.config.microbatch_tokens):
                micro = batch.select(rows).to(self._device)
                with self.clock.stage("score", int(micro.lengths.sum())):
                    found = deviations(self.scorer.score(micro, entropy=False).logprobs, micro)
                if len(found):
                    return found
        return torch.empty(0)

    def _epoch(self, phase: list[Stream], update: int, epoch: int, tally: Tally, prove: Callable[[], None]) -> None:
        """One pass over the streams of a phase. Their i-th minibatches share the i-th optimizer step."""
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
                sum_gradients(self.ranks, [p for group in self.optimizer.param_groups for p in group["params"]])
                norm = step(self.optimizer, self.config)
            tally.count_step(norm)

    def _backward(self, stream: Stream, batch: TokenBatch, seed: tuple[int, ...], tally: Tally) -> bool:
        """Add a minibatch's gradient, microbatch by microbatch. ``seed`` is (run, update, epoch, stream, step).

        Returns whether there was something to learn: an action token in a row that is computed.
        """
        recipe, update = self.recipe[stream.name], seed[1]
        tally.begin_terms(recipe.terms())
        counts, unit = Counts.of(batch.action_mask, batch.turn_index), recipe.success(self.run.rewards)
        view = MinibatchView(
            update,
            batch,
            counts,
            lambda: self._scored(batch)[0],
            seed,
            unit,
            lambda readings: self._scored(batch, readings=readings)[2:],
        )
        for part in recipe.parts():
            part.prepare(view)
        learning = recipe.learning(batch)
        dealt = batch.select(learning)
        self.clock.add("train", 0.0, int(dealt.lengths.sum()))  # as in ``_scored``
        for part_of, is_counted in self._dealt(dealt):
            rows = learning[part_of]
            micro = batch.select(rows).to(self._device)
            with self.clock.stage("train", 0):
                scores = Scored.of(self.scorer, micro, recipe)
                if not is_counted:  # the other ranks need this one's part of the weights, there and back
                    (0.0 * scores.logprobs.sum()).backward()  # type: ignore[no-untyped-call]
                    continue
                if not tally.is_proved:
                    tally.deviations.append(deviations(scores.logprobs, micro))
                ctx = UpdateContext(
                    update,
                    micro,
                    scores.logprobs,
                    scores.entropies,
                    counts,
                    recipe.aggregation,
                    scores.hidden,
                    rows,
                    unit,
                    scores.observed,
                    scores.readings,
                )
                loss = stream_loss(recipe, ctx, tally) * stream.coef
                tally.add(loss=loss.detach())
                if loss.requires_grad:  # not so for rows without a single action token
                    loss.backward()  # type: ignore[no-untyped-call]
        return bool(batch.action_mask[learning].any())


def shaped_rewards(
    recipe: Recipe, run: RunInfo, trajectories: tuple[Trajectory, ...], scorer: Scorer, update: int
) -> RewardTable:
    """The raw rewards of an update's episodes, changed by the run's shapers (scale, penalty), then by the recipe's."""
    rewards = raw_rewards(trajectories)
    for shaper in (*shapers_of(run.rewards), *recipe.shapers):
        own = shaper.at(update) if isinstance(shaper, ShaperOfUpdate) else shaper
        rewards = own.shape(trajectories, rewards, scorer)
    return rewards


def stream_loss(recipe: StreamRecipe, ctx: UpdateContext, tally: Tally) -> Tensor:
    """Share of the minibatch's loss: surrogate + u · w · Σ coef · (regularizer or objective), a scalar.

    u and w are those of ``Regularizer``; both are 1 in a stream without a surrogate.
    """
    loss = ctx.logprobs.new_zeros(())
    if recipe.clip is not None:
        surrogate = recipe.clip.surrogate(ctx)
        clipped = clipped_surrogate(surrogate.ratio, ctx.advantages, *surrogate[1:])
        weight = ctx.batch.weight.unsqueeze(1)
        for weighter in recipe.weighters:
            weight = weight * weighter.weight(ctx)
        policy = ctx.aggregate(weight * clipped.loss)
        loss = loss + policy
        _tally_policy(tally, ctx, surrogate.ratio, policy, clipped.clipped, clipped.dual_clipped)
    beside = ctx.unit * ctx.surrogate_weight if recipe.clip is not None else 1.0
    terms = [(coef * beside, part.term(ctx)) for part, coef in recipe.regularizers]
    losses = [(coef * beside, part.loss(ctx)) for part, coef in recipe.objectives]
    for name, (coef, term) in zip(recipe.terms(), (*terms, *losses), strict=True):
        tally.add_term(name, term.detach())
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
        tally.add(kl_reference=total(kl_estimate(ctx.logprobs, reference, "k3")), referred=ctx.mask.sum())
    if ctx.entropy is not None:
        tally.add(entropy=total(ctx.entropy), measured=ctx.mask.sum())
    tally.ratio_max = max(tally.ratio_max, float(ratio.masked_fill(~ctx.mask, 0.0).max()) if ratio.numel() else 0.0)


def _metrics(tally: Tally, samples: Samples, streams: Streams, rate: float, ahead: int) -> Metrics:
    turns = [turn for t in samples.trajectories for turn in t.turns]
    tokens = np.concatenate([np.empty(0), *(turn.entropies[turn.action_mask] for turn in turns)])
    returns = [samples.rewards.total(n) for n in counted(samples.trajectories)]
    advantages = [s.batch.advantages[s.batch.action_mask] for s in streams if s.batch.advantages is not None]
    credit = torch.cat(advantages).double() if advantages else torch.zeros(0, dtype=torch.double)
    norms = [norm for norm in tally.grad_norms if np.isfinite(norm)]
    return Metrics(
        loss=tally.per_step("loss"),
        policy_loss=tally.per_step("policy_loss"),
        entropy=_mean(tokens) if tokens.size else None,
        policy_entropy=tally.per_token("entropy", "measured"),
        clip_share=tally.per_token("clipped") or 0.0,
        dual_clip_share=tally.per_token("dual_clipped") or 0.0,
        ratio_mean=tally.per_token("ratio") or 0.0,
        ratio_max=tally.ratio_max,
        kl_behaviour=tally.per_token("kl_behaviour") or 0.0,
        kl_reference=tally.per_token("kl_reference", "referred"),
        grad_norm=_mean(np.array(norms)),
        learning_rate=rate,
        return_mean=_mean(np.array(returns)) if returns else None,
        advantage_mean=float(masked_mean(credit, torch.ones_like(credit, dtype=torch.bool))),
        advantage_std=float(credit.std(correction=0)) if credit.numel() else 0.0,
        num_trajectories=len(samples.trajectories),
        num_rows=sum(len(s.batch) for s in streams),
        num_action_tokens=sum(s.batch.num_action_tokens for s in streams),
        dropped_groups=streams.dropped_groups,
        optimizer_steps=tally.steps,
        skipped_steps=tally.skipped,
        agreement=tally.agreement(),
        regularizers=tally.terms(),
        stream_rows={s.name: len(s.batch) for s in streams} if len(streams.streams) > 1 else {},
        staleness=_staleness(streams) if ahead else {},
    )


def _staleness(streams: Streams) -> dict[str, int]:
    """How many rows are so many updates behind."""
    ages = Counter(age for stream in streams for age in stream.batch.staleness.tolist())
    return {str(age): ages[age] for age in sorted(ages)}


def _mean(values: np.ndarray[Any, Any]) -> float:
    """Mean in float64, 0 of nothing."""
    return float(values.mean(dtype=np.float64)) if values.size else 0.0
