"""Demonstrations: episodes of a world's expert, with noise in its actions.

The expert plays the tasks of the demonstration split. On each turn, with probability ``noise``, another action is
played in place of the expert's: one that is admissible now, or one that was admissible earlier. So is a mistake that
the expert names (``Errs``). The episode then shows how the expert recovers. ``Demonstration.learn`` marks the expert's
own actions, which alone are cloned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from turnwise.agents.actions import ActionFormat, written
from turnwise.agents.episode import SuccessRule
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import TextEnv
from turnwise.agents.toolcalls import DIALECTS, Dialect
from turnwise.cloning.settings import EXPERT, WarmstartConfig
from turnwise.envs.interface import CanBeOverruled, Errs, Expert, Info, Thinks, fitting, shown_info, world_name
from turnwise.envs.tasks import closed_after, demonstrated, expert_of, make_env, no_exit, players_of, start, step
from turnwise.errors import place, with_place
from turnwise.seeds import mix
from turnwise.trajectory import Task

NOT_LOST = 0.5
"""Score of a game that was neither won nor lost."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One player's episode, turn by turn. ``learn[n]`` is False where noise, or a mistake, is the action of turn n.

    ``infos`` are what the world told beside its observations, as far as an agent is shown it. ``thoughts`` are those
    before each action, "" for none; () where the expert tells none at all.
    """

    observations: tuple[str, ...]
    infos: tuple[Info, ...]
    actions: tuple[str, ...]
    learn: tuple[bool, ...]
    success: bool
    thoughts: tuple[str, ...] = ()

    def replies(self, style: ActionFormat, dialect: Dialect) -> list[str]:
        """What the player says at each turn: the thought, and the action as an agent writes it."""
        turns = zip(self.actions, self.thoughts or [""] * len(self.actions), strict=True)
        return [written(action, style, dialect, thought) for action, thought in turns]


def shown_texts(shown: Demonstration, agent: AgentConfig) -> list[str]:
    """What an agent reads and says in a demonstration: observations, or messages and the signatures of tools."""
    texts = list[str]()
    for observation, info in zip(shown.observations, shown.infos, strict=True):
        texts += [str(message["content"]) for message in info["messages"]] if "messages" in info else [observation]
        for tool in info.get("tools", ()):
            about = tool["function"]
            texts.append(f"{about['name']}({', '.join(about['parameters']['properties'])}): {about['description']}")
    return [*texts, *shown.replies(agent.action_format, DIALECTS["hermes"])]


ENDLESS = 10_000
"""An episode of so many steps is taken to be endless."""
HOPELESS = 1000
"""So many tasks an expert may lose before its first win. Splits are long: all of one may take hours."""


class ToldExpert:
    """One player's expert, in an episode in which others may act in its place: it is told what they did."""

    def __init__(self, expert: Expert) -> None:
        self._expert, self._begun = expert, False

    def act(self, observation: str, info: Info) -> str:
        """What the expert would do now. Raises ValueError where that is no string."""
        if not self._begun:
            self._expert.begin(observation, info)
            self._begun = True
        with no_exit("the expert", "act"):
            action = self._expert.act(observation, info)
        if not isinstance(action, str):
            raise ValueError(f"the expert answered {action!r}"[:150] + "; expected an action, which is a string")
        return action

    def thought(self) -> str:
        """What the expert thought before its last action; "" where it tells none.

        Raises ValueError where that is no string, or holds the tags that mark a thought.
        """
        if (thinking := fitting(self._expert, Thinks, "the expert")) is None:
            return ""
        with no_exit("the expert", "thought"):
            found = thinking.thought()
        if not isinstance(found, str) or "think>" in found:
            raise ValueError(f"the expert's thought is {found!r}"[:150] + "; expected a string without <think> tags")
        return found.strip()

    def mistake(self) -> str:
        """What the expert would have played in the place of its last action, as a mistake; "" for nothing.

        Raises ValueError where that is no string.
        """
        if (erring := fitting(self._expert, Errs, "the expert")) is None:
            return ""
        with no_exit("the expert", "mistake"):
            found = erring.mistake()
        if not isinstance(found, str):
            raise ValueError(f"the expert's mistake is {found!r}"[:150] + "; expected an action, which is a string")
        return found

    def overrule(self, action: str) -> None:
        """Tell the expert that ``action`` is played, and not its own."""
        if overrulable := fitting(self._expert, CanBeOverruled, "the expert"):
            overrulable.overrule(action)


def expert_for(env: TextEnv, config: WarmstartConfig, player: str, seed: int) -> ToldExpert:
    """The expert that demonstrates for a player; ``seed`` is the episode's."""
    own_seed = mix(seed, player) >> 33 if player else seed
    return ToldExpert(expert_of(env, config.expert, own_seed if config.expert_jitter else 0))


class _Demonstrator:
    """One player's expert with noise in its actions; it keeps what the player saw and did."""

    def __init__(self, expert: ToldExpert, config: WarmstartConfig, rng: np.random.Generator) -> None:
        self._expert, self._config, self._rng = expert, config, rng
        self._known: dict[str, None] = {}  # every action seen admissible so far, in order
        self.observations: list[str] = []
        self.infos: list[Info] = []
        self.actions: list[str] = []
        self.learn: list[bool] = []
        self.thoughts: list[str] = []

    def act(self, observation: str, info: Info) -> str:
        action = self._expert.act(observation, info)
        choices = [a for a in info.get("admissible_actions") or () if a not in self._config.noise_excludes]
        noisy = bool(self._rng.random() < self._config.noise) and bool(choices)
        present = dict.fromkeys(choices)
        stale = [a for a in self._known if a not in present]
        self._known.update(present)
        if noisy and stale and self._rng.random() < self._config.noise_stale:
            choices = stale
        if noisy:
            action = choices[int(self._rng.integers(len(choices)))]
        elif mistake := self._expert.mistake():
            action, noisy = mistake, True
        if noisy:
            self._expert.overrule(action)
        self.observations.append(observation)
        self.infos.append(shown_info(info))
        self.actions.append(action)
        self.learn.append(not noisy)
        self.thoughts.append("" if noisy else self._expert.thought())
        return action

    def shown(self, success: bool) -> Demonstration:
        """The episode so far as a demonstration."""
        return Demonstration(
            tuple(self.observations),
            tuple(self.infos),
            tuple(self.actions),
            tuple(self.learn),
            success,
            tuple(self.thoughts),
        )


def demonstrate(
    env: TextEnv, task: Task, config: WarmstartConfig, seed: int, rule: SuccessRule | None = None
) -> list[Demonstration]:
    """Play one episode of the expert with noise; one demonstration for each player.

    Success is what the world or ``rule`` says. Where neither says it, an episode that terminated is a success. In a
    game a player succeeds who does not lose. Raises ValueError for an episode that does not end.
    """
    # Three streams: a world and its expert with equal generators would not be independent.
    rng, world_seed, expert_seed = np.random.default_rng(seed), mix("world", seed) >> 33, mix("expert", seed) >> 33
    players = players_of(env)
    observation, info = start(env, task, world_seed)
    demonstrators: dict[str, _Demonstrator] = {}
    ended, total, num_steps = False, 0.0, 0
    while not ended:
        if num_steps == ENDLESS:
            raise ValueError(
                f"the {config.expert} expert of {world_name(env)} did not end task {task.index} of {task.split!r} in "
                f"{num_steps:,} steps: limit the steps of an episode, gymnasium.register(..., max_episode_steps=N)"
            )
        player = info["player"] if players else ""
        if player not in demonstrators:
            demonstrators[player] = _Demonstrator(expert_for(env, config, player, expert_seed), config, rng)
        action = demonstrators[player].act(observation, info)
        observation, reward, terminated, truncated, info = step(env, action, players)
        total, num_steps = total + reward, num_steps + 1
        ended = terminated or truncated
    judged = (rule or SuccessRule()).judge(info, total)
    success = bool(terminated) if judged is None else judged
    scores = info.get("scores", {}) if players else {}
    return [
        found.shown(scores.get(player, 0.0) >= NOT_LOST if player else success)
        for player, found in demonstrators.items()
    ]


def demonstrations(
    env: TextEnv, config: WarmstartConfig, seed: int, rule: SuccessRule | None = None
) -> Iterator[Demonstration]:
    """An endless stream of demonstrations.

    With ``num_demonstrations`` the stream repeats its first so many, in a new order for each pass.
    """
    fresh = _fresh_demonstrations(env, config, seed, rule)
    if config.num_demonstrations is None:
        yield from fresh
    kept = []
    for _ in range(config.num_demonstrations or 0):
        kept.append(next(fresh))
        yield kept[-1]
    rng = np.random.default_rng(mix("again", seed))
    while True:
        yield from (kept[int(place)] for place in rng.permutation(len(kept)))


def cloned_tasks(clone: WarmstartConfig | None, env: TextEnv, name: str) -> list[Sequence[Task]]:
    """The tasks of a run's world whose expert is cloned; its tasks call it ``name``.

    They are of ``warmstart.env`` too, where that is the same world under another id. Those of another world are none of
    this one's. Of stored episodes the tasks are proven apart where they are read. Raises ValueError where two worlds
    are cloned whose tasks cannot be told apart.
    """
    if clone is None or clone.source != EXPERT:
        return []
    found = [demonstrated(env, clone.split)] if clone.is_own else []
    if clone.env is not None:
        with closed_after(make_env(clone.env, **clone.env_kwargs)) as world:
            others = demonstrated(world, clone.split)
            same = others[0].env == name
            if same and clone.is_own:
                raise ValueError(
                    f"warmstart.env={clone.env} has the tasks of the run's own world, {name}, so that the two cannot "
                    "be told apart: leave warmstart.own_share out, or warmstart.env"
                )
            found += [others] if same else []
    return found


def check_stop_split(env: TextEnv, config: WarmstartConfig) -> None:
    """Raises ValueError where success would be measured on the demonstrated tasks: both splits may mean train."""
    watched = demonstrated(env, config.split)[0].split
    if watched == config.stop_split:
        raise ValueError(
            f"{world_name(env)} has no split {config.split!r}, so that {watched!r} is demonstrated, and "
            f"warmstart.stop_split={watched} would measure success on it: choose another"
        )


def _demonstrate(
    env: TextEnv, task: Task, config: WarmstartConfig, seed: int, rule: SuccessRule | None
) -> list[Demonstration]:
    """As ``demonstrate``. Raises ValueError for whatever a user's world or expert raises, with its place there."""
    try:
        return demonstrate(env, task, config, seed, rule)
    except Exception as error:
        if not place(error):
            raise
        raise ValueError(
            f"the {config.expert} expert of {world_name(env)} cannot demonstrate task {task.index} of {task.split!r}: "
            f"{with_place(error)}. Mend the world, or its expert's act()"
        ) from error


def _fresh_demonstrations(
    env: TextEnv, config: WarmstartConfig, seed: int, rule: SuccessRule | None
) -> Iterator[Demonstration]:
    """Demonstrations of the split's tasks, in a new order for each pass, without end."""
    tasks = demonstrated(env, config.split)
    passes, lost = 0, 0  # ``lost``: tasks before the first that is won
    while True:
        order = np.random.default_rng(mix("demonstrations", seed, passes)).permutation(len(tasks))
        for index in order:
            for shown in _demonstrate(env, tasks[int(index)], config, mix("episode", seed, passes, int(index)), rule):
                if shown.success or not config.only_successes:
                    lost = -1
                    yield shown
            lost += lost >= 0
            if lost == min(len(tasks), HOPELESS):
                raise ValueError(
                    f"the {config.expert} expert of {world_name(env)} won none of {lost:,} of the {len(tasks):,} tasks "
                    f"of {config.split!r}: nothing to clone. With less noise (warmstart.noise=0) it may win; "
                    "warmstart.only_successes=false clones what it lost"
                )
        passes += 1
