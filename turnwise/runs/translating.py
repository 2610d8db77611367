"""Reading the configurations of format 1, in which rewards were part of the algorithm's section.

In format 1 each algorithm has ``reward_scale`` and ``invalid_action_penalty``, and settings in units of reward are
absolute numbers. In format 2 the run has a section ``rewards``, and such settings are shares of a success. Runs of
format 1 can still be measured, compared, viewed and exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def translated(raw: Any) -> Any:
    """A stored configuration in format 2; one that is in format 2 already stays as it is."""
    if not isinstance(raw, Mapping):
        return raw
    made = dict(raw)
    clone = made.get("warmstart")
    if isinstance(clone, Mapping) and "lora" not in clone:  # before, every model was cloned with all its weights
        made["warmstart"] = {**clone, "lora": None}
    if isinstance(agent := made.get("agent"), Mapping):
        made["agent"] = {"examples": 0, **agent}  # a run from before there were examples
    if isinstance(rollout := made.get("rollout"), Mapping):
        made["rollout"] = {"backend": "own", **rollout}  # ... or another engine
    model = made.get("model")
    if isinstance(model, Mapping) and model.get("type") == "scratch":  # ... or induction heads at initialisation
        made["model"] = {"induction_heads": False, **model}
    rollout = made.get("rollout")
    if isinstance(rollout, Mapping) and "engines" in rollout:  # processes that sampled, for one collector
        made["rollout"] = {k: v for k, v in rollout.items() if k != "engines"}
    algorithm = made.get("algorithm")
    if isinstance(algorithm, Mapping):
        made["algorithm"] = algorithm = _as_before(algorithm)
    if "rewards" in made or not isinstance(algorithm, Mapping):
        return made
    innermost = _innermost(algorithm)
    scale = float(innermost.get("reward_scale", 1.0))  # one from outside may have none
    if "reward_scale" in innermost:
        penalty = float(innermost.get("invalid_action_penalty", 0.0)) / scale
        made["rewards"] = {"scale": scale, "invalid_action_penalty": penalty}
    made["algorithm"] = _relative(algorithm, scale, divides=_divides(algorithm))
    return made


_BEFORE: Mapping[Any, Mapping[str, Any]] = {"hapo": {"heat": 0.0}, "graphgpo": {"states": "anchor"}}
"""What was so before an algorithm had the setting: HAPO's temperature, GraphGPO's keys of states."""


def _as_before(algorithm: Mapping[str, Any]) -> Mapping[str, Any]:
    """An algorithm of a run from before it had some settings, on any base."""
    below, own = algorithm.get("base"), _BEFORE.get(algorithm.get("type"), {})
    return {**own, **algorithm, **({"base": _as_before(below)} if isinstance(below, Mapping) else {})}


def _innermost(algorithm: Mapping[str, Any]) -> Mapping[str, Any]:
    base = algorithm.get("base")
    return _innermost(base) if isinstance(base, Mapping) else algorithm


def _divides(algorithm: Mapping[str, Any]) -> bool:
    """Whether the algorithm divides its advantages by their standard deviation."""
    base = _innermost(algorithm)
    return bool(base.get("normalize_std", base.get("whiten", base.get("type") == "reinforce_pp")))


def _relative(section: Mapping[str, Any], scale: float, *, divides: bool) -> dict[str, Any]:
    """The section with its settings in units of reward divided by ``scale``, which makes them shares of a success.

    Settings in units of advantages are divided too, unless the advantages are divided by their standard deviation.
    """
    made: dict[str, Any] = {}
    kind = section.get("type")
    for name, value in section.items():
        if name in ("reward_scale", "invalid_action_penalty"):
            continue
        if isinstance(value, Mapping):
            made[name] = _relative(value, scale, divides=divides)
        elif name == "std_eps" and not section.get("normalize_std", True):
            continue  # it had no effect
        elif _is_relative(kind, name, divides) and isinstance(value, int | float):
            made[name] = value / scale
        else:
            made[name] = value
    if kind == "epo" and section.get("form") != "released":
        made.setdefault("weighting", "turns")  # every turn weighed the same
    if kind == "spear":
        made["normalize_std"] = bool(section.get("normalize_std", False))
    return made


def _is_relative(kind: Any, name: str, divides: bool) -> bool:
    overlong = kind is None and name == "penalty"  # DAPO's section; AEPO's penalty is a share of its own
    if name in ("std_eps", "value_clip") or overlong or (kind == "spear" and name == "bonus_coef"):
        return True
    if divides:
        return False
    covariance = name in ("low", "high")
    added = name in ("kl_coef", "entropy_coef", "penalty_coef") or (kind == "empg" and name == "bonus_coef")
    return covariance or added
