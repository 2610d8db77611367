"""Settings of behaviour cloning. This module imports no torch, so that reading settings is quick."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from turnwise.models.settings import LoRAConfig

EXPERT = "expert"

PRETRAINED: Mapping[str, Any] = {
    "muon_lr": 0.0,
    "adamw_lr": 1e-3,
    "warmup_steps": 5,
    "cooldown_share": 0.5,
    "batch_episodes": 4,
    "max_tokens": 100_000,
    "observation_weight": 0.0,
    "microbatch_tokens": 1024,
}
"""Settings of a warm start for a pretrained model, in the place of the defaults, which are for a small one of ours.

It speaks already: some ten thousand tokens of demonstrations teach it how to act, and adapters are enough for that.
"""


PRETRAINED_TAKEOVERS: Mapping[str, Any] = {"episodes": 64, "tokens": 20_000}
"""Settings of its takeovers, where there are any."""

SMALL_BATCH = 8
"""With as many demonstrations in a step, or fewer, the rates fall to 0 where nothing else is said."""


def for_pretrained(given: Mapping[str, Any], lora: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a warm start for a pretrained model: those that are given, and the usual ones for the others.

    ``lora`` are the run's own adapters, which RL trains on: the warm start makes one like them.
    """
    whole = "lora" in given and given["lora"] is None  # all weights, at the usual rates
    usual = {name: value for name, value in PRETRAINED.items() if not whole or name == "microbatch_tokens"}
    if given.get("num_steps") is not None:  # which says how large a batch is
        usual.pop("batch_episodes", None)
    takeovers = given.get("takeovers")
    if isinstance(takeovers, Mapping):
        given = {**given, "takeovers": {**PRETRAINED_TAKEOVERS, **takeovers}}
    return {**usual, **({} if whole else {"lora": dict(lora)}), **given}


class TakeoversConfig(BaseModel):
    """Rounds in which the expert takes over episodes of the learner (DAgger, Ross et al. 2011, arXiv:1011.0686)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(2, ge=1, description="rounds after the demonstrations: play, take over, learn")
    episodes: int = Field(
        256, ge=1, description="episodes that the learner plays in a round; each is taken over (pretrained: 64)"
    )
    tokens: int = Field(
        300_000, ge=1, description="tokens to learn in a round, those of its demonstrations too (pretrained: 20000)"
    )
    demonstration_share: float = Field(
        0.4,
        ge=0,
        le=1,
        description="share of demonstrations among the episodes learned in a round; 1: no takeovers, for comparison",
    )
    disagreement_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of takeovers at a turn where the expert would act differently; the others: at any turn",
    )
    lost_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="least share of takeovers that are of episodes which the learner lost: where there are too few, "
        "each is taken over up to four times, at turns that are drawn anew",
    )
    rate_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="rates at the first round's beginning, as a share of muon_lr and adamw_lr; they fall to 0 over all "
        "rounds",
    )


class WarmstartConfig(BaseModel):
    """Behaviour cloning. It ends when sampled success reaches ``stop_success``, or after ``max_tokens``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(
        EXPERT,
        validation_alias=AliasChoices("from", "source"),
        description="also written `from`. expert: the world's; the folder of a run: its won episodes; FILE.jsonl: "
        'chats, each a line {"messages": [{"role": ..., "content": ...}, ...]}',
    )
    max_per_task: int = Field(4, ge=1, description="of a run: won episodes of one task, at most")
    expert: str = Field("searching", description="which expert demonstrates")
    env: str | None = Field(
        None, description="gymnasium id of another world with the same words to demonstrate in; None: the run's own"
    )
    env_kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments of warmstart.env")
    own_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the run's own world among demonstrations and episodes of takeovers; the others are of "
        "warmstart.env",
    )
    split: str = Field(
        "demonstrations",
        description="split whose tasks are demonstrated; train in a world without a split demonstrations",
    )
    noise: float = Field(0.2, ge=0, le=1, description="share of turns at which a random action is played")
    noise_stale: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the noise that plays an action which was admissible earlier and is not now",
    )
    noise_excludes: tuple[str, ...] = Field(
        ("help",), description="actions that noise never plays, such as a long help text"
    )
    expert_jitter: bool = Field(True, description="seed the expert per episode, so that demonstrations vary")
    only_successes: bool = Field(True, description="leave failed demonstrations out")
    num_demonstrations: int | None = Field(
        None, ge=1, description="make so many demonstrations and repeat them, for slow worlds; None: always new ones"
    )
    lora: LoRAConfig | None = Field(
        None,
        description="train adapters of this rank, in float32, and leave the weights alone (the usual for a pretrained "
        "model); None: train all weights",
    )
    batch_episodes: int = Field(16, ge=1, description="demonstrations per optimizer step (pretrained: 4)")
    num_steps: int | None = Field(
        None,
        ge=1,
        description="divide max_tokens into so many optimizer steps, whatever the length of a demonstration; None: "
        "batch_episodes decides",
    )
    microbatch_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens in one forward, equal beginnings of rows once; memory only, no effect on the result "
        "(pretrained: 1024). None: all at once",
    )
    max_tokens: int = Field(
        4_000_000,
        ge=0,
        description="most tokens of demonstrations to train on (pretrained: 100000); 0: only the takeovers, of a model "
        "that was cloned before",
    )
    observation_weight: float = Field(
        0.1, ge=0, description="loss weight of observation tokens (actions: 1; pretrained: 0)"
    )
    token_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of a step's reply tokens that is trained: those of the highest cross-entropy, less "
        "entropy_coef times their entropy (Entropy-SFT); 1: all",
    )
    entropy_coef: float = Field(
        0.8, ge=0, description="of token_share: what a nat of entropy takes from a token's score"
    )
    muon_lr: float = Field(0.02, ge=0, description="Muon's rate on weight matrices; 0: AdamW for all (pretrained: 0)")
    adamw_lr: float = Field(
        4e-3, gt=0, description="AdamW's rate on all else: embeddings and norms, or adapters (pretrained: 1e-3)"
    )
    warmup_steps: int = Field(30, ge=0, description="optimizer steps of linear warm-up (pretrained: 5)")
    cooldown_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="last share of max_tokens, over which the rates fall to 0 linearly; None: 0.5 with num_steps and "
        f"with at most {SMALL_BATCH} demonstrations a step, else 0 (pretrained: 0.5)",
    )
    tokenizer_episodes: int = Field(400, ge=1, description="demonstrations whose text trains a scratch tokenizer")
    stop_success: float | None = Field(
        None,
        gt=0,
        le=1,
        description="stop at this sampled success on stop_split; None: run to max_tokens, unmeasured; 1: measure",
    )
    stop_split: str = Field("validation", description="split on which stop_success is measured")
    stop_tasks: int = Field(256, ge=1, description="tasks of stop_split to measure on")
    check_every: int = Field(150_000, ge=1, description="tokens between two measurements of stop_success")
    takeovers: TakeoversConfig | None = Field(
        None, description="then rounds in which the expert takes over the learner's own episodes (DAgger); None: none"
    )

    @property
    def cooldown(self) -> float:
        """``cooldown_share``, or what holds where it is not given."""
        if self.cooldown_share is not None:
            return self.cooldown_share
        return 0.5 if self.num_steps is not None or self.batch_episodes <= SMALL_BATCH else 0.0

    @property
    def is_own(self) -> bool:
        """Whether the run's own world is demonstrated, alone or beside another."""
        return self.env is None or self.own_share > 0

    @model_validator(mode="after")
    def _apart(self) -> WarmstartConfig:
        if self.env_kwargs and self.env is None:
            raise ValueError("env_kwargs are of warmstart.env, which is not set; the run's own world has env.kwargs")
        if self.own_share and self.env is None:
            raise ValueError(
                f"own_share={self.own_share:g} leaves the rest to warmstart.env, which is not set: name that world, or "
                "leave own_share out"
            )
        if self.is_own and self.split == self.stop_split:
            raise ValueError(
                f"split and stop_split are both {self.split!r}: success would be measured on the demonstrations"
            )
        if self.token_share == 1 and self.entropy_coef != type(self).model_fields["entropy_coef"].default:
            raise ValueError("entropy_coef is of token_share, and token_share=1 trains all tokens: set token_share=0.8")
        if self.lora is not None and self.muon_lr:
            raise ValueError("muon_lr is for whole weight matrices, and lora trains adapters: set muon_lr=0")
        if not self.max_tokens and (self.takeovers is None or self.num_steps is not None):
            raise ValueError(
                "max_tokens=0 leaves nothing to learn"
                if self.takeovers is None
                else "num_steps divides max_tokens, which is 0: give batch_episodes"
            )
        if self.num_steps is not None and self.batch_episodes != type(self).model_fields["batch_episodes"].default:
            raise ValueError("num_steps and batch_episodes both say how large a step is: give one of them")
        return self
