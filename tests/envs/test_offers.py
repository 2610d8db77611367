"""What a world offers is recognised for what it is, and what it returns is checked: errors name both sides."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import OrderEnforcing, TimeLimit

from turnwise.agents.episode import Episode
from turnwise.agents.jobs import Job
from turnwise.agents.scripted import play_episode
from turnwise.agents.seating import Scripted, Seating
from turnwise.agents.wishes import Wishes
from turnwise.childprocess import EnvRaisedError
from turnwise.envs.interface import (
    AnyText,
    HasExpert,
    HasPlayers,
    HasSnapshots,
    HasTasks,
    Info,
    Panel,
    attribute,
    capability,
    gives_answers,
    ignored_of,
    instructions_of,
    listed_actions,
    shown_info,
)
from turnwise.envs.process import ProcessEnv, Served
from turnwise.envs.tasks import (
    TextEnv,
    WorldExitError,
    demonstrated,
    expert_of,
    make_env,
    panel,
    snapshots,
    start,
    step,
)
from turnwise.trajectory import Task, Trajectory


class Room(gymnasium.Env[str, str]):
    """Two turns, with attributes, ``info`` keys and a place to leave from as asked."""

    observation_space = action_space = AnyText()

    def __init__(self, own: Any = None, info: Info | None = None, leaves_in: str = "") -> None:
        self.said, self.leaves_in = info or {}, leaves_in
        for name, value in (own or {}).items():
            setattr(self, name, value)
        self._leave("make")

    def _leave(self, where: str) -> None:
        if self.leaves_in == where:
            sys.exit(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        super().reset(seed=seed)
        self._leave("reset")
        self.turns = 0
        return "a mug", dict(self.said)

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        self._leave("step")
        self.turns += 1
        return "ok", 1.0, self.turns == 2, False, dict(self.said)


class Short(Room):
    """Gives back what it is told to, in place of what gymnasium asks for."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        seen = super().reset(seed=seed)
        return self.said["returns"] if self.said["in"] == "reset" else seen

    def step(self, action: str) -> Any:
        return self.said["returns"] if self.said["in"] == "step" else super().step(action)


class Game(Room):
    """Two players in turn, sound but for what ``info`` changes in a step."""

    players = ("left", "right")

    def role(self, player: str) -> str:
        return "thrower"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        return super().reset(seed=seed)[0], {"player": "left"}

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        observation, reward, terminated, truncated, changes = super().step(action)
        info: Info = {"player": "right", "rewards": {"left": 1.0, "right": -1.0}}
        if terminated:
            info |= {"successes": {"left": True, "right": False}, "scores": {"left": 1.0, "right": 0.0}}
        told = {key: value for key, value in (info | changes).items() if value is not ...}
        return observation, reward, terminated, truncated, told


for _entry in (Room, Game):
    if f"offers/{_entry.__name__}-v0" not in gymnasium.registry:
        gymnasium.register(f"offers/{_entry.__name__}-v0", _entry, disable_env_checker=True, order_enforce=False)
ROOM, GAME = f"{__name__}:offers/Room-v0", f"{__name__}:offers/Game-v0"


def room(**own: Any) -> TextEnv:
    return make_env(ROOM, own=own)


def played(env: TextEnv) -> list[Trajectory]:
    class Looks:
        def begin(self, observation: str, info: Info) -> None: ...
        def act(self, observation: str, info: Info) -> str:
            return "look"

    return play_episode(env, Seating({"": Scripted("looks", lambda env, seed: Looks())}), Job(panel(env, "train")[0]))


OWN = [
    {"tasks": ["tidy up"]},
    {"tasks": 3},
    {"players": 1, "role": "assistant"},
    {"players": ["ann", "bob"], "role": "assistant"},
    {"players": [], "role": lambda player: player},
    {"snapshot": "latest.png", "restore": lambda snapshot: None},
    {"snapshot": lambda path: None},
    {"expert": True},
    {"instructions": None, "splits": 4},
]


@pytest.mark.parametrize("own", OWN, ids=lambda own: "-".join(own))
def test_a_worlds_own_names_of_another_sort_are_left_alone(own: Any) -> None:
    env = room(**own)
    for offer in (HasTasks, HasPlayers, HasSnapshots, HasExpert):
        assert capability(env, offer) is None
    assert instructions_of(env) == ""
    (trajectory,) = played(env)
    assert (trajectory.player, trajectory.total_reward) == ("", 2.0)


@pytest.mark.parametrize("own", [{"tasks": ["tidy up"], "players": 1}, {"splits": 4, "instructions": None}])
def test_so_they_are_in_a_process(own: Any) -> None:
    env = ProcessEnv(ROOM, {"own": own})
    assert not hasattr(env, "tasks")
    assert len(played(env)[0].turns) == 2
    env.close()


@pytest.mark.parametrize(
    ("offer", "own", "words"),
    [
        (HasTasks, {"tasks": lambda: []}, r"method tasks\(\); turnwise expects tasks\(split: str\) -> Panel there"),
        (HasSnapshots, {"snapshot": lambda path: None, "restore": lambda s: None}, r"snapshot\(path\).*snapshot\(\)"),
        (HasExpert, {"expert": lambda kind: None}, r"expert\(kind\); .*expert\(kind: str = searching, \*, seed: int"),
        (HasPlayers, {"players": ("a", "b"), "role": lambda: "x"}, r"role\(\); .*role\(player: str\) -> str"),
        (HasPlayers, {"players": ("a", "a"), "role": lambda p: p}, "each needs a name of its own"),
    ],
)
def test_a_method_that_does_not_fit_names_both_sides(offer: Any, own: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"offers/Room-v0 has .*{words}"):
        capability(room(**own), offer)


class Wrapper(Room):
    """Hands every other name on to a simulator, and has players once a game has begun."""

    @property
    def players(self) -> list[str]:
        raise RuntimeError("no game has begun")

    def role(self, player: str) -> str:
        return "any"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *given: ["look"]


def test_names_that_only_a_simulator_answers_to_are_not_looked_at() -> None:
    env = Wrapper()
    assert [capability(env, offer) for offer in (HasTasks, HasPlayers, HasSnapshots, HasExpert)] == [None] * 4


class Around(gymnasium.Wrapper[str, str, str, str]):
    """Makes a world of what it is put around, as gymnasium's users do."""

    instructions, gives_answers, splits = "Say a number.", True, ("train",)

    def tasks(self, split: str) -> Panel:
        return Panel("around", split, (Task("around", split, 0, "k"),))

    def snapshot(self) -> int:
        return int(attribute(self.env, "turns"))

    def restore(self, snapshot: int) -> None:
        self.env.unwrapped.turns = snapshot  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        observation, info = super().reset(seed=seed)
        return f"{observation}, task {options['task']}", info


def test_a_wrapper_of_your_own_may_offer_what_a_world_may() -> None:
    env = TimeLimit(Around(room(expert=lambda kind="searching", *, seed=0: None)), 9)
    assert start(env, panel(env, "train")[0], 0)[0] == "a mug, task 0"
    assert (instructions_of(env), gives_answers(env), attribute(env, "splits")) == ("Say a number.", True, ("train",))
    assert capability(env, HasExpert) is env.unwrapped, "what is inside is still found"
    assert attribute(env, "nothing") is None


gymnasium.register("offers/Enforced-v0", lambda: Around(Room()), disable_env_checker=True)


def test_a_snapshot_continues_in_an_instance_that_was_never_reset() -> None:
    """gymnasium's wrapper, which is there unless a registration says otherwise, refuses a step before a reset."""

    class Looks:
        def begin(self, observation: str, info: Info) -> None: ...
        def act(self, observation: str, info: Info) -> str:
            return "look"

    first, second, third = (make_env("offers/Enforced-v0") for _ in range(3))
    assert isinstance(first, OrderEnforcing)
    job, seating = Job(panel(first, "train")[0]), Seating({"": Scripted("looks", lambda env, seed: Looks())})
    episode = Episode(first, job, 0, seating.seats(first, job, 0))
    episode.act()
    point = episode.fork_point(1)
    copy = Episode.from_fork_point(point, second, job, 0, seating.seats(second, job, 0)[0])
    again = Episode.from_fork_point(copy.fork_point(1), third, job, 0, seating.seats(third, job, 0)[0])
    for each in (copy, again):
        each.act()
        assert (each.end, len(each.to_move.turns)) == ("terminated", 2)
    served = Served(lambda: make_env("offers/Enforced-v0"))
    served.restore(point.world)
    assert served.step("look")[2], "so it is in a process"
    served.reset(0, {"split": "train", "task": 0})
    assert not served.step("look")[2]


def test_snapshots_are_left_alone_behind_a_wrapper_with_a_state() -> None:
    def inner() -> TextEnv:
        return Around(room())

    for made, found in ((inner(), True), (OrderEnforcing(inner()), True), (TimeLimit(inner(), 9), False)):
        assert (snapshots(made) is not None) is found
        assert ("snapshots" in Served(lambda made=made: made).describe().offers) is found  # type: ignore[misc]
    assert snapshots(TimeLimit(Room({"snapshot": lambda: 0, "restore": lambda s: None}), 9)) is None


def test_a_misfit_in_a_process_is_the_same_error() -> None:
    with pytest.raises(ValueError, match=r"has a method tasks\(\).*turnwise expects tasks\(split: str\)"):
        ProcessEnv(lambda: Room({"tasks": lambda: []}))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (["tidy up"], r"returned for tasks\('train'\) \['tidy up'\]; expected a .*Panel"),
        (None, "returned for tasks.* None; expected a .*Panel"),
        (Panel("x", "train", ()), "has no tasks in split 'train'"),
    ],
)
def test_tasks_that_are_none_are_named(found: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        panel(room(tasks=lambda split: found), "train")


def test_a_split_that_is_looked_up_in_vain_is_unknown() -> None:
    train = Panel("x", "train", (Task("x", "train", 0, "k"),))
    env = room(tasks=lambda split: {"train": train}[split])
    assert demonstrated(env, "demonstrations") is train, "this world keeps none for its expert"
    with pytest.raises(ValueError, match=r"unknown split 'tset': tasks\(\) of .*Room-v0 raised KeyError \(test_off"):
        panel(env, "tset")
    with pytest.raises(KeyError, match="shelf"):  # a fault within it stays one
        panel(room(tasks=lambda split: {}["shelf"]), "train")


def test_an_expert_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"returned 'bob' for expert\('searching'\); expected an object with begin"):
        expert_of(room(expert=lambda kind, seed: "bob"), "searching", 0)


def test_instructions_that_are_no_text_are_named() -> None:
    with pytest.raises(ValueError, match="offers/Room-v0 has instructions that are a list"):
        instructions_of(room(instructions=["look", "go"]))


@pytest.mark.parametrize(
    "info", [{"player": "white"}, {"rewards": {"format": 0.5}}, {"scores": [3]}, {"successes": "two"}], ids=str
)
def test_a_world_of_one_keeps_its_own_keys_of_players(info: Info) -> None:
    (trajectory,) = played(make_env(ROOM, info=info))
    assert trajectory.total_reward == 2.0


def test_a_game_without_roles_is_not_taken_for_a_world_of_one() -> None:
    with pytest.raises(ValueError, match=r"info\['player'\] 'a'.*has no method role\(player\)"):
        played(make_env(ROOM, own={"players": ["a", "b"]}, info={"player": "a"}))


ASKED: Info = {"messages": [{"role": "user", "content": "?"}]}


def tool(parameters: Any) -> Info:
    return {"type": "function", "function": {"name": "look", "parameters": parameters}}


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"score": 50}, r"info\['score'\] 50; expected a number in \[0, 1\]"),
        ({"score": -0.1}, r"info\['score'\] -0.1; expected"),
        ({"score": float("nan")}, r"info\['score'\] nan; expected a number in"),
        ({"score": "high"}, r"info\['score'\] 'high'; expected a number in"),
        ({"task_type": 3}, r"info\['task_type'\] 3; expected a string"),
        ({"state_key": 3}, r"info\['state_key'\] 3; expected a string, or a tuple of whole numbers"),
        ({"state_key": (1, (2, "x"))}, r"info\['state_key'\] \(1, \(2, 'x'\)\); expected a string, or a tuple"),
        ({"anchor": {"floor": 1}}, r"info\['anchor'\] {'floor': 1}; expected a string"),
        ({"valid": 2}, r"info\['valid'\] 2; expected True or False"),
        (
            {"sampling": {"temperature": "hot"}},
            r"info\['sampling'\]\['temperature'\] 'hot'; expected 0 \(greedy\) or a number",
        ),
        (
            {"sampling": {"temperature": 1e-300}},
            r"info\['sampling'\]\['temperature'\] 1e-300; expected 0 \(greedy\) or a number",
        ),
        (
            {"sampling": {"form": {"schema": True}}},
            r"info\['sampling'\]\['form'\] {'schema': True}; expected a dictionary",
        ),
        (
            {"sampling": {"form": {"call": ["look"]}}},
            r"info\['sampling'\]\['form'\] {'call': .*; expected a dictionary",
        ),
        ({"sampling": {"form": {"must": 1}}}, r"info\['sampling'\]\['form'\] {'must': 1}; expected a dictionary"),
        (ASKED | {"tools": [tool(True)]}, r"in info\['tools'\] the parameters True; expected a dictionary"),
        ({"sampling": {"stop": "END"}}, r"info\['sampling'\]\['stop'\] 'END'; expected a list of texts"),
        ({"admissible_actions": [("look",)]}, r"in info\['admissible_actions'\] \('look',\); expected a string"),
    ],
)
def test_what_info_says_wrongly_is_refused_by_the_worlds_name(info: Info, words: str) -> None:
    with pytest.raises(ValueError, match=rf"offers/Room-v0 returned {words}"):
        start(make_env(ROOM, info=info), Task("x", "train", 0, "k"), 0)


NONE = dict.fromkeys(["success", "score", "valid", "task_type", "anchor", "state_key", "admissible_actions"])


def test_none_counts_as_missing() -> None:
    env = make_env(ROOM, info=NONE | {"listed_actions": None})
    (trajectory,) = played(env)
    assert (trajectory.success, trajectory.score, trajectory.task.type) == (None, None, "")
    assert [(turn.valid, turn.anchor, turn.state_key) for turn in trajectory.turns] == [(True, "", "")] * 2
    assert trajectory.last_anchor == "ok", "the observation stands for an anchor that is not told"
    assert listed_actions({"listed_actions": None, "admissible_actions": ["look"]}) == ["look"]


def test_a_world_that_speaks_in_observations_keeps_its_own_keys_of_chats() -> None:
    own = {"sampling": "uniform", "ignored": 3, "tools": ["hammer"], "after": "noon"}
    (trajectory,) = played(make_env(ROOM, info=own))
    assert (trajectory.total_reward, trajectory.turns[0].request) == (2.0, "")
    assert (Wishes.of(own), ignored_of(own), shown_info(own)) == (Wishes(), (), {})


LOOP: dict[str, Any] = {}
LOOP["self"] = LOOP


@pytest.mark.parametrize("task", [{("a", 1): 2}, LOOP], ids=["key", "loop"])
def test_a_task_that_cannot_be_stored_is_named(task: Any) -> None:
    with pytest.raises(ValueError, match=r"info\['task'\] cannot be stored with the episode \("):
        played(make_env(ROOM, info={"task": task}))


@pytest.mark.parametrize("reward", [None, "1.0", float("nan"), 1e300, -(10**400), np.array([1.0])], ids=repr)
def test_a_reward_that_nothing_can_be_learned_from_is_refused(reward: Any) -> None:
    env = Short(info={"in": "step", "returns": ("ok", reward, False, False, {})})
    start(env, Task("x", "train", 0, "k"), 0)
    with pytest.raises(ValueError, match=r"Short returned the reward .*; expected a finite number of at most 1e100"):
        step(env, "look")


def test_scores_may_miss_their_range_by_rounding() -> None:
    assert played(make_env(ROOM, info={"score": sum([0.1] * 10) + 2e-16}))[0].score == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"player": "umpire"}, r"info\['player'\] 'umpire'; expected whose turn it is, one of left, right"),
        ({"player": ...}, r"info\['player'\] None; expected"),
        ({"rewards": ...}, "its info lacks 'rewards' of this step: expected those of left, right"),
        ({"rewards": {"north": 1.0}}, r"info\['rewards'\] of 'north'; expected the names of its players"),
        ({"rewards": [1.0, -1.0]}, r"info\['rewards'\] \[1.0, -1.0\]; expected a finite number .* for each player"),
        ({"successes": ...}, "its info lacks 'successes' after the end"),
        ({"successes": {"left": True}}, "its info lacks 'successes' after the end"),
        ({"scores": {"left": 10, "right": 0}}, r"info\['scores'\] .*expected a number in \[0, 1\] for each player"),
    ],
)
def test_a_game_that_does_not_tell_its_players_is_named(changes: Info, words: str) -> None:
    with pytest.raises(ValueError, match=rf"offers/Game-v0 .*{words}"):
        played(make_env(GAME, info=changes))


def test_a_sound_game_is_played() -> None:
    assert [t.success for t in played(make_env(GAME))] == [True, False]


class Unmade(Room):
    def __init__(self) -> None:
        super().__init__({"size": len(3)})  # type: ignore[arg-type]


for _entry, _made in {"offers/Unmade-v0": Unmade, "offers/Number-v0": lambda: 3}.items():
    gymnasium.register(_entry, _made, disable_env_checker=True)


def test_a_fault_while_it_is_made_is_not_taken_for_its_settings() -> None:
    with pytest.raises(ValueError, match=r"Unmade-v0' could not be made: TypeError \(test_off.*line \d+\): .*int"):
        make_env("offers/Unmade-v0")
    with pytest.raises(ValueError, match=r"'offers/Number-v0' could not be made: TypeError: .*must inherit from .*Env"):
        make_env("offers/Number-v0")
    with pytest.raises(ValueError, match=r"'offers/Room-v0' does not take these settings {'size': 3}: .*'size'"):
        make_env("offers/Room-v0", size=3)


class Seedless(Room):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class Optionless(Room):
    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(sed=seed)  # type: ignore[call-arg]


def test_a_reset_that_takes_no_seed_is_told_what_to_take() -> None:
    task = Task("x", "train", 0, "k")
    with pytest.raises(ValueError, match=r"Seedless cannot be reset with seed \(.*'seed'\); expected def reset\(self"):
        start(Seedless(), task, 0)
    with pytest.raises(TypeError, match="'sed'"):  # its own mistake
        start(Optionless(), task, 0)
    panels = Optionless({"tasks": lambda split: [task]})
    with pytest.raises(ValueError, match=r"Optionless cannot be reset with seed, options \(.*'options'\)"):
        start(panels, task, 0)


# Leaving.


def test_a_world_that_exits_fails_by_name() -> None:
    task = Task("x", "train", 0, "k")
    calls: dict[str, Callable[[], Any]] = {
        "gymnasium.make": lambda: make_env(ROOM, leaves_in="make"),
        "reset": lambda: start(make_env(ROOM, leaves_in="reset"), task, 0),
        "step": lambda: played(make_env(ROOM, leaves_in="step")),
        r"tasks\('train'\)": lambda: panel(room(tasks=lambda split: sys.exit("no licence")), "train"),
        "expert": lambda: expert_of(room(expert=lambda kind, seed: sys.exit()), "searching", 0),
    }
    for where, call in calls.items():
        with pytest.raises(WorldExitError, match=rf"offers/Room-v0 called sys.exit\(.*\) in {where}.*SystemExit"):
            call()


def test_an_exit_in_a_process_is_reported_and_a_reset_starts_anew() -> None:
    env = ProcessEnv(ROOM, {"leaves_in": "step"})
    for _ in range(2):
        start(env, Task("x", "train", 0, "k"), 0)
        with pytest.raises(EnvRaisedError, match=r"step\(\) raised SystemExit: 3"):
            step(env, "look")
    env.close()


def test_an_interrupt_still_comes_through() -> None:
    def interrupted(split: str) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        panel(room(tasks=interrupted), "train")


@pytest.mark.parametrize("returned", [None, "a mug", ("a mug",), ["a mug", {}], ("a mug", 1.0, True, {})])
@pytest.mark.parametrize("call", ["reset", "step"])
def test_the_wrong_number_of_parts_is_named(call: str, returned: object) -> None:
    env = Short(info={"in": call, "returns": returned})

    def played() -> None:
        start(env, Task("", "train", 0, "0"), 0)
        step(env, "look")

    with pytest.raises(ValueError, match=rf"Short returned from {call} .*; expected a tuple \(observation, "):
        played()


@pytest.mark.parametrize("returned", [None, ("a mug", 1.0, True, {})])
def test_a_wrapper_that_sees_the_wrong_number_first_does_not_hide_it(returned: object) -> None:
    """gymnasium unpacks what ``step`` returned before we do; the old API had four parts."""
    env = TimeLimit(Short(info={"in": "step", "returns": returned}), 9)
    start(env, Task("", "train", 0, "0"), 0)
    with pytest.raises(ValueError, match=r"Short returned from step something else than a tuple \(observation, "):
        step(env, "look")


@pytest.mark.parametrize("error", [ValueError("too many values to unpack (expected 2)"), ValueError("no floor 9")])
def test_what_a_world_s_own_code_raises_stays_as_it_is(error: ValueError) -> None:
    env = Short(info={"in": ""})
    start(env, Task("", "train", 0, "0"), 0)

    def raises(action: str) -> Any:
        raise error

    env.step = raises  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=re.escape(str(error))) as caught:
        step(env, "look")
    assert caught.value is error


@pytest.mark.parametrize("success", [0.5, -1, 1.0000001, 7])
def test_a_success_between_or_beyond_is_refused(success: float) -> None:
    """It would count as a success."""
    with pytest.raises(ValueError, match=r"info\['success'\] .*; expected True or False"):
        start(Room(info={"success": success}), Task("", "train", 0, "0"), 0)


@pytest.mark.parametrize("source", ["def f(:", "1 / 0", "{}['key']", "undefined"])
def test_a_module_that_cannot_be_imported_is_one_sentence(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"offers_broken_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    place = "" if source.startswith("def") else rf" \({name}\.py, line 1\)"  # a syntax error's message has its own
    with pytest.raises(ValueError, match=rf"cannot import module '{name}' \(\w+Error{place}: "):
        make_env(f"{name}:offers/Room-v0")


def test_a_world_that_cannot_be_made_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: Any, **__: Any) -> TextEnv:
        raise KeyError("LICENCE")

    monkeypatch.setattr(gymnasium, "make", made)
    with pytest.raises(ValueError, match=r"made: KeyError \(test_offers\.py, line \d+\): 'LICENCE'"):
        make_env("offers/Room-v0")
