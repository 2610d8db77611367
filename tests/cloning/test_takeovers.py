"""Takeovers: the expert goes on from where a learner was cut, knowing what happened, and only it is learned."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.levers import ACTIONS, Levers, Puller
from tests.models import tokenizer
from turnwise.agents.actions import written
from turnwise.agents.chat import ChatFormat
from turnwise.agents.episode import Episode, SuccessRule
from turnwise.agents.jobs import Job
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import ModelAgent, Seating
from turnwise.cloning.demonstrations import demonstrate
from turnwise.cloning.rows import takeover_rows
from turnwise.cloning.settings import TakeoversConfig, WarmstartConfig
from turnwise.cloning.takeovers import Taker, is_won
from turnwise.envs.interface import Info, TextEnv, instructions_of
from turnwise.envs.tasks import make_env, panel
from turnwise.models.engine import Reply
from turnwise.seeds import mix
from turnwise.trajectory import Fork, Task, Trajectory

DATA = Path(os.environ.get("TURNWISE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
GAMES = DATA / "alfworld" / "games_2.1.3.jsonl.xz"
WORLDS: dict[str, dict[str, Any]] = {
    "turnwise/Household-v0": {"difficulty": "hard", "step_limit": 50},
    "turnwise/ALFWorld-v0": {"data": GAMES},
    "turnwise/WebShop-v0": {"num_products": 100},
    "turnwise/Search-v0": {"difficulty": "medium"},
    "turnwise/Wordle-v0": {},
    "turnwise/Sokoban-v0": {},
    "turnwise/FrozenLake-v0": {"difficulty": "hard"},
}
HOUSE = "turnwise/Household-v0"
DEMONSTRATIONS = {"turnwise/ALFWorld-v0": "train"}
Choose = Callable[[str, Info], str]


@lru_cache(maxsize=16)
def world(name: str) -> TextEnv:
    return make_env(name, **WORLDS.get(name, {}))


def tasks(env: TextEnv, num: int, split: str | None = None) -> list[Task]:
    name = env.spec.id if env.spec else ""
    whole = panel(env, split or DEMONSTRATIONS.get(name, "demonstrations"))
    return [whole[i] for i in range(num)]


def agent(**settings: Any) -> ModelAgent:
    config = AgentConfig(**{"max_context_tokens": 100_000, "max_reply_tokens": 200, **settings})
    nobody: Any = None  # these episodes are not sampled
    return ModelAgent(nobody, ChatFormat(tokenizer()), config)


def config(share: float = 0.0, expert: str = "searching") -> WarmstartConfig:
    of = TakeoversConfig(disagreement_share=share)
    return WarmstartConfig(expert_jitter=False, expert=expert, takeovers=of)


def played(env: TextEnv, job: Job, who: ModelAgent, choose: Choose, until: int = 1000) -> list[Trajectory]:
    """An episode of a learner who does what ``choose`` says, recorded as a model's."""
    episode = Episode(env, job, 0, Seating({"": who}).seats(env, job, 0))
    for _ in range(until):
        if episode.end is not None:
            break
        seat = episode.to_move
        ids = seat.context_ids()
        if who.config.on_overflow == "restart" and len(ids) > who.config.max_context_tokens - 200:
            assert seat.context is not None
            seat.prompt, seat.continues = seat.context.restart(), False
        action = choose(episode.observation, episode.info)
        reply = who.chat.reply(written(action, who.config.action_format))
        drawn = np.full(len(reply), -0.5, np.float32)
        episode.step(action, Reply(-1, reply, drawn, -drawn, True), action)
    return episode.trajectories(episode.end or "truncated")


def at_random(seed: int) -> Choose:
    """Actions that are admissible now, some that are not, and nonsense."""
    rng, known = np.random.default_rng(seed), ["xyzzy"]

    def choose(observation: str, info: Info) -> str:
        now = [a for a in info.get("admissible_actions") or ("up", "crane") if a not in ("help", "click[buy now]")]
        now = [a for a in now if not a.startswith("answer")]
        known.extend(now[:5])
        return str(rng.choice(known if rng.random() < 0.3 else now))

    return choose


def like_the_expert(env: TextEnv) -> Choose:
    """What the expert of these takeovers does; a fresh one for each episode."""
    made: list[Any] = []

    def choose(observation: str, info: Info) -> str:
        if not made:
            made.append(env.unwrapped.expert("searching", seed=0))  # type: ignore[attr-defined]
            made[0].begin(observation, info)
        return str(made[0].act(observation, info))

    return choose


def taken(
    env: TextEnv,
    job: Job,
    plays: Sequence[Trajectory],
    who: ModelAgent,
    seed: int = 0,
    of: WarmstartConfig | None = None,
) -> list[Trajectory]:
    return Taker(env, who, of or config(), 0, SuccessRule()).take_over(job, plays, np.random.default_rng(seed))


needs_games = pytest.mark.skipif(not GAMES.exists(), reason=f"needs the official games: {GAMES} (TURNWISE_DATA)")
EACH = [pytest.param(name, marks=needs_games) if "ALFWorld" in name else name for name in WORLDS]


def test_an_episode_is_taken_over_several_times() -> None:
    env, who = world(HOUSE), agent()
    (task,) = tasks(env, 1)
    plays = played(env, Job(task), who, at_random(0), until=6)
    taker = Taker(env, who, config(), 0, SuccessRule())
    made = [taker.take_over(Job(task), plays, np.random.default_rng(n), n)[0] for n in range(1, 9)]
    assert len({each.episode for each in made}) == 8
    forks = [each.fork for each in made if each.fork is not None]
    assert {fork.parent for fork in forks} == {plays[0].episode}
    assert len({fork.turn for fork in forks}) > 1


@pytest.mark.parametrize("name", EACH)
def test_a_learner_who_acts_like_the_expert_is_continued_as_if_nothing_had_happened(name: str) -> None:
    """So the expert knows the prefix: what was seen, where the shop stands, what was guessed."""
    env, who, cuts = world(name), agent(), set()
    for n, task in enumerate(tasks(env, 5)):
        job = Job(task)
        plays = played(env, job, who, like_the_expert(env))
        (made,) = taken(env, job, plays, who, seed=n)
        assert made.fork is not None
        assert [turn.action for turn in made.turns] == [turn.action for turn in plays[0].turns]
        assert [turn.observation for turn in made.turns] == [turn.observation for turn in plays[0].turns]
        assert made.success == plays[0].success
        cuts.add(made.fork.turn)
    assert max(cuts) > 0


KNOWING = [("turnwise/WebShop-v0", "knowing"), ("turnwise/Search-v0", "knowing"), (HOUSE, "knowing")]
BOTH = [
    *(pytest.param(name, "searching", marks=needs_games if "ALFWorld" in name else ()) for name in WORLDS),
    *KNOWING,
]


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_the_expert_wins_from_where_a_random_learner_got(name: str, kind: str) -> None:
    env, who, won = world(name), agent(), 0
    for n, task in enumerate(tasks(env, 8)):
        job = Job(task)
        (play,) = played(env, job, who, at_random(n), until=4)
        (made,) = taken(env, job, [play], who, seed=n, of=config(expert=kind))
        won += is_won(made)
        assert made.fork is not None
        assert made.fork.parent == play.episode != made.episode
        assert made.policy == f"{kind} expert"
        for ours, theirs in zip(made.turns[: made.fork.turn], play.turns, strict=False):
            assert ours.observation == theirs.observation
            assert np.array_equal(ours.prompt_ids, theirs.prompt_ids)
            assert np.array_equal(ours.action_ids, theirs.action_ids)
            assert np.array_equal(ours.logprobs, theirs.logprobs)
        for turn in made.turns[made.fork.turn :]:
            assert who.chat.decode(turn.action_ids) == turn.action
    assert won >= 5


def test_it_remembers_what_the_learner_has_seen() -> None:
    """Places that were searched before the cut are not searched again; a fresh expert would."""
    env, who, shorter = world(HOUSE), agent(), 0
    for n, task in enumerate(tasks(env, 8)):
        job, choose = Job(task), like_the_expert(env)
        alone = played(env, job, who, choose)
        seen = like_the_expert(env)
        moves = iter(range(1000))
        plays = played(env, job, who, lambda o, i, s=seen, m=moves: "xyzzy" if next(m) % 3 == 2 else s(o, i), until=9)
        made = taken(env, job, plays, who, seed=n)[0]
        assert made.success
        assert made.fork is not None
        wasted = sum(turn.action == "xyzzy" for turn in made.turns)
        assert len(made.turns) <= len(alone[0].turns) + wasted + 2
        shorter += made.fork.turn > 3
    assert shorter


def test_only_the_expert_s_actions_weigh() -> None:
    env, who = world(HOUSE), agent()
    job = Job(tasks(env, 1)[0])
    (made,) = taken(env, job, played(env, job, who, at_random(0), until=6), who)
    assert made.fork is not None
    assert 0 < made.fork.turn < len(made.turns)
    (row,) = takeover_rows(made, who.chat, who.config, instructions_of(env), 0.25)
    decode = who.chat.tokenizer.decode
    own = made.turns[made.fork.turn :]
    assert decode(row.ids[row.weights == 1.0]) == "".join(f"{turn.action}<|end|>" for turn in own)
    assert decode(row.ids[row.weights == 0.25]) == "".join(decode(turn.prompt_ids) for turn in own)
    ahead = sum(len(turn.prompt_ids) + len(turn.action_ids) for turn in made.turns[: made.fork.turn])
    assert not row.weights[:ahead].any()
    assert np.array_equal(
        row.ids[:ahead], np.concatenate([x for t in made.turns[: made.fork.turn] for x in (t.prompt_ids, t.action_ids)])
    )
    (row,) = takeover_rows(made, who.chat, who.config, "", 0.0)
    assert decode(row.ids[row.weights > 0]) == "".join(f"{turn.action}<|end|>" for turn in own)
    short = AgentConfig(max_context_tokens=64)
    assert takeover_rows(made, who.chat, short, "", 0.0) == []


def test_a_window_has_a_row_for_each_turn_of_the_expert() -> None:
    env, who = world(HOUSE), agent(context="window")
    job = Job(tasks(env, 1)[0])
    (made,) = taken(env, job, played(env, job, who, at_random(0), until=6), who)
    assert made.fork is not None
    rows = takeover_rows(made, who.chat, who.config, instructions_of(env), 0.1)
    learned = [who.chat.tokenizer.decode(row.ids[row.weights == 1.0]) for row in rows]
    assert learned == [f"{turn.action}<|end|>" for turn in made.turns[made.fork.turn :]]
    assert made.fork.turn > 0


def test_a_context_that_began_afresh_does_so_again() -> None:
    env, who = world(HOUSE), agent(on_overflow="restart", max_context_tokens=700)
    job = Job(tasks(env, 1)[0])
    plays = played(env, job, who, at_random(0), until=30)
    assert sum(not turn.continues for turn in plays[0].turns) > 1
    made = taken(env, job, plays, who, seed=3)[0]
    assert made.fork is not None
    assert sum(not turn.continues for turn in made.turns[: made.fork.turn]) > 1
    assert all(len(row.ids) <= 700 for row in takeover_rows(made, who.chat, who.config, "", 0.0))


def test_a_cut_is_where_learner_and_expert_disagree() -> None:
    env, who = world(HOUSE), agent()
    for n, task in enumerate(tasks(env, 4)):
        job, choose, moves = Job(task), like_the_expert(env), iter(range(1000))
        plays = played(env, job, who, lambda o, i, c=choose, m=moves: (c(o, i), "help")[next(m) == 3], until=6)
        if len(plays[0].turns) < 4:
            continue
        cut = len(plays[0].turns[:4]) - 1
        short = [Trajectory(**{**fields(plays[0]), "turns": plays[0].turns[:4]})]
        (made,) = taken(env, job, short, who, seed=n, of=config(share=1.0))
        assert made.fork is not None
        assert made.fork.turn == cut
        assert made.turns[cut].action != "help"
        assert made.success


def fields(episode: Trajectory) -> dict[str, Any]:
    return {name: getattr(episode, name) for name in episode.__dataclass_fields__}


def test_a_player_of_a_game_is_continued_among_experts() -> None:
    env, who = make_env("turnwise/TicTacToe-v0"), agent()
    job = Job(panel(env, "train")[0])
    plays = played(env, job, who, at_random(0), until=3)
    made = [each for seed in range(6) for each in taken(env, job, plays, who, seed)]
    assert {each.player for each in made} == {"player_1", "player_2"}
    parents = {play.player: play for play in plays}
    for each in made:
        assert each.fork is not None
        assert each.fork.parent == parents[each.player].episode
        assert each.fork.turn < len(each.turns)
        before = parents[each.player].turns[: each.fork.turn]
        assert [turn.action for turn in before] == [turn.action for turn in each.turns[: each.fork.turn]]
    assert any(map(is_won, made))


# --- what cannot work ---


class Amnesiac(Levers):
    """Shows something else each time; ``broken`` experts fail once somebody else has acted."""

    shown = 0

    def __init__(self, drifts: bool = False, broken: bool = False) -> None:
        super().__init__()
        self.drifts, self.broken = drifts, broken

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        Amnesiac.shown += self.drifts
        observation, *rest = super().step(action)
        return f"{observation} {Amnesiac.shown}", *rest  # type: ignore[return-value]

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Puller:
        return Script(seed) if self.broken else Puller(seed)


class Script(Puller):
    """Has a plan for its own actions only."""

    def begin(self, observation: str, info: dict[str, Any]) -> None:
        self.overruled = False

    def overrule(self, action: str) -> None:
        self.overruled = True

    def act(self, observation: str, info: dict[str, Any]) -> str:
        if self.overruled:
            raise KeyError("plan")
        return ACTIONS[0]


gymnasium.register("test/Amnesiac-v0", Amnesiac, disable_env_checker=True)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"drifts": True}, r"does not repeat itself: .* at turn 2 of task 0 of 'train'.* warmstart\.takeovers=null"),
        (
            {"broken": True},
            r"cannot take over an episode of task 0 .* \(KeyError .*: 'plan'\).* warmstart\.takeovers=null",
        ),
    ],
)
def test_a_world_whose_expert_cannot_go_on_says_so(wrong: dict[str, bool], told: str) -> None:
    env, who = make_env("test/Amnesiac-v0", **wrong), agent()
    job = Job(panel(env, "train")[0])
    plays = played(env, job, who, lambda *_: "wait")
    with pytest.raises(ValueError, match=told):
        taken(env, job, plays, who)


def test_it_is_the_task_and_seed_of_the_learner() -> None:
    """In a world without panels the task is a seed; a takeover is a second attempt at it."""
    env, who = make_env("test/Amnesiac-v0"), agent()
    job = Job(panel(env, "train")[7], key=5)
    plays = played(env, job, who, lambda *_: "wait")
    (made,) = taken(env, job, plays, who)
    assert (made.task, made.seed, made.sample) == (plays[0].task, plays[0].seed, 1)
    assert made.turns[0].observation == plays[0].turns[0].observation
    assert made.fork == Fork(plays[0].episode, made.fork.turn if made.fork else -1)
    assert mix("env", 0, job.task.key, 5) >> 33 == made.seed


def test_without_takeovers_demonstrations_are_as_before() -> None:
    env = world(HOUSE)
    (shown,) = demonstrate(env, tasks(env, 1)[0], WarmstartConfig(noise=0.0, expert_jitter=False), seed=0)
    (play,) = played(env, Job(tasks(env, 1)[0]), agent(), like_the_expert(env))
    assert list(shown.actions) == [turn.action for turn in play.turns]
