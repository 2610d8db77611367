"""Checks whether a text world is fit for training. Each check reports its result in one sentence.

An environment is named by its gymnasium id. Checks of optional methods that it does not have are skipped. Where the
environment raises, that is a failed check and not an error of this function.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from turnwise.envs.check import contract, leaks, repeat, tasks
from turnwise.envs.check.probe import Finding, Probe, failed, first_line, skipped

__all__ = ["CHECKS", "Finding", "Report", "check"]

Check = Callable[[Probe], Finding]

CHECKS: tuple[Check, ...] = (
    contract.spaces_are_of_strings,
    contract.offers_fit,
    contract.returns_the_right_types,
    contract.odd_actions_are_ordinary,
    contract.admissible_actions_are_valid,
    contract.episodes_end,
    contract.step_needs_a_game,
    contract.global_generators_are_untouched,
    contract.players_are_told,
    contract.closing_is_harmless,
    repeat.repeats_itself,
    repeat.repeats_in_a_fresh_instance,
    repeat.repeats_in_a_fresh_process,
    repeat.instances_do_not_disturb_each_other,
    repeat.snapshots_continue_exactly,
    tasks.panels_are_stable,
    tasks.tasks_start_what_they_say,
    tasks.evaluation_tasks_are_unique,
    tasks.splits_share_no_task,
    leaks.evaluation_starts_look_new,
    tasks.expert_succeeds,
    contract.gymnasium_accepts_it,  # last: it draws tasks as it likes, and some are slow to make
)


@dataclass(frozen=True, slots=True)
class Report:
    """The findings, in the order of ``CHECKS``. ``steps_per_s`` is the speed of the random play, in wall time."""

    env: str
    findings: tuple[Finding, ...]
    steps_per_s: float
    seconds: float

    @property
    def ok(self) -> bool:
        return all(finding.outcome != "failed" for finding in self.findings)


def check(
    env_id: str,
    seconds: float = 30.0,
    on_finding: Callable[[Finding], None] | None = None,
    **env_kwargs: Any,
) -> Report:
    """Run every check on an environment, in about ``seconds`` in all, which the checks share evenly.

    ``on_finding`` is called with each finding at once. Raises ValueError where there is no such environment, and where
    it does not take these settings. An environment that never returns from ``step`` is not interrupted.
    """
    began = time.perf_counter()
    findings: list[Finding] = []

    def found(name: str, finding: Finding, since: float) -> None:
        findings.append(replace(finding, name=name.replace("_", " "), seconds=time.perf_counter() - since))
        if on_finding is not None:
            on_finding(findings[-1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium's wrappers say at every step what one finding says once
        try:
            probe = Probe(env_id, env_kwargs)
        except ValueError:
            raise
        except (Exception, SystemExit) as error:
            found("can_be_made", failed(f"making it raised {first_line(error)}"), began)
            return Report(env_id, tuple(findings), 0.0, time.perf_counter() - began)
        with contextlib.closing(probe):
            for number, each in enumerate(CHECKS):
                since = time.perf_counter()
                probe.until = since + (began + seconds - since) / (len(CHECKS) - number)
                found(each.__name__, _run(each, probe, findings), since)
    rate = probe.num_steps / probe.step_s if probe.step_s else 0.0
    return Report(env_id, tuple(findings), rate, time.perf_counter() - began)


def _run(each: Check, probe: Probe, before: list[Finding]) -> Finding:
    if before and before[0].outcome == "failed":
        return skipped("needs spaces of strings")
    if probe.until < time.perf_counter():
        return skipped("no time left: give more seconds")
    try:
        return each(probe)
    except (Exception, SystemExit) as error:  # whatever a third party's world raises is what was found
        with contextlib.suppress(Exception, SystemExit):
            probe.renew()
        return failed(f"raised {first_line(error)}")
    finally:
        probe.tidy()
