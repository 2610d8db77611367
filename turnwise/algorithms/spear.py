"""SPEAR: self-imitation with progressive exploration (Qin et al. 2025, arXiv 2509.22601), on a base.

First a bonus draws the agent into acting, then its own good episodes are imitated ever more:

    R     = R_base + mu(s) min(1, 0.1 * turns)                        mu: a cosine from a tenth of a success to 0
    D     = trajectories of recent updates with A > 0, with the rewards they had
    P50   = median of the recent groups' mean returns
    A~    = R - P50;  replayed where A~ > 0                           over P50 of the groups' stds, if the base divides
    J     = J_base + gamma(s) J_D                                     gamma: a cosine from 0 to 1
    Clip-Cov on both: some tokens of high covariance of A and log pi are left out of the gradient

The ratio's denominator is the behaviour's. s counts updates from 1. The base is Dr.BoT (GRPO without std, KL and length
bias, with filters), or GiGPO or any other; the replayed advantage compares returns in every case, in the unit of the
base's. No regularizer of the base acts on the replay, and the bonus is no part of any turn's own return.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field, model_validator

from turnwise.algorithms.clip_cov import CovarianceFilter
from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.drbot import DrBoTConfig, ReplyFilter
from turnwise.algorithms.selfimitation import STREAM, Recalibrated, ReplaySettings, SelfImitation, StoredAdvantage
from turnwise.errors import UnusedSettingError
from turnwise.learning.parts import ClipPolicy, Schedule
from turnwise.learning.planning import Scorer
from turnwise.learning.recipe import About, Recipe, StreamRecipe
from turnwise.learning.rewards import RewardTable
from turnwise.learning.schedules import constant_weight, cosine_fall, cosine_rise
from turnwise.learning.settings import RunInfo, Settings
from turnwise.trajectory import Trajectory

ABOUT = About(
    title="Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic "
    "Reinforcement Learning",
    arxiv="2509.22601",
    kind="replay",
    code="TencentYoutuResearch/SPEAR 7e843151 (verl-agent)",
    differences=(
        "Paper: J + gamma J_D is one objective. Released: replay takes optimizer steps of its own (phases=sequential).",
        "Replayed in every update. Released: only once 1.5 buffers lie above P50, then the buffer is emptied "
        "(replay=when_full).",
        "Whole trajectories are kept and drawn. Released: single step rows (unit=row), a power of two of them "
        "(powers=true).",
        "Paper: A~ > 0. Released for the agent worlds: A~ >= 0 (keep=at_least); its selection then fails with an "
        "IndexError as soon as a stored row has A~ < 0, which is not reproduced.",
        "Ages count from now. Released: from the newest update that anything was kept of (age_from=newest).",
        "Schedules span shares of the run. Released: 200 updates each (warmup_updates, bonus_updates); the scripts "
        "name 100 for ALFWorld and never pass it.",
        "Clip-Cov leaves out 2 % of the tokens, fresh ones (README: 1 < cov < 40) and replayed ones (scripts: 2 < "
        "cov < 60). Released scripts: 2e-4 of the fresh ones with 1 < cov < 5 (fresh_clip). A success is worth 10 "
        "there; here bounds and bonus are shares of a success: 0.1 to 4, 0.2 to 6, 0.1.",
        "On a base that divides by the groups' deviation, the replay divides by the P50 of those deviations, over the "
        "groups that differ at all. Released: not, so that replayed advantages are in units of reward "
        "(normalize_std=false).",
        "Nothing but the surrogate acts on the replay; released: an entropy bonus of 0.001 too.",
    ),
    sources={
        "base": "Dr.BoT: paper",
        "replay": "J is one objective in the paper; released: when_full",
        "phases": "paper; released: sequential",
        "unit": "paper; released: row",
        "buffer_size, baseline_groups": "released",
        "draw, powers": "released: buffer_size, a power of two",
        "tolerance, age_from": "scripts; released: newest",
        "keep": "paper; released for the agent worlds: at_least",
        "normalize_std": "released: false",
        "recalibrate, advantage_decay": "false: the advantage of the time of collection, times w, without a threshold",
        "replay_coef, warmup_share": "the scripts' 100 of 200 updates, which they never pass on, so it is 200 there",
        "bonus_coef, bonus_per_turn, bonus_course": "released: 1, where a success is worth 10",
        "bonus_share": "released: 200 of 200 updates (bonus_updates)",
        "fresh_clip": "README: 2 %, 1 < cov < 40 of a success worth 10; scripts: 0.02 %, 1 < cov < 5",
        "replay_clip": "released, agent worlds: 2 < cov < 60 of a success worth 10",
    },
)


class CovarianceSettings(Settings):
    """Clip-Cov on one stream."""

    share: float = Field(default=0.02, gt=0, le=1, description="Share of action tokens left out, at least one.")
    low: float = Field(
        default=0.1,
        description="Covariance above which a token may be drawn, nats times the advantage's unit: a success, or a "
        "standard deviation where the base divides by it.",
    )
    high: float = Field(default=4.0, description="Covariance below which a token may be drawn, in the same unit.")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> CovarianceSettings:
        if self.low >= self.high:
            raise ValueError(f"low < high is what a token is drawn between; got low={self.low}, high={self.high}")
        return self


class SPEARConfig(ReplaySettings):
    """SPEAR's settings."""

    type: Literal["spear"] = "spear"
    base: AnyAlgorithm = Field(
        default=DrBoTConfig(), description="The algorithm that the fresh episodes are trained by."
    )
    phases: Literal["joint", "sequential"] = Field(
        default="joint", description="Replay within the fresh minibatches' steps, or in steps after them (released)."
    )
    replay_coef: float = Field(default=1.0, ge=0, description="Weight of the replay after its warm-up; 0: no replay.")
    warmup_share: float = Field(default=0.5, gt=0, description="Share of the run over which the weight rises.")
    warmup_updates: int | None = Field(default=None, ge=1, description="The same in updates; null: warmup_share.")
    bonus_coef: float = Field(
        default=0.1,
        ge=0,
        description="Bonus of a long episode at the start, as a share of a success (mu; paper: 1 of 10); 0: none.",
    )
    bonus_per_turn: float = Field(
        default=0.1, gt=0, description="Share of the bonus that a turn earns, up to the whole."
    )
    bonus_course: Literal["cosine", "constant"] = Field(
        default="cosine", description="Course of the bonus over the run."
    )
    bonus_share: float = Field(default=1.0, gt=0, description="Share of the run over which the bonus falls to 0.")
    bonus_updates: int | None = Field(default=None, ge=1, description="The same in updates; null: bonus_share.")
    fresh_clip: CovarianceSettings | None = Field(
        default=CovarianceSettings(), description="Clip-Cov on fresh tokens; null: none."
    )
    replay_clip: CovarianceSettings | None = Field(
        default=CovarianceSettings(low=0.2, high=6.0), description="Clip-Cov on replayed tokens; null: none."
    )

    @model_validator(mode="after")
    def _consistent(self) -> SPEARConfig:
        if self.warmup_updates is not None and self.changed("warmup_share"):
            raise UnusedSettingError(
                "warmup_share", "warmup_updates and warmup_share say the same thing; set one of them"
            )
        if self.bonus_updates is not None and self.changed("bonus_share"):
            raise UnusedSettingError("bonus_share", "bonus_updates and bonus_share say the same thing; set one of them")
        if self.bonus_course == "constant" and (self.bonus_updates is not None or self.changed("bonus_share")):
            raise UnusedSettingError(
                ("bonus_updates", "bonus_share"),
                "bonus_course=constant never falls: bonus_updates and bonus_share have no effect",
            )
        if not self.recalibrate and (self.changed("keep") or self.normalize_std is not None):
            raise UnusedSettingError(
                ("keep", "normalize_std"), "recalibrate=false imitates with the advantages of the time of collection"
            )
        if self.recalibrate and self.changed("advantage_decay"):
            raise UnusedSettingError("advantage_decay", "advantage_decay belongs to recalibrate=false")
        idle = {"phases", "replay_clip", "warmup_share", "warmup_updates", *ReplaySettings.model_fields}
        if not self.replay_coef and (unused := [name for name in sorted(idle) if self.changed(name)]):
            raise UnusedSettingError(
                tuple(unused), f"replay_coef=0 replays nothing: {', '.join(unused)} would have no effect"
            )
        return self


@dataclass(frozen=True, slots=True)
class StepBonus:
    """min(1, per_turn * turns) * coef * course, added to the return of every episode as a whole, won or lost.

    ``coef`` is in reward units. No turn earned it: step returns, as GiGPO compares them, are without it.
    The course is a function of the update, by default the policy's version: an episode keeps the bonus of its own time.
    """

    coef: float
    per_turn: float
    course: Schedule
    update: int | None = None

    def at(self, update: int) -> StepBonus:
        return replace(self, update=update)

    def shape(self, trajectories: Sequence[Trajectory], rewards: RewardTable, scorer: Scorer) -> RewardTable:
        updates = [t.policy_version if self.update is None else self.update for t in trajectories]
        bonuses = [self.bonus(len(t.turns), update) for t, update in zip(trajectories, updates, strict=True)]
        return rewards.with_extra(bonuses)

    def bonus(self, num_turns: int, update: int) -> float:
        return self.coef * min(1.0, self.per_turn * num_turns) * self.course(update)


def on_behaviour(clip: ClipPolicy) -> ClipPolicy:
    """The clip with log-probs of the time of collection under the ratio: of another policy they are the honest ones."""
    made = copy(clip)
    made.needs = clip.needs - {"proximal"}
    return made


def recipe(config: SPEARConfig, run: RunInfo) -> Recipe:
    """Compose SPEAR on its base. Raises ValueError for a base that has no surrogate, or that replays already."""
    made = base_recipe(config.base, run).named("spear")
    fresh = made["fresh"].open_to("spear")
    if fresh.clip is None:
        raise ValueError("spear imitates with a policy surrogate; its base has none")
    if STREAM in made.composer.streams:
        raise ValueError("spear's base replays already (is it spear on spear?); one replay is enough")
    if config.bonus_coef:
        coef = config.bonus_coef * run.rewards.success
        made = made.with_shaper(StepBonus(coef, config.bonus_per_turn, _course(config, run)))
    if config.fresh_clip is not None:
        made = made.with_weighter(_clip_cov(fresh.clip, config.fresh_clip))
    return made if not config.replay_coef else _with_replay(made, config, run)


def _with_replay(made: Recipe, config: SPEARConfig, run: RunInfo) -> Recipe:
    fresh = made["fresh"]
    assert fresh.clip is not None
    if config.normalize_std is None:
        config = config.model_copy(update={"normalize_std": fresh.unit == "deviation"})
    memory = SelfImitation(made.composer, config, _weight(config, run), run.seed, made.keep_updates)
    clip = on_behaviour(fresh.clip)
    replay = StreamRecipe(
        name=STREAM,
        estimator=Recalibrated(memory, 1e-6 * run.rewards.success) if config.recalibrate else StoredAdvantage(memory),
        modifiers=tuple(part for part in fresh.modifiers if isinstance(part, ReplyFilter)),
        clip=clip,
        aggregation=fresh.aggregation,
        weighters=() if config.replay_clip is None else (_clip_cov(clip, config.replay_clip),),
    )
    longest = config.tolerance if config.age_from == "now" else run.num_updates
    return replace(
        made,
        composer=memory,
        streams=(*made.streams, replay),
        phases=config.phases,
        keep_updates=max(made.keep_updates, longest),
    ).checked()


def _clip_cov(clip: ClipPolicy, limits: CovarianceSettings) -> CovarianceFilter:
    return CovarianceFilter(clip, limits.share, limits.low, limits.high)


def _weight(config: SPEARConfig, run: RunInfo) -> Schedule:
    """gamma of an update."""
    span = config.warmup_updates or config.warmup_share * run.num_updates
    return lambda update: config.replay_coef * cosine_rise(update + 1, span)


def _course(config: SPEARConfig, run: RunInfo) -> Schedule:
    """mu of an update."""
    if config.bonus_course == "constant":
        return constant_weight
    span = config.bonus_updates or config.bonus_share * run.num_updates
    return lambda update: cosine_fall(update + 1, span)
