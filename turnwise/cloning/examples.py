"""Examples for prompts: short and varied episodes of the world's expert, without noise, that it won."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from turnwise.agents.episode import SuccessRule
from turnwise.agents.opening import Example
from turnwise.agents.prompts import USUAL_EXAMPLES, AgentConfig
from turnwise.cloning.demonstrations import Demonstration, demonstrate
from turnwise.cloning.settings import WarmstartConfig
from turnwise.envs.interface import HasPlayers, capability, request_of
from turnwise.envs.tasks import TextEnv, demonstrated, expert_of, panel
from turnwise.seeds import mix
from turnwise.trajectory import Task

_CANDIDATES = 8  # won episodes for each example, of which the shortest are taken
_TRIES = 4  # episodes of the expert for each candidate, at most


def examples_for(
    env: TextEnv, agent: AgentConfig, *, usual: bool, rule: SuccessRule | None = None
) -> tuple[Example, ...]:
    """The examples that ``agent`` asks for. Where it leaves the number open, the usual ones if ``usual`` is true.

    The same settings give the same examples. Raises ValueError where examples are asked for that cannot be made: in a
    game, in a world without an expert or without the split, and where the expert wins too few of its tasks. The usual
    ones are then left out.
    """
    if agent.examples == 0 or (agent.examples is None and (not usual or agent.context == "roles")):
        return ()
    try:
        kind = _expert(env)
        # Unasked, examples are only of tasks that are kept for experts: those of train may not fit into the context.
        find_tasks = panel if agent.examples is None else demonstrated
        tasks = find_tasks(env, agent.examples_split)
    except ValueError as error:
        if agent.examples is None:
            return ()
        raise ValueError(
            f"agent.examples={agent.examples}: {error}. Leave them out (agent.examples=0), or name a split that there "
            "is with agent.examples_split"
        ) from None
    num = USUAL_EXAMPLES if agent.examples is None else agent.examples
    won = _won(env, kind, tasks, num, agent.examples_seed, rule)
    if len(won) < num:
        raise ValueError(
            f"agent.examples={num}: the {kind} expert won only {len(won)} of the tasks of {agent.examples_split!r} "
            "that it tried: ask for fewer (0: none)"
        )
    return tuple(_example(task, shown) for task, shown in _chosen(won, num))


def _expert(env: TextEnv) -> str:
    """The kind of expert to watch: one that sees what a player sees, where there is one. ValueError without any."""
    if capability(env, HasPlayers) is not None:
        raise ValueError("examples are for worlds of one player, and this is a game")
    try:
        expert_of(env, "searching", 0)
        return "searching"
    except ValueError:
        expert_of(env, "knowing", 0)
        return "knowing"


def _won(
    env: TextEnv, kind: str, tasks: Sequence[Task], num: int, seed: int, rule: SuccessRule | None
) -> list[tuple[Task, Demonstration]]:
    """Candidates: won episodes of different tasks, in a seeded order."""
    config = WarmstartConfig(expert=kind, noise=0.0)
    order = np.random.default_rng(mix("examples", seed)).permutation(len(tasks))
    won: list[tuple[Task, Demonstration]] = []
    for place in order[: num * _CANDIDATES * _TRIES]:
        task = tasks[int(place)]
        (shown,) = demonstrate(env, task, config, mix("example", seed, int(place)), rule)
        if shown.success:
            won.append((task, shown))
        if len(won) == num * _CANDIDATES:
            break
    return won


def _chosen(won: Sequence[tuple[Task, Demonstration]], num: int) -> list[tuple[Task, Demonstration]]:
    """The shortest of each type of task in turn, the shorter ones first; an episode of one turn shows too little."""
    left = sorted(won, key=lambda each: (len(each[1].actions) < 2, _length(each[1])))
    chosen: list[tuple[Task, Demonstration]] = []
    while len(chosen) < num:
        times = [sum(other.type == task.type for other, _ in chosen) for task, _ in left]
        chosen.append(left.pop(times.index(min(times))))
    return sorted(chosen, key=lambda each: _length(each[1]))


def _length(shown: Demonstration) -> int:
    return sum(map(len, (*shown.observations, *shown.actions)))


def _example(task: Task, shown: Demonstration) -> Example:
    admissible = tuple(tuple(each["listed_actions"]) if "listed_actions" in each else None for each in shown.infos)
    requests = tuple(filter(None, map(request_of, shown.infos)))
    return Example(shown.observations, admissible, shown.actions, task.key, requests)
