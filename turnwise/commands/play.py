"""``turnwise play``: one episode on the console, played by a person, an agent, an expert or a model."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from turnwise.agents.acting import as_player
from turnwise.agents.jobs import Job
from turnwise.agents.scripted import HumanAgent, play_episode, scripted
from turnwise.agents.seating import AnyAgent, ModelAgent, Scripted, Seating
from turnwise.assembly.players import players
from turnwise.envs.interface import HasPlayers, Info, capability
from turnwise.envs.tasks import make_env, panel
from turnwise.models.drawing import Sampling
from turnwise.runs.trajectory_tables import printable
from turnwise.trajectory import Turn


def play(
    console: Console,
    env_id: str,
    kwargs: dict[str, Any],
    agent: str,
    split: str,
    task: int,
    seed: int,
    opponent: str,
    temperature: float = 1.0,
) -> None:
    """Play one episode and show it on the console, turn by turn.

    ``agent`` and ``opponent`` are human, random, expert, expert:KIND, a run, a model folder or hub name, or
    openai:MODEL@URL. Models sample with ``temperature``; 0 is greedy. Raises ValueError for an unknown agent, split or
    task.
    """
    env = make_env(env_id, **kwargs)
    tasks = panel(env, split)
    if task >= len(tasks):
        raise ValueError(f"split {split!r} has {len(tasks)} tasks: --task is at most {len(tasks) - 1}")
    human = Scripted("human", lambda env, seed: HumanAgent(lambda text, info: _ask(console, text, info)))

    def named(name: str) -> dict[str, AnyAgent]:
        return {"": human} if name == "human" else _agents(name, env, temperature)

    alone = capability(env, HasPlayers) is None or opponent == "self"
    learners, others = named(agent), None if alone else named(opponent)
    last = [""]
    try:
        played, *_ = play_episode(
            env,
            Seating(learners, others),
            Job(tasks[task]),
            agent_seed=seed,
            on_observation=lambda text: last.__setitem__(0, text),
        )
    except (EOFError, KeyboardInterrupt):
        console.print("\nstopped")
        return
    if agent != "human":
        for turn in played.turns:
            _show(console, turn)
    console.print(last[0], markup=False, highlight=False)
    verdict = {True: "[green]success[/green]", False: "[red]no success[/red]", None: "over"}[played.success]
    console.print(f"{verdict} after {len(played.turns)} turns, total reward {played.total_reward:g}")


def _agents(name: str, env: Any, temperature: float) -> dict[str, AnyAgent]:
    """The players that a name stands for, by role or player."""
    found = scripted(name)
    if found is not None:
        return {"": found}
    made = players(name, env, num_slots=2)
    sampling = Sampling(temperature)
    return {role: as_player(who, sampling) if isinstance(who, ModelAgent) else who for role, who in made.items()}


def _show(console: Console, turn: Turn) -> None:
    console.print(printable(turn.observation), markup=False, highlight=False)
    console.print(f"[bold cyan]>[/bold cyan] {escape(printable(turn.action))}", highlight=False)


def _ask(console: Console, observation: str, info: Info) -> str:
    console.print(printable(observation), markup=False, highlight=False)
    while True:
        action = console.input("[bold cyan]>[/bold cyan] ")
        if action.strip() != "?":
            return action
        offered = info.get("admissible_actions") or ["(this world does not list them)"]
        console.print("  " + "\n  ".join(offered), markup=False)
