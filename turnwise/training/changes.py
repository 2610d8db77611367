"""What may change when a run is resumed, and what may not.

A run's configuration says how all of its numbers came to be. So a resume may change only settings that decide no number
of any update: how long the run is, where and how fast it works, and when it is stopped, saved and measured.
``MAY_CHANGE`` lists them; other changes are refused.

Schedules (of the learning rate, of an algorithm's coefficients) span the updates that the run began with, and stay at
their last value after them. Where ``num_updates`` changes, ``schedule_updates`` keeps the old span. The longer run then
has the same numbers as one that was started with the new ``num_updates`` and this ``schedule_updates``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from turnwise.agents.chat_client import REACHED
from turnwise.config.files import resolved
from turnwise.config.overrides import override, set_by
from turnwise.learning.schedules import learning_rate_share
from turnwise.learning.settings import OptimizerConfig

MAY_CHANGE: Mapping[str, str] = {
    "num_updates": "how long the run is",
    "max_sampled_tokens": "how long the run is",
    "max_skipped_updates": "when it is stopped",
    "watchdog": "when it is warned of or stopped",
    "rollout.max_error_share": "when it is stopped",
    "checkpoint_every": "when it is saved",
    "keep_checkpoint": "which checkpoint is measured and exported",
    "mirrors": "where its record is copied to",
    "eval.every": "when it is measured: these draws are their own",
    "device": "where it works: numbers change by rounding",
    "threads": "how fast: numbers change by rounding",
    "learner": "how fast, and memory: numbers change by rounding",
    "rollout.backend": "how fast: numbers change by rounding",
    "rollout.vllm": "how fast, and memory: numbers change by rounding",
    "rollout.threads": "how fast: numbers change by rounding",
    "rollout.shards": "how fast: numbers change by rounding, and trees by the order of events",
    "rollout.shard_timeout_s": "when a shard counts as lost",
    "rollout.shard_losses": "when it is stopped",
    "ray": "where shards and ranks are",
    "rollout.packed_weights": "how fast, and memory: numbers change by rounding",
    "rollout.num_slots": "how fast, and memory: numbers change by rounding",
    "rollout.env_threads": "how fast",
    "rollout.env_waiting_share": "how fast: numbers change by rounding",
    "rewards.threads": "how fast",
    "rewards.timeout_s": "when a function counts as hung",
    **{f"rewards.judge.endpoint.{name}": "how its judge is reached" for name in REACHED},
    "optimizer.microbatch_tokens": "memory: numbers change by rounding",
    "model.gradient_checkpointing": "memory",
    "env.process": "where the world works",
    "env.step_timeout_s": "when a world counts as hung",
    "env.reset_timeout_s": "when a world counts as hung",
}
"""Settings and sections that may change -> what each decides."""


def changed(before: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A run's resolved settings, with ``key.path=value`` settings laid over them for the rest of the run.

    Raises ValueError for a setting that is unknown, or that may not change at a resume.
    """
    given = set_by(settings)
    made = resolved(override(before, settings), own=given)
    differing = differences(before, made)
    for name, (old, new) in differing.items():
        if not any(name == own or name.startswith(f"{own}.") or own.startswith(f"{name}.") for own in given):
            continue  # no longer used because of what was given, as eval.tasks is with eval.every=0
        if not any(name == free or name.startswith(f"{free}.") for free in MAY_CHANGE):
            raise ValueError(
                f"{name} cannot change at a resume: the run has trained with {old!r}, and its "
                f"configuration would say {new!r} of all its updates. Start a new run for that; what may "
                f"change is {', '.join(MAY_CHANGE)}"
            )
    budget = made["max_sampled_tokens"]
    if "num_updates" in differing and before["max_sampled_tokens"] is not None and budget is not None:
        raise ValueError(
            f"num_updates={made['num_updates']} would change nothing: this run ends by "
            f"max_sampled_tokens={budget}. Raise that, or give max_sampled_tokens=null as well"
        )
    if "num_updates" in differing and before["schedule_updates"] is None:
        made["schedule_updates"] = before["num_updates"]
    return made


def check_goes_on(
    finished: int, sampled_tokens: int, *, num_updates: int, budget: int | None, span: int, rate: OptimizerConfig
) -> None:
    """Raise ValueError where a run whose length was changed has nothing left to do.

    ``finished`` and ``span`` (of the schedules) are counted in updates; ``budget`` is max_sampled_tokens.
    """
    if budget is not None and sampled_tokens >= budget:
        raise ValueError(
            f"the run has sampled {sampled_tokens} tokens: max_sampled_tokens={budget} leaves nothing to do"
        )
    if budget is None and finished >= num_updates:
        raise ValueError(f"the run has {finished} updates: num_updates={num_updates} leaves nothing to do")
    if not learning_rate_share(
        finished, span, shape=rate.schedule, warmup_share=rate.warmup_share, floor=rate.min_lr_share
    ):
        raise ValueError(
            f"by optimizer.schedule={rate.schedule} the learning rate has fallen to 0 after {span} updates: "
            "more of them would learn nothing. Export the policy and start a new run from it"
        )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (before, after) of every setting in which two resolved configurations differ."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
