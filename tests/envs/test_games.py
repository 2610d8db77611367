"""Games: PettingZoo's and gymnasium's contracts, rewards, illegal moves, settings, games of others."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from itertools import combinations
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.test import api_test, parallel_api_test

import turnwise.envs  # noqa: F401  (registers the environments)
from tests.envs.tables import ALL, CLASSIC, DOCUMENTED_KEYS, IDS, classic, play, random_player
from turnwise.envs.games import negotiation
from turnwise.envs.games.adapter import NumbersView, Sight, TextGame, results
from turnwise.envs.games.catalogue import GAMES
from turnwise.envs.games.env import GameEnv
from turnwise.envs.games.negotiation import Negotiation
from turnwise.envs.interface import AnyText, HasExpert, HasPlayers, HasSnapshots, HasTasks, capability

# The contract


@pytest.mark.parametrize("game", ALL)
def test_gymnasium_accepts_it(game: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(GameEnv(game), skip_render_check=True)


@pytest.mark.parametrize("name", IDS)
def test_made_by_its_id_it_offers_everything(name: str) -> None:
    env = gymnasium.make(f"turnwise/{name}-v0", split="validation")
    for protocol in (HasTasks, HasSnapshots, HasExpert, HasPlayers):
        assert capability(env, protocol) is not None
    _, info = env.reset(seed=1)
    assert set(info) == DOCUMENTED_KEYS
    assert len(env.unwrapped.players) == 2
    assert {env.unwrapped.role(player) for player in env.unwrapped.players} == {"player"}


class _Legal(AnyText):
    """A space whose samples are moves of the game, so that PettingZoo's tests play whole games."""

    def __init__(self, game: Any, agent: str) -> None:
        super().__init__(seed=3)
        self.game, self.agent = game, agent

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        moves = self.game.infos[self.agent]["admissible_actions"] or ["end"]
        return str(self.np_random.choice(moves))


def _with_legal_samples(game: Any) -> Any:
    game.action_spaces = {agent: _Legal(game, agent) for agent in game.possible_agents}
    return game


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ALL)
def test_pettingzoo_accepts_it(name: str) -> None:
    api_test(GAMES[name].make(), num_cycles=200)
    api_test(_with_legal_samples(GAMES[name].make()), num_cycles=200)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chat", [False, True])
def test_pettingzoo_accepts_the_negotiation_in_parallel(chat: bool) -> None:
    parallel_api_test(negotiation.parallel_env(chat=chat), num_cycles=200)
    game = _with_legal_samples(Negotiation(simultaneous=True, chat=chat))
    parallel_api_test(negotiation.aec_to_parallel(game), num_cycles=200)
    api_test(game, num_cycles=200)


@pytest.mark.parametrize("game", ALL)
def test_same_seed_same_transcript_and_interleaved_envs_do_not_disturb_each_other(game: str) -> None:
    def transcript(envs: list[GameEnv]) -> list[list[Any]]:
        players = [random_player(7, illegal=0.1) for _ in envs]
        now = [env.reset(seed=3) for env in envs]
        record: list[list[Any]] = [[start] for start in now]
        for _ in range(5):
            for which, env in enumerate(envs):
                action = players[which](*now[which])
                observation, *rest, info = env.step(action)
                now[which] = observation, info
                record[which] += [action, observation, rest, info]
                if rest[1]:
                    now[which] = env.reset(seed=4)
        return record

    (alone,) = transcript([GameEnv(game)])
    first, second = transcript([GameEnv(game), GameEnv(game)])
    assert alone == first == second


@pytest.mark.parametrize("game", ALL)
def test_after_the_end_there_is_no_step(game: str) -> None:
    env = GameEnv(game)
    with pytest.raises(ResetNeeded):
        env.step("1")
    play(env, 0, dict.fromkeys(env.players, random_player(0)))
    with pytest.raises(ResetNeeded):
        env.step("1")


@pytest.mark.parametrize("game", ALL)
def test_a_snapshot_continues_exactly_in_another_env(game: str) -> None:
    env, player = GameEnv(game), random_player(5, illegal=0.2)
    for task in range(10):
        observation, info = env.reset(options={"split": "train", "task": task})
        for _ in range(task % 4):
            observation, _, over, _, info = env.step(player(observation, info))
            if over:
                break
        copy = GameEnv(game, split="test")
        copy.reset(seed=0)
        copy.restore(env.snapshot())
        while info["admissible_actions"]:
            action = player(observation, info)
            observation, reward, terminated, truncated, info = env.step(action)
            assert copy.step(action) == (observation, reward, terminated, truncated, info)


@classic
def test_a_snapshot_of_another_game_is_refused() -> None:
    env, other = GameEnv("tictactoe"), GameEnv("connect_four")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="another game than 'connect_four'"):
        other.restore(env.snapshot())
    for broken in (other, GameEnv("tictactoe")):
        with pytest.raises(ResetNeeded):
            broken.snapshot()


# Rewards and results


@pytest.mark.parametrize("game", CLASSIC)
def test_what_one_wins_the_other_loses(game: str) -> None:
    env = GameEnv(game)
    first, second = env.players
    ends = Counter[str]()
    for task in range(60):
        record = play(env, task, dict.fromkeys(env.players, random_player(task, illegal=0.15)))
        totals = [sum(info["rewards"][player] for info in record) for player in env.players]
        assert all(sum(info["rewards"].values()) == 0 for info in record)
        end = record[-1]
        assert not any("outcome" in info for info in record[:-1])
        assert set(end) == {*DOCUMENTED_KEYS, "successes", "scores", "outcome"}
        expected = ("win", "loss") if totals[0] > 0 else ("loss", "win") if totals[0] < 0 else ("draw", "draw")
        assert (end["outcome"][first], end["outcome"][second]) == expected
        assert end["successes"] == {player: end["outcome"][player] == "win" for player in env.players}
        assert end["scores"][first] == pytest.approx(0.5 + totals[0] / (2 * env.game.stake))
        assert sum(end["scores"].values()) == pytest.approx(1.0)
        ends[expected[0]] += 1
    assert ends["win"] > 10
    assert ends["loss"] > 10


def test_results_of_more_than_two() -> None:
    found = results({"a": 2.0, "b": 2.0, "c": -4.0}, stake=4.0)
    assert [found[player]["outcome"] for player in "abc"] == ["draw", "draw", "loss"]
    assert [found[player]["score"] for player in "abc"] == [0.75, 0.75, 0.0]


@classic
def test_a_game_cut_by_the_step_limit_is_judged_by_the_rewards_so_far() -> None:
    env = GameEnv("rps", step_limit=4)
    env.reset(seed=0)
    for action in ("rock", "paper", "rock"):
        *_, truncated, info = env.step(action)
        assert "outcome" not in info
    *_, terminated, truncated, info = env.step("rock")
    assert (terminated, truncated) == (False, True)
    assert info["outcome"] == {"player_0": "loss", "player_1": "win"}
    assert info["scores"] == {"player_0": 0.4, "player_1": 0.6}  # one round of five


# Illegal moves


@pytest.mark.parametrize("game", CLASSIC)
@pytest.mark.parametrize("strikes", [1, 3])
def test_illegal_moves_are_told_and_the_last_strike_loses(game: str, strikes: int) -> None:
    env = GameEnv(game, strikes=strikes)
    first, info = env.reset(seed=1)
    loser = info["player"]
    (winner,) = set(env.players) - {loser}
    for _ in range(strikes - 1):
        observation, reward, terminated, _, info = env.step("99")
        assert observation == f"not a legal move\n{first}"
        assert (reward, terminated, info["valid"], info["player"]) == (0.0, False, False, loser)
    observation, reward, terminated, _, info = env.step("")
    assert terminated
    assert reward == -env.game.stake
    assert info["rewards"] == {loser: -env.game.stake, winner: env.game.stake}
    assert info["outcome"] == {loser: "loss", winner: "win"}
    assert info["scores"] == {loser: 0.0, winner: 1.0}
    assert observation.endswith("you lose")


@classic
def test_a_legal_move_takes_the_strikes_back() -> None:
    env = GameEnv("tictactoe", opening_moves=0)
    env.reset(seed=0)
    for action in ("x", "1.", "1", " 2", "1", "3", "x", "x", "4"):
        _, _, terminated, _, info = env.step(action)
        assert not terminated
    assert info["valid"]


@classic
def test_to_give_up_by_illegal_moves_costs_the_whole_stake_even_for_who_leads() -> None:
    env = GameEnv("rps", rounds=4, strikes=1)
    env.reset(seed=0)
    for action in ("paper", "rock"):
        env.step(action)
    *_, info = env.step("lizard")
    assert info["rewards"] == {"player_0": -5.0, "player_1": 5.0}  # +1 - 5 = -4, the stake of four rounds


# Starts


@pytest.mark.parametrize(
    ("game", "opening_moves"),
    [
        pytest.param(name, number, marks=classic if name != "negotiation" else ())
        for name, kind in GAMES.items()
        for number in kind.sizes
        if (name, number) != ("connect_four", 6)  # seconds
    ],
)
def test_panels_share_no_task_and_evaluation_panels_hold_none_twice(game: str, opening_moves: int) -> None:
    env = GameEnv(game, opening_moves=opening_moves)
    keys = {split: {task.key for task in env.tasks(split)[:64]} for split in env.splits}
    for one, other in combinations(keys, 2):
        assert not keys[one] & keys[other]
    for split in ("validation", "test"):
        panel = env.tasks(split)
        assert len(panel) == GAMES[game].sizes[opening_moves][split == "test"]
        assert len({task.key for task in panel}) == len(panel)
        assert not any(env.tasks("train").may_contain(task.key) for task in panel)


@classic
@pytest.mark.parametrize(("game", "moves"), [("tictactoe", 2), ("tictactoe", 3), ("connect_four", 4)])
def test_openings_give_an_evaluation_panel_different_positions(game: str, moves: int) -> None:
    env = GameEnv(game, opening_moves=moves)
    seen = set()
    for task in env.tasks("test"):
        observation, info = env.reset(options={"split": "test", "task": task.index})
        board = observation.split("\n", 1 + (game == "connect_four"))[-1]
        assert board.count("X") + board.count("O") == moves
        assert info["player"] == env.players[moves % 2]
        seen.add(observation)
    assert len(seen) == len(env.tasks("test"))


@classic
def test_the_deal_is_the_tasks_and_all_deals_come_in_training() -> None:
    env = GameEnv("leduc")
    hands = Counter[tuple[str, ...]]()
    for task in range(400):
        env.reset(seed=task, options={"task": task})
        state = env.game.game.env.get_perfect_information()
        env.reset(options={"task": task})
        assert env.game.game.env.get_perfect_information() == state
        hands[tuple(card[1] for card in state["hand_cards"])] += 1
    assert len(hands) == 9
    assert 8 < hands["K", "K"] < 50  # 1 in 15
    assert 30 < hands["J", "K"] < 80  # 2 in 15


# Games of others


class _Count(ParallelEnv):
    """Three players name a number, 1 to 3, at once; the highest wins."""

    metadata = {"name": "count_v0"}  # noqa: RUF012
    render_mode = None
    possible_agents = ["thief_0", "guard_0", "guard_1"]  # noqa: RUF012

    def observation_space(self, agent: str) -> Box:
        return Box(0, 3, (3,))

    def action_space(self, agent: str) -> Discrete:
        return _THREE

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents = self.possible_agents[:]
        return {agent: np.zeros(3) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        named = np.array([actions[agent] for agent in self.possible_agents], dtype=float)
        agents, self.agents = self.agents, []
        rewards = dict(zip(agents, np.where(named == named.max(), 1.0, -0.5).tolist(), strict=True))
        seen = dict.fromkeys(agents, named)
        return seen, rewards, dict.fromkeys(agents, True), dict.fromkeys(agents, False), {a: {} for a in agents}


_THREE = Discrete(3, start=1)


@pytest.mark.filterwarnings("ignore")
def test_a_parallel_game_of_three_reads_as_numbers() -> None:
    api_test(_with_legal_samples(TextGame(_Count, NumbersView())), num_cycles=50)
    env = GameEnv(_Count)
    assert env.players == ("thief_0", "guard_0", "guard_1")
    assert [env.role(player) for player in env.players] == ["thief", "guard", "guard"]
    observation, info = env.reset(seed=0)
    assert observation == "0 0 0\nactions 1 2 3"
    for action, player in (("2", "guard_0"), ("3", "guard_1")):
        observation, reward, terminated, _, info = env.step(action)
        assert (observation, reward, terminated, info["player"]) == ("0 0 0\nactions 1 2 3", 0.0, False, player)
    observation, reward, terminated, _, info = env.step("1")
    assert terminated
    assert info["rewards"] == {"thief_0": -0.5, "guard_0": 1.0, "guard_1": -0.5}
    assert info["outcome"] == {"thief_0": "loss", "guard_0": "win", "guard_1": "loss"}
    assert reward == -0.5
    with pytest.raises(ValueError, match="has no expert"):
        env.expert()
    with pytest.raises(ValueError, match=r"Unknown player 'gard_0'\. Did you mean 'guard_0'"):
        env.role("gard_0")


class _LastOneIn(AECEnv):
    """Three players in turn; who says 0 is out with -1, and the last one in wins 2."""

    metadata = {"name": "last_v0", "is_parallelizable": False}  # noqa: RUF012
    render_mode = None
    possible_agents = ["player_0", "player_1", "player_2"]  # noqa: RUF012

    def observation_space(self, agent: str) -> Discrete:
        return Discrete(4)

    def action_space(self, agent: str) -> Discrete:
        return Discrete(2)

    def observe(self, agent: str) -> np.ndarray:
        return np.array(len(self.agents))

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents = self.possible_agents[:]
        self.agent_selection = self.agents[0]
        self._skip_agent_selection = None
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos: dict[str, Any] = {agent: {} for agent in self.agents}

    def step(self, action: int | None) -> None:
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        self._clear_rewards()
        self._cumulative_rewards[agent] = 0.0
        place = self.agents.index(agent)
        self.agent_selection = self.agents[(place + 1) % len(self.agents)]
        if action == 0:
            self.rewards[agent] = -1.0
            self.terminations[agent] = True
            (*others,) = (each for each in self.agents if each != agent)
            if len(others) == 1:
                self.rewards[others[0]] = 2.0
                self.terminations[others[0]] = True
        self._accumulate_rewards()
        self._deads_step_first()


@pytest.mark.filterwarnings("ignore")
def test_players_who_are_out_leave_the_table() -> None:
    api_test(_with_legal_samples(TextGame(_LastOneIn, NumbersView())), num_cycles=50)
    env = GameEnv(_LastOneIn)
    env.reset(seed=0)
    turns = []
    for action in ("1", "0", "1", "1"):
        *_, info = env.step(action)
        turns.append((info["player"], info["rewards"]["player_1"]))
    assert turns == [("player_1", 0.0), ("player_2", -1.0), ("player_0", 0.0), ("player_2", 0.0)]
    _, reward, terminated, _, info = env.step("0")
    assert (reward, terminated) == (-1.0, True)
    assert info["rewards"] == {"player_0": 2.0, "player_1": 0.0, "player_2": -1.0}
    assert info["outcome"] == {"player_0": "win", "player_1": "loss", "player_2": "loss"}


class _Stuck(_LastOneIn):
    """Forgets that who is out has to leave."""

    def step(self, action: int | None) -> None:
        if not self.terminations[self.agent_selection]:
            super().step(action)


class _Numbered(_LastOneIn):
    possible_agents = [0, 1, 2]  # type: ignore[list-item]  # noqa: RUF012


@pytest.mark.filterwarnings("ignore")
def test_a_game_that_its_players_cannot_leave_is_told() -> None:
    env = GameEnv(_Stuck)
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match=r"_Stuck: 'player_0' is out and did not leave .*self\._was_dead_step"):
        env.step("0")


def test_players_have_names() -> None:
    with pytest.raises(ValueError, match=r"_Numbered has the agents \[0, 1, 2\]: expected texts, such as 'player_0'"):
        GameEnv(_Numbered)


class _Shouted(NumbersView):
    def moves(self, sight: Sight) -> dict[str, Any]:
        return {f"Say {number}.": number for number in sight.legal}


def test_moves_may_be_named_in_any_case() -> None:
    env = GameEnv(lambda: TextGame(_LastOneIn, _Shouted()))
    _, info = env.reset(seed=0)
    assert info["admissible_actions"] == ["say 0", "say 1"]
    assert env.step("Say 1")[-1]["valid"]
    assert env.step("say 1.")[-1]["valid"]


# Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"game": "negociation"}, "Unknown game 'negociation'. Did you mean 'negotiation'"),
        (
            {"game": "negotiation", "round": 3},
            "Unknown setting 'round' in the game 'negotiation'. Did you mean 'rounds'",
        ),
        (
            {"game": "negotiation", "opening_moves": 2},
            "opening_moves of the game 'negotiation' must be one of: 0; got 2",
        ),
        ({"game": "negotiation", "rounds": 0}, "rounds must be at least 1, got 0"),
        ({"game": "negotiation", "step_limit": 0}, "step_limit must be at least 1"),
    ],
)
def test_wrong_settings_say_what_is_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GameEnv(**settings)


@classic
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strikes": 0}, "strikes must be at least 1"),
        ({"opening_moves": 7}, "must be one of: 0, 2, 3, 4; got 7"),
        ({"game": "rps", "rounds": 0}, "rounds must be at least 1"),
    ],
)
def test_wrong_settings_of_the_classic_games_say_what_is_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GameEnv(**settings)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("pettingzoo.classic.rps", "pygame"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ValueError, match=r'The game .rps. needs.*pygame.*pip install -e "\.\[games\]"'):
        GameEnv("rps")
    env = GameEnv("negotiation")  # needs nothing of it
    assert "outcome" in play(env, 0, dict.fromkeys(env.players, random_player(0)))[-1]
