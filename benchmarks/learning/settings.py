"""The settings of the learning benchmark: configurations, what is run in each, budgets. No training here.

Most settings hold every method against GRPO, by name. The others take one method apart, in a place where what its paper
claims can show: their runs are arms (arms.py), and they have measures of their own (effects.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from arms import AEPO, BASELINE, COMPOSED, EMPG, EPO, SPEAR, Arm, by_name

from turnwise.algorithms.registry import ALGORITHMS

TAUGHT = ("distill", "igpo", "empo")
"""Methods that learn from something other than rewards: a teacher, the right answer, votes. No budget makes them
comparable."""


@dataclass(frozen=True)
class Setting:
    """A shipped configuration with its panels, and the budget of a run and of a trial, in sampled tokens.

    ``tokens_per_update`` and the CPU seconds (per 1000 tokens, of a warm start, of a measurement of 100 tasks) come
    from earlier runs of EPO; the first spans the schedules of trials, the others only the estimate.
    """

    config: str
    panel: str
    tuning_panel: str
    budget: int
    num_seeds: int
    tokens_per_update: int
    cpu_s_per_1000: float
    warmstart_cpu_s: float
    measure_cpu_s: float
    test_tasks: int
    methods: tuple[str, ...] | None = None
    settings: tuple[str, ...] = ()
    untuned: tuple[str, ...] | None = None
    """What every method runs with where there are no trials; (): with the configuration's own rate.

    The configuration says everything else then, the budget too.
    """
    arms: Mapping[str, Arm] = field(default_factory=dict)
    """What is run in the place of methods by name. A run's length is then a number of updates."""

    def names(self) -> list[str]:
        """The arms, or the methods: the baseline first; None: every algorithm there is that learns from reward."""
        found = self.methods or tuple(name for name in ALGORITHMS if name not in TAUGHT)
        return list(self.arms) or sorted(found, key=lambda name: name != BASELINE)

    def arm(self, name: str) -> Arm:
        """What is run under a name."""
        return self.arms[name] if self.arms else by_name(name)

    @property
    def num_updates(self) -> int:
        """Updates of a whole budget, as far as one can know before the first run."""
        return max(1, round(self.budget / self.tokens_per_update))


def _taken_apart(name: str, arms: Mapping[str, Arm], **costs: Any) -> Setting:
    """A setting with arms, 100 updates each. The costs of EPO and AEPO come from pilots, the others from EPO's."""
    return Setting(
        config=f"learning/{name}",
        panel="test",
        tuning_panel="validation",
        budget=100 * costs["tokens_per_update"],
        num_seeds=3,
        measure_cpu_s=2.0,
        test_tasks=192,
        untuned=(),
        arms=arms,
        **costs,
    )


SETTINGS: Mapping[str, Setting] = {
    "household": Setting(
        config="learning/household",
        panel="test",
        tuning_panel="validation",
        budget=200_000,
        num_seeds=5,
        tokens_per_update=7_400,
        cpu_s_per_1000=0.46,
        warmstart_cpu_s=170.0,
        measure_cpu_s=1.8,
        test_tasks=256,
    ),
    "sweep": Setting(
        config="learning/sweep",
        panel="test",
        tuning_panel="validation",
        budget=40_000,
        num_seeds=3,
        tokens_per_update=4_000,
        cpu_s_per_1000=0.9,
        warmstart_cpu_s=65.0,
        measure_cpu_s=2.0,
        test_tasks=192,
        untuned=(),
    ),
    "alfworld": Setting(
        config="learning/alfworld",
        panel="valid_unseen",
        tuning_panel="valid_train",
        budget=200_000,
        num_seeds=3,
        tokens_per_update=9_400,
        cpu_s_per_1000=1.7,
        warmstart_cpu_s=800.0,
        measure_cpu_s=10.0,
        test_tasks=134,
        methods=("grpo", "epo", "empg", "spear", "aepo"),
        untuned=("optimizer.lr=1e-3",),
    ),
    "epo": _taken_apart("epo", EPO, tokens_per_update=5_000, cpu_s_per_1000=0.8, warmstart_cpu_s=100.0),
    "empg": _taken_apart("empg", EMPG, tokens_per_update=5_000, cpu_s_per_1000=0.8, warmstart_cpu_s=100.0),
    "spear": _taken_apart("spear", SPEAR, tokens_per_update=5_000, cpu_s_per_1000=1.2, warmstart_cpu_s=100.0),
    "aepo": _taken_apart("aepo", AEPO, tokens_per_update=11_000, cpu_s_per_1000=0.8, warmstart_cpu_s=60.0),
    "medium": Setting(  # not run yet: tokens and CPU seconds are guesses
        config="learning/medium",
        panel="test",
        tuning_panel="validation",
        budget=15 * 9_000,
        num_seeds=5,
        tokens_per_update=9_000,
        cpu_s_per_1000=1.8,
        warmstart_cpu_s=150.0,
        measure_cpu_s=5.0,
        test_tasks=192,
        untuned=(),
        arms=COMPOSED,
    ),
    "smoke": Setting(
        config="learning/smoke",
        panel="test",
        tuning_panel="validation",
        budget=1_500,
        num_seeds=2,
        tokens_per_update=750,
        cpu_s_per_1000=1.0,
        warmstart_cpu_s=5.0,
        measure_cpu_s=3.0,
        test_tasks=8,
    ),
}
"""``smoke`` tries every part in minutes; nothing is learned there."""
