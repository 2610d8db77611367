"""A bigram policy that satisfies Scorer, and a text world of one-token observations for it to learn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from turnwise.learning.answers import Target
from turnwise.learning.learner import Learner
from turnwise.learning.planning import Reading
from turnwise.learning.recipe import Recipe
from turnwise.learning.settings import OptimizerConfig, RewardSettings, RunInfo
from turnwise.replay.batch import TokenBatch
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group, Task, Trajectory, Turn

torch.set_num_threads(1)
VOCABULARY = 9
TEN = RewardSettings(scale=10.0)
"""As verl-agent has it: a success is worth 10, and a turn without a valid action costs 0.1."""
NUM_ACTIONS = 4  # tokens 0..3 act, 4..7 are observations, 8 fills prompts


def logprobs_from_logits(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token, [..., V] and [...] -> [...] nats."""
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy of the next-token distribution over the whole vocabulary, [..., V] -> [...] nats.

    A logit of -inf (an excluded token) counts as probability 0; finite logits of any size stay finite.
    """
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)


@dataclass(frozen=True)
class FakeScores:
    logprobs: Tensor
    entropies: Tensor | None = None
    hidden: Tensor | None = None
    readings: tuple[Tensor, ...] = ()


class BigramPolicy:
    """Logits of the next token are a row of a table: learnable, exact, and fast."""

    def __init__(self, seed: int = 0, scale: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(scale * torch.randn(VOCABULARY, VOCABULARY, generator=generator))
        reference = torch.Generator().manual_seed(1000)
        self.frozen = 0.5 * torch.randn(VOCABULARY, VOCABULARY, generator=reference)
        self.calls: list[str] = []

    def parameters(self) -> Iterable[nn.Parameter]:
        return [self.table]

    hidden_size = VOCABULARY

    def score(
        self,
        batch: TokenBatch,
        *,
        entropy: bool,
        reference: bool = False,
        hidden: bool = False,
        readings: Sequence[Reading] = (),
    ) -> FakeScores:
        self.calls.append("reference" if reference else "entropy" if entropy else "logprobs")
        table = self.frozen if reference else self.table
        previous = torch.cat([batch.tokens[:, :1], batch.tokens[:, :-1]], dim=1)
        logits = table[previous]
        off = ~batch.action_mask
        logprobs = logprobs_from_logits(logits, batch.tokens).masked_fill(off, 0.0)
        entropies = entropy_from_logits(logits).masked_fill(off, 0.0) if entropy else None
        rows, targets = logits[batch.action_mask], batch.tokens[batch.action_mask]
        states = torch.eye(VOCABULARY)[previous[batch.action_mask]]  # the table is the head's weight
        read = (torch.zeros_like(logprobs).masked_scatter(~off, each(rows, targets, states)) for each in readings)
        return FakeScores(logprobs, entropies, rows if hidden else None, tuple(read))


def task(index: int = 0) -> Task:
    return Task("fake", "train", index, key=f"task-{index}")


@dataclass(frozen=True)
class Sampler:
    """The policy's table as numpy, computed once: probabilities, log-probs [V, V] and entropies [V]."""

    probs: np.ndarray
    logprobs: np.ndarray
    entropies: np.ndarray
    rng: np.random.Generator

    @classmethod
    def of(cls, policy: BigramPolicy, rng: np.random.Generator) -> Sampler:
        table = policy.table.detach()
        every = torch.arange(VOCABULARY).expand(VOCABULARY, -1)
        logprobs = logprobs_from_logits(table.unsqueeze(1).expand(-1, VOCABULARY, -1), every)
        probs = table.double().softmax(-1).numpy()
        return cls(probs.cumsum(1), logprobs.numpy(), entropy_from_logits(table).numpy(), rng)

    def turn(self, observation: int, num_actions: int, *, continues: bool) -> Turn:
        """Sample ``num_actions`` tokens after an observation that follows one to three tokens of filler."""
        context = [observation]
        for draw in self.rng.random(num_actions):
            context.append(min(int(self.probs[context[-1]].searchsorted(draw)), VOCABULARY - 1))
        ids = np.array(context[1:], np.int32)
        return Turn(
            observation=f"see {observation}",
            prompt_ids=np.array([8] * int(self.rng.integers(1, 4)) + [observation], np.int32),
            continues=continues,
            action_ids=ids,
            logprobs=self.logprobs[context[:-1], ids],
            entropies=self.entropies[context[:-1]],
            reply=" ".join(map(str, ids)),
            action=str(ids[:1]),
            valid=bool(num_actions and ids[0] < 8),
            reward=float(num_actions > 0 and ids[0] == observation - NUM_ACTIONS),
        )


def episode(
    sampler: Sampler,
    *,
    index: int = 0,
    sample: int = 0,
    num_turns: int = 3,
    windowed: bool = False,
    version: int = 0,
    num_actions: int = 2,
) -> Trajectory:
    """Each turn shows an observation 4 + a; the reward is 1 for a turn whose first token is a."""
    turns = []
    for n in range(num_turns):
        observation = NUM_ACTIONS + int(sampler.rng.integers(NUM_ACTIONS))
        turns.append(sampler.turn(observation, num_actions, continues=n > 0 and not windowed))
    total = sum(t.reward for t in turns)
    return Trajectory(
        episode=f"{index}-{sample}-{version}",
        task=task(index),
        seed=index,
        sample=sample,
        turns=tuple(turns),
        end="terminated",
        success=total == num_turns,
        score=total,
        policy_version=version,
    )


def groups(
    policy: BigramPolicy,
    seed: int = 0,
    *,
    num_groups: int = 3,
    size: int = 4,
    num_turns: int | None = None,
    windowed: bool = False,
    version: int = 0,
) -> list[Group]:
    """Groups of episodes with one to four turns each, or with ``num_turns``."""
    rng = np.random.default_rng([seed, version])
    sampler, made = Sampler.of(policy, rng), []
    for index in range(num_groups):
        lengths = rng.integers(1, 5, size=size) if num_turns is None else [num_turns] * size
        members = [
            episode(sampler, index=index, sample=s, windowed=windowed, version=version, num_turns=int(n))
            for s, n in enumerate(lengths)
        ]
        made.append(Group(task(index), tuple(members)))
    return made


class FourIsRight:
    """References of tasks that tell nothing: in all of them the answer is token 4, after token 8, or 5 and 6."""

    def targets(self, episode: Trajectory) -> list[Target]:
        return [Target(np.array([8, 4], np.int32), 1), Target(np.array([5, 6], np.int32), 0)]


def learner(recipe: Recipe, policy: BigramPolicy, run: RunInfo | None = None, **optimizer: object) -> Learner:
    settings = {"lr": 0.05, "weight_decay": 0.0, **optimizer}
    config = OptimizerConfig(**settings)  # type: ignore[arg-type]
    info = run or RunInfo(num_updates=10, group_size=4, rewards=TEN)
    teacher = BigramPolicy(77) if recipe.needs_teacher else None
    return Learner(recipe, policy, config, info, teacher=teacher, references=FourIsRight())


def buffer_of(made: list[Group], update: int = 0) -> TrajectoryBuffer:
    buffer = TrajectoryBuffer()
    buffer.add(made, update)
    return buffer
