"""What is added to a recipe whose episodes are played ahead: by the weights of some updates before (``rollout.ahead``).

PPO's ratio has two tasks: it says how the policy differs from the one that sampled, and its clip limits how far an
update moves. Where the sampler is older these are two policies. By default the recipe keeps its clip around the
sampler; with ``stale.correction=decoupled`` the objective is decoupled (Hilton et al. 2022, arXiv 2110.00641; for
language models AReaL, Fu et al. 2025, arXiv 2505.24298, equation 5):

    loss = -mean( w * min(r * A, clip(r, 1 - low, 1 + high) * A) )       over action tokens
    r    = pi_theta / pi_proximal          pi_proximal: the policy at the start of the update
    w    = pi_proximal / pi_behaviour      pi_behaviour: the policy that sampled; no gradient
    w    = min(w, cap)                     truncated, as IMPALA truncates (Espeholt et al. 2018, arXiv 1802.01561)
    w    = 0 where w > cap                 with ``beyond=drop``: the token is left out

Where both are the same policy, w = 1 and the loss is that of the recipe. r stands for whatever ratio the recipe's clip
makes from these log-probs, such as GSPO's. Only the stream of fresh episodes is changed. A replay knows how it treats
earlier episodes; an objective without a surrogate has no ratio.
"""

from __future__ import annotations

from turnwise.algorithms.common import TruncatedImportance
from turnwise.learning.parts import Part
from turnwise.learning.planning import NoRollouts
from turnwise.learning.recipe import Recipe, layers
from turnwise.learning.settings import RunInfo, Settings, StaleSettings, setting_name

_FRESH = "fresh"


def ready_for_stale(made: Recipe, run: RunInfo, config: Settings) -> Recipe:
    """The recipe of ``config``, for episodes that are played ``run.ahead`` updates before they are learned from.

    Raises ValueError where its planner keeps something of one update for the next, or does not say that it keeps
    nothing, where its temperatures do, and for a correction that does not fit the recipe.
    """
    if isinstance(made.planner, NoRollouts):
        raise ValueError(f"rollout.ahead={run.ahead}: {made.name} plays nothing here: set rollout.ahead=0")
    if made.heating is not None:
        raise ValueError(
            f"rollout.ahead={run.ahead}: {made.name} takes its temperatures ({type(made.heating).__name__}) from the "
            "update before, which is not over when the next one is played: set rollout.ahead=0, or "
            f"{setting_name(config, made.heating.setting)}=0"
        )
    for layer in layers(made.planner):
        remembers = isinstance(layer, Part) or getattr(layer, "remembers", None)
        if remembers is None:
            raise ValueError(
                f"rollout.ahead={run.ahead}: the planner of {made.name} ({type(layer).__name__}) does not say whether "
                "it keeps something of one update for the next: give it `remembers = False` where it keeps nothing, or "
                "set rollout.ahead=0"
            )
        if remembers:
            raise ValueError(
                f"rollout.ahead={run.ahead}: the planner of {made.name} ({type(layer).__name__}) keeps something of "
                "one update for the next, which is played before that update is over: set rollout.ahead=0"
            )
    return corrected(made, run.stale) if any(stream.name == _FRESH for stream in made.streams) else made


def corrected(made: Recipe, stale: StaleSettings) -> Recipe:
    """The recipe with the correction of ``stale`` on its fresh stream. Raises ValueError where it does not fit."""
    fresh = made[_FRESH]
    if any(isinstance(part, TruncatedImportance) for part in fresh.weighters):
        if stale != StaleSettings():
            raise ValueError(
                f"{made.name} corrects by itself (ratio_denominator=proximal, importance_cap): leave the section stale "
                "out, or set ratio_denominator=behaviour"
            )
        return made
    if fresh.clip is None or stale.correction == "none":
        return made
    for part in fresh.parts():
        if part.from_sampler:
            raise ValueError(
                f"{made.name} compares with the policy that sampled ({type(part).__name__}), which "
                "stale.correction=decoupled takes out of the ratio: set stale.correction=none"
            )
    for objective, _ in fresh.objectives:
        if outer := objective.outermost:
            raise ValueError(
                f"stale.correction=decoupled would correct one of {outer}'s two losses only: set "
                "algorithm.base.ratio_denominator=proximal, which corrects both, or stale.correction=none"
            )
    return made.with_weighter(TruncatedImportance(stale.cap, drop=stale.beyond == "drop"))
