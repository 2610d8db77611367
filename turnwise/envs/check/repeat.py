"""Checks that an episode can be repeated exactly. Groups, forks, evaluations and resumed runs rely on that."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from turnwise.childprocess import EnvRaisedError
from turnwise.envs.check.probe import (
    Episode,
    Finding,
    Frame,
    Probe,
    begin,
    difference,
    failed,
    passed,
    replay,
    skipped,
    step,
)
from turnwise.envs.interface import HasSnapshots, capability
from turnwise.envs.tasks import snapshots

_OWN_RANDOMNESS = "draw from self.np_random alone, and sort what comes from sets"


def repeats_itself(probe: Probe) -> Finding:
    """Whether the same start and actions give the same episode, in an instance that played another one meanwhile."""
    num_episodes = 0
    for first, second in probe.some(_pairs(probe)):
        episode = probe.record(probe.env, first)
        probe.record(probe.env, second, seed=1)
        if found := difference(episode.frames, replay(probe.env, episode)):
            return failed(f"replayed, {found}: reset() has to restore everything")
        num_episodes += 1
    return passed(f"{num_episodes} episodes replayed after others")


def repeats_in_a_fresh_instance(probe: Probe) -> Finding:
    num_episodes = 0
    for task in probe.some(probe.examples(5)):
        episode = probe.record(probe.env, task)
        if found := difference(episode.frames, replay(probe.fresh(), episode)):
            return failed(f"in another instance, {found}: {_OWN_RANDOMNESS}")
        num_episodes += 1
    return passed(f"{num_episodes} episodes replayed")


def repeats_in_a_fresh_process(probe: Probe) -> Finding:
    """Whether an episode is the same in another process, where strings have other hashes and sets another order."""
    episode = probe.record(probe.env, probe.examples(1)[0])
    try:
        env = probe.elsewhere()
    except EnvRaisedError as error:
        return skipped(f"it cannot be made in another process; name it module:ns/Id-v0 ({error.message})")
    if found := difference(episode.frames, replay(env, episode)):
        return failed(f"in another process, {found}: {_OWN_RANDOMNESS}")
    return passed(f"{len(episode.actions)} actions replayed")


def instances_do_not_disturb_each_other(probe: Probe) -> Finding:
    """Whether two instances that take turns play the same episodes as each does alone."""
    num_pairs, left, right = 0, probe.fresh(), probe.fresh()
    for pair in probe.some(_pairs(probe)):
        first, second = probe.record(left, pair[0]), probe.record(right, pair[1], seed=1)
        seen: tuple[list[Frame], list[Frame]] = ([begin(left, first.task)], [begin(right, second.task)])
        for actions in zip_longest(first.actions, second.actions):
            for env, action, frames in zip((left, right), actions, seen, strict=True):
                if action is not None and not frames[-1].over:
                    frames.append(step(env, action))
        for alone, together in zip((first, second), seen, strict=True):
            if found := difference(alone.frames, together):
                return failed(f"with another instance beside it, {found}: keep no state in the class or module")
        num_pairs += 1
    return passed(f"{num_pairs} pairs of games played in turns")


def snapshots_continue_exactly(probe: Probe) -> Finding:
    """Whether a restored snapshot continues as the original did, in the same instance and in another one."""
    if snapshots(probe.env) is None:
        behind = capability(probe.env, HasSnapshots) is not None
        why = "a wrapper around it has a state of its own" if behind else "no snapshot() and restore()"
        return skipped(f"{why}: forks replay the actions instead")
    num_snapshots, other = 0, probe.fresh()
    for first, second in probe.some(_pairs(probe)):
        episode = probe.record(probe.env, first, max_steps=100)
        half = len(episode.actions) // 2
        begin(probe.env, first)
        for action in episode.actions[:half]:
            step(probe.env, action)
        snapshot = _world(probe.env).snapshot()
        probe.record(other, second, max_steps=3)
        for where, env in (("the snapshot was taken", probe.env), ("restored", probe.env), ("elsewhere", other)):
            if where != "the snapshot was taken":
                _world(env).restore(snapshot)
            if found := difference(episode.frames[half + 1 :], _continued(env, episode, half)):
                return failed(f"{where} after {half} actions, {found} (actions since then)")
        num_snapshots += 1
    return passed(f"{num_snapshots} snapshots continued, here and in another instance")


def _continued(env: Any, episode: Episode, half: int) -> list[Frame]:
    frames: list[Frame] = []
    for action in episode.actions[half:]:
        if frames and frames[-1].over:
            break
        frames.append(step(env, action))
    return frames


def _world(env: Any) -> HasSnapshots:
    world = snapshots(env)
    assert world is not None
    return world


def _pairs(probe: Probe) -> list[Any]:
    tasks = probe.examples(6)
    return list(zip(tasks, tasks[1:] + tasks[:1], strict=True))
