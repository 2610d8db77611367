"""The design of the learning benchmark: cells, their commands, the trials that tune each method. No training here.

Every method has the same warm start and tasks for a seed, the same budget of sampled tokens, and three tuning trials
of as many tokens, with a seed and a panel that the results never see: one at each of two learning rates, and at the
better rate one with another value of a setting of its own. The trial with the highest sampled success is taken.
A setting whose runs are too dear for that has no trials: every method takes its defaults and one rate there. So do the
arms of a setting that takes one method apart, and they make equally many updates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arms import Arm
from settings import SETTINGS

from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.evaluation.contenders import read_run
from turnwise.runs.directory import RunDirectory

TUNING_SEED = 1000
RATES = ("6e-4", "1.6e-3")
"""Around 1e-3, with which the shipped configuration learns."""

OTHERWISE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("grpo", "drgrpo", "rloo", "opo"), ("algorithm.clip_high=0.28",)),
    "dapo": ("algorithm.max_tries=3",),
    "gspo": ("algorithm.clip_low=3e-3", "algorithm.clip_high=4e-3"),
    "reinforce_pp": ("algorithm.baseline=group",),
    "ppo": ("algorithm.level=turn",),
    **dict.fromkeys(("gigpo", "g2po", "graphgpo"), ("algorithm.step_coef=0.5",)),
    "hapo": ("algorithm.average=attempts",),
    "pear": ("algorithm.alpha=0.5",),
    "funrl": ("algorithm.alpha=0.1",),
    "echo": ("algorithm.coef=0.01",),
    "hgpo": ("algorithm.length_weight=0",),
    "maxrl": ("algorithm.clip_high=0.28",),
    "bnpo": ("algorithm.weight_cap=3",),
    "canon": ("algorithm.mu=0.75",),
    "riskpo": ("algorithm.credit=uniform",),
    "rae": ("algorithm.decay=0.99",),
    "copo": ("algorithm.answer=actions",),
    "ares": ("algorithm.window=2",),
    "seed_grpo": ("algorithm.answer=actions",),
    "d3s": ("algorithm.first_attempts=0.5", "algorithm.first_tokens=0.5"),
    "dpo": ("algorithm.beta=0.03",),
    "cpl": ("algorithm.bias=0.75",),
    "epo": ("algorithm.entropy_coef=3e-3",),
    "empg": ("algorithm.bonus_coef=0.01",),
    "clip_cov": ("algorithm.share=2e-3",),
    "kl_cov": ("algorithm.penalty_coef=0.1",),
    "cispo": ("algorithm.clip_high=1.0",),
    "dppo": ("algorithm.divergence=kl",),
    "bapo": ("algorithm.target=0.5",),
    "forking": ("algorithm.within=turn",),
    "steer": ("algorithm.weight_min=0.5",),
    "capo": ("algorithm.fisher=1e-3", "algorithm.hessian=0.1"),
    "lp_reg": ("algorithm.share=0.1",),
    "siren": ("algorithm.within=turn",),
    "entropy_advantage": ("algorithm.alpha=0.1",),
    "ear": ("algorithm.form=clip",),
    "sac": ("algorithm.target_share=1.0",),
    "tea": ("algorithm.entropy_coef=1e-3",),
    "drbot": ("algorithm.group_share=1.0",),
    "spear": ("algorithm.bonus_coef=0.03",),
    "aepo": ("algorithm.entropy_advantage=0.05",),
    "aepo_arbitrary": ("algorithm.mix=append",),
}
"""What a method's last trial changes; for those that are not here, the number of optimizer steps."""

_ANY = ("optimizer.num_minibatches=2",)
NUM_TRIALS = len(RATES) + 1


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: a tuning trial (``choice`` numbers it), or, with ``choice`` None, a seed of the benchmark itself.

    ``method`` is the name of a method or of an arm.
    """

    setting: str
    method: str
    seed: int
    choice: int | None = None

    @property
    def arm(self) -> Arm:
        """What is run."""
        return SETTINGS[self.setting].arm(self.method)

    @property
    def budget(self) -> int:
        """Sampled tokens; where arms are run, what is expected."""
        return SETTINGS[self.setting].budget

    @property
    def num_tasks(self) -> int:
        """Tasks of the panel that it is measured on."""
        whole = SETTINGS[self.setting].test_tasks
        return whole if self.choice is None else min(whole, 256)

    @property
    def expected_cpu_s(self) -> float:
        """Of one core, without the warm start: training, and measuring before and after."""
        setting = SETTINGS[self.setting]
        return self.budget / 1000 * setting.cpu_s_per_1000 + 2 * self.num_tasks / 100 * setting.measure_cpu_s

    @property
    def folder(self) -> Path:
        """Below the benchmark's own folder."""
        return Path(self.setting, self.method, f"seed-{self.seed}" if self.choice is None else f"trial-{self.choice}")


def cells(setting: str, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
    """A method's trials, if the setting has them, then its seeds; method by method."""
    num_trials = NUM_TRIALS if SETTINGS[setting].untuned is None else 0
    for method in methods:
        yield from (Cell(setting, method, TUNING_SEED, choice) for choice in range(num_trials))
        yield from (Cell(setting, method, seed) for seed in seeds)


def choice_of(cell: Cell, out: Path) -> tuple[str, ...]:
    """What a trial sets: a learning rate, and the last one more at the rate that did better (the first of equals).

    Raises ValueError for a last trial before the others are finished.
    """
    assert cell.choice is not None
    if cell.choice < len(RATES):
        return (f"optimizer.lr={RATES[cell.choice]}",)
    done = [score(replace(cell, choice=number), out) for number in range(len(RATES))]
    return (f"optimizer.lr={RATES[done.index(max(done))]}", *OTHERWISE.get(cell.method, _ANY))


def score(trial: Cell, out: Path) -> float:
    """The sampled success at a trial's end, or in a world without success its return."""
    report = read_run(out / trial.folder).after["sampled"]
    return report.success.value if report.success else report.mean_return


def command(cell: Cell, out: Path) -> list[str]:
    """What trains the cell, after ``turnwise train``; its choices are settings of the command line, and nothing else.

    Where there are no trials, the configuration says all but the method. Raises ValueError for a seed whose method's
    trials are not all finished.
    """
    setting, arm = SETTINGS[cell.setting], cell.arm
    words = [setting.config, "--algorithm", arm.algorithm, f"seed={cell.seed}", *setting.settings, *arm.settings]
    if setting.untuned is not None:
        return [*words, *setting.untuned]
    if cell.choice is None:
        panel, (choice, num_updates) = setting.panel, tuned(cell.setting, cell.method, out)
    else:
        panel, choice = setting.tuning_panel, choice_of(cell, out)
        num_updates = setting.num_updates
    return [
        *(*words, f"num_updates={num_updates}", f"max_sampled_tokens={cell.budget}"),
        *(f"eval.test_split={panel}", f"eval.test_tasks={cell.num_tasks}", *choice),
    ]


def configured(cell: Cell, out: Path) -> RunConfig:
    """The configuration of ``command``; errors as there."""
    config, _, method, *settings = command(cell, out)
    return load_config(config, settings, algorithm=method)


def tuned(setting: str, method: str, out: Path) -> tuple[tuple[str, ...], int]:
    """The best trial's settings (the first of equals), and how many updates a whole budget is at its pace.

    Raises ValueError where a trial is not finished.
    """
    found = SETTINGS[setting]
    if found.untuned is not None:
        return found.untuned, found.num_updates
    trials = [Cell(setting, method, TUNING_SEED, number) for number in range(NUM_TRIALS)]
    best = max(trials, key=lambda trial: score(trial, out))
    return choice_of(best, out), len(read_run(out / best.folder).metrics)


def is_finished(path: Path) -> bool:
    """Whether a cell has been measured after training."""
    evaluation = RunDirectory(path).evaluation_path
    return evaluation.exists() and "after" in json.loads(evaluation.read_text())


def finished_cells(setting: str, out: Path) -> list[Cell]:
    """The seeds, not the trials, of every method whose folder is there; in the setting's order, others after them."""
    known = SETTINGS[setting].names()
    here = [path.name for path in sorted((out / setting).iterdir())] if (out / setting).is_dir() else []
    order = sorted(here, key=lambda name: (known.index(name) if name in known else len(known), name))
    if SETTINGS[setting].arms:
        order = [name for name in order if name in known]  # only a method can be one of your own
    found = cells(setting, order, range(SETTINGS[setting].num_seeds))
    return [cell for cell in found if cell.choice is None and is_finished(out / cell.folder)]
