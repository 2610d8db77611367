"""A side: one policy in training, with its sampler, learner and buffer. A game may have one for each role or seat."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from turnwise.agents.seating import ModelAgent
from turnwise.learning.learner import Learner
from turnwise.learning.metrics import Agreement, Metrics
from turnwise.learning.planning import NoRollouts
from turnwise.models.loading import check_trainable
from turnwise.models.policy import Policy
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.runs.checkpoints import POLICY, Checkpoint, past_prefix, side_prefix
from turnwise.training.leading import Leader, plain_groups, restore
from turnwise.training.noise import limits_of
from turnwise.training.proof import DisagreementError as DisagreementError
from turnwise.training.proof import probed, prove
from turnwise.training.teacher import Teacher
from turnwise.trajectory import Group


class Side:
    """One policy in training, with its sampler (``agent``), learner and buffer.

    ``name`` is the role or player that it plays, or ``""`` for all of them. Errors call its model ``model``. ``leader``
    has the other ranks do what the learner does here. ``ahead`` is by how many updates its episodes are played before
    they are learned from. ``second`` is the hash of the weights of the model that draws tokens beside the policy, where
    there is one. Raises DisagreementError where the agent's engine holds another
    model: nothing is to be measured with that.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        agent: ModelAgent,
        learner: Learner,
        model: str = "the model",
        leader: Leader | None = None,
        ahead: int = 0,
        second: str | None = None,
    ) -> None:
        self.name, self.policy, self.agent, self.learner = name, policy, agent, learner
        self.leader, self.ahead, self.second = leader or Leader(), ahead, second
        policy.remember(ahead)
        check_trainable(policy.model, model)
        self.limits = limits_of(policy, agent)  # measured with the weights at the start, at a resume too
        if (differs := probed(policy, agent, self.limits)) is not None:
            raise DisagreementError(
                f"the engine that samples does not have {model}, in the run's precision, as its base model: {differs}"
            )
        self.buffer = TrajectoryBuffer(learner.recipe.keep_updates)
        self.teacher = learner.teacher if isinstance(learner.teacher, Teacher) else None

    def plays(self, group: Group) -> bool:
        """Whether this side's policy played the group's episodes: a player may have the name of another one's role."""
        return self.name in ("", group.trajectories[0].policy)

    def sync(self, version: int) -> None:
        """Copy the learner's weights to the sampler; the trajectories that it plays next carry their hash.

        Raises LostRankError where other ranks hold other weights.
        """
        self.leader.tell("sync", side=self.name, version=version)
        with self.leader.watched():
            self.policy.sync(version)
        self.leader.agree(self.policy.adapter_hash, f"after update {version}")
        self.agent.engine.hold(self.policy)
        self.agent.version, self.agent.adapter_hash = self.policy.version, self.policy.adapter_hash

    def take(self, groups: Sequence[Group], update: int) -> None:
        """Put its own groups into its buffer.

        Raises DisagreementError where they were not sampled with the weights that the learner holds, or held ``ahead``
        updates before.
        """
        own = [group for group in groups if self.plays(group)]
        self.buffer.add(own, update)
        expected = self.policy.past.of(max(0, update - self.ahead)).hash if self.ahead else self.policy.adapter_hash
        for trajectory in (t for group in own for t in group.trajectories):
            if trajectory.turns and trajectory.adapter_hash != expected:
                raise DisagreementError(
                    f"episode {trajectory.episode} was sampled with weights {trajectory.adapter_hash}, "
                    f"the learner {'held' if self.ahead else 'holds'} {expected}: the sampler was not synchronised"
                )

    def learn(self, update: int) -> Metrics:
        """The learner's part of an update, by all ranks. Raises DisagreementError and LostRankError."""
        if self.leader.leads:
            self.leader.tell("learn", side=self.name, update=update, groups=plain_groups(self.buffer.fresh(update)))
        with self.leader.watched():
            return self.learner.update(self.buffer, update, verify=self.verify)

    def verify(self, agreement: Agreement) -> None:
        """Check sampler against learner. Raises DisagreementError where they do not have the same policy.

        So does a teacher whose weights are no longer those that it began with.
        """
        sampled = not isinstance(self.learner.recipe.planner, NoRollouts)
        prove(self.policy, self.agent, agreement, self.limits, sampled)
        if self.teacher is not None and (changed := self.teacher.changed()) is not None:
            raise DisagreementError(f"a teacher stays as it is: {changed}")

    def numbers(self) -> dict[str, float | None]:
        """Numbers for the record, in half precision: the model's rounding, and what a merge keeps of the adapters."""
        kept = self.policy.survival
        merge = {} if kept is None else {"merge/update_share": kept.update, "merge/adapter_share": kept.adapter}
        return {**self.limits.numbers(), **merge}

    def is_finite(self) -> bool:
        """Whether all weights in training, and all weights of the sampler, are finite."""
        trained = (weights for group in self.learner.optimizer.param_groups for weights in group["params"])
        return all(bool(weights.isfinite().all()) for weights in chain(trained, self.policy.sampler.parameters()))

    def halve_microbatches(self) -> None:
        """Halve optimizer.microbatch_tokens from now on."""
        self.leader.tell("halve", side=self.name)
        self.learner.halve_microbatches()

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Everything that a checkpoint needs, as (JSON values, tensors)."""
        learner, tensors = self.learner.state_dict()
        policy = {f"{POLICY}{k}": v for k, v in self.policy.trainable_state().items()}
        past = self.policy.past.before(self.policy.version)
        earlier = {f"{past_prefix(held.version)}{k}": v for held in past for k, v in held.tensors.items()}
        named = {f"{side_prefix(self.name)}{k}": v for k, v in {**policy, **earlier, **tensors}.items()}
        state = {"learner": learner, "buffer": self.buffer.state_dict(), "adapter_hash": self.policy.adapter_hash}
        if self.teacher is not None:
            state["teacher"] = self.teacher.weights
        if self.second is not None:
            state["second"] = self.second
        if self.ahead:
            state["past"] = {str(held.version): held.hash for held in past}
        return state, named

    def load(self, checkpoint: Checkpoint) -> None:
        """Inverse of ``state``. Raises ValueError where weights, its own or another model's, are not those of then.

        A checkpoint of an earlier version does not say what the second model's were.
        """
        state, tensors = checkpoint.state["sides"][self.name], checkpoint.side(self.name)
        if self.teacher is not None and state.get("teacher") != self.teacher.weights:
            raise ValueError(
                f"the run learned from a teacher with weights {state.get('teacher', 'of no name')}, and "
                f"{self.teacher.name} now has {self.teacher.weights}: put the earlier one back, or begin a new run"
            )
        if (drew := state.get("second", self.second)) != self.second:
            raise ValueError(
                f"the run drew tokens with a second model (agent.decoding.second) with weights {drew}, and it now has "
                f"{self.second}: put the earlier one back, or begin a new run"
            )
        self.leader.tell("load", tensors, side=self.name, learner=state["learner"], buffer=state["buffer"])
        restore(self.policy, self.learner, self.buffer, tensors, state)
        past = {str(held.version): held.hash for held in self.policy.past.before(checkpoint.update)}
        self.sync(checkpoint.update)
        if self.policy.adapter_hash != state["adapter_hash"] or past != state.get("past", {}):
            steered = self.policy.shift is not None
            raise ValueError(
                "the checkpoint does not restore the weights it was saved from"
                + (": is agent.decoding.steering.file what it was then?" if steered else "")
            )
