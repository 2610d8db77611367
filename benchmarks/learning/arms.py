"""Arms: the runs of a setting by name, and those in which a paper's method is taken apart.

An arm is an algorithm with settings, one command. It is held against another arm, its base, which lacks what it adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

BASELINE = "grpo"
"""What methods are held against that have no arm of their own."""


@dataclass(frozen=True, slots=True)
class Arm:
    """An algorithm with settings of the command line. ``base`` names the arm that it is held against; None: none."""

    algorithm: str
    settings: tuple[str, ...] = ()
    base: str | None = None


def by_name(method: str) -> Arm:
    """A method with its documented defaults."""
    return Arm(method, base=None if method == BASELINE else BASELINE)


def _on(base: str, arms: Mapping[str, Arm], *of_base: str) -> Iterator[tuple[str, Arm]]:
    """``base`` with settings of its own, and arms on it: each has those settings, and the base's name before its own.

    ``of_base`` are settings without the place of the algorithm, such as ``drop_uniform_groups=false``.
    """
    yield base, Arm(base, tuple(f"algorithm.{word}" for word in of_base))
    given = (f"algorithm.base.type={base}", *(f"algorithm.base.{word}" for word in of_base))
    for name, arm in arms.items():
        yield f"{base}_{name}", replace(arm, settings=(*given, *arm.settings), base=base)


_KEPT = "drop_uniform_groups=false"
"""Groups that won or lost all attempts stay, so that all arms are trained on the same episodes."""

_EPO = {
    "bonus": Arm("epo", ("algorithm.corridor_coef=0",)),
    "epo": Arm("epo"),
    "lambda": Arm("epo", ("algorithm.entropy_coef=0.01",)),
    "corridor": Arm("epo", ("algorithm.corridor_coef=1",)),
    "lambda_corridor": Arm("epo", ("algorithm.entropy_coef=0.01", "algorithm.corridor_coef=1")),
}
EPO: Mapping[str, Arm] = dict([*_on("ppo", _EPO), *_on("grpo", _EPO, _KEPT)])
"""PPO and GRPO: alone, with the bonus alone, with the whole of EPO, with ten times its coefficient, and with a corridor
that outweighs the bonus, at either coefficient."""

_EMPG = {
    "scaling": Arm("empg", ("algorithm.bonus_coef=0",)),
    "bonus": Arm("empg", ("algorithm.scaling=0",)),
    "empg": Arm("empg"),
}
EMPG: Mapping[str, Arm] = dict([*_on("grpo", _EMPG, _KEPT), *_on("dapo", _EMPG, _KEPT)])
"""GRPO and DAPO: alone, with the scaling by sureness (k), with the bonus of a sure next turn (zeta), and with both."""

_ALL_GROUPS = ("algorithm.base.group_share=1",)
SPEAR: Mapping[str, Arm] = {
    "drbot": Arm("drbot", ("algorithm.group_share=1",)),
    "no_warmup": Arm("spear", (*_ALL_GROUPS, "algorithm.warmup_updates=1"), "drbot"),
    "no_recalibration": Arm("spear", (*_ALL_GROUPS, "algorithm.recalibrate=false"), "drbot"),
    "tolerance_50": Arm("spear", (*_ALL_GROUPS, "algorithm.tolerance=50"), "drbot"),
    "spear": Arm("spear", _ALL_GROUPS, "drbot"),
}
"""Dr.BoT without its filter of groups, and SPEAR on it: whole, and without one of its parts."""

_TREES = (f"algorithm.base.{_KEPT}", "algorithm.threshold=0.584")
"""A fifth of the turns of the clone's first update pass this threshold (trigger.py; seed 0)."""
AEPO: Mapping[str, Arm] = {
    "arpo": Arm("arpo", _TREES),
    "penalty_0": Arm("aepo", (*_TREES, "algorithm.penalty=0"), "arpo"),
    "aepo": Arm("aepo", _TREES, "arpo"),
    "penalty_0.2": Arm("aepo", (*_TREES, "algorithm.penalty=0.2"), "arpo"),
    "no_balance": Arm("aepo", (*_TREES, "algorithm.balance=false"), "arpo"),
    "no_clip": Arm("aepo", (*_TREES, "algorithm.balanced_clip=false"), "arpo"),
}
"""ARPO, and AEPO with other penalties of consecutive branchings, without the balanced budget, without its clip."""

COMPOSED: Mapping[str, Arm] = {
    "grpo": Arm("grpo"),
    "gigpo": Arm("gigpo", base="grpo"),
    "opo": Arm("opo", base="grpo"),
    "opo_spear": Arm("spear", ("algorithm.base.type=opo",), "grpo"),
}
"""A composition of what did best in the sweep, against GRPO, GiGPO and its base alone: OPO's advantages, with SPEAR's
replay and bonus."""
