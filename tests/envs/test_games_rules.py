"""How each game reads, how strong its expert is, and the negotiation."""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest

import turnwise.envs  # noqa: F401  (registers the environments)
from tests.envs.tables import classic, match, play, random_player
from turnwise.envs.games import leduc
from turnwise.envs.games.catalogue import GAMES
from turnwise.envs.games.env import GameEnv
from turnwise.envs.games.negotiation import GOOD_DEAL, POINTS, Negotiation, Scenario, draw_scenario

# How games read


@classic
def test_tictactoe_numbers_its_cells_as_one_reads() -> None:
    env = GameEnv("tictactoe", opening_moves=0)
    first, _ = env.reset(seed=0)
    assert first == "you are X\n1 2 3\n4 5 6\n7 8 9"
    second, *_, info = env.step("3")
    assert second == "you are O\n1 2 X\n4 5 6\n7 8 9"
    assert info["admissible_actions"] == list("12456789")
    for action in ("1", "6", "2"):
        env.step(action)
    end, reward, terminated, _, info = env.step("9")
    assert end == "you are X\nO O X\n4 5 X\n7 8 X\nyou win"
    assert (reward, terminated) == (1.0, True)


@classic
def test_connect_four_stacks_marks() -> None:
    env = GameEnv("connect_four", opening_moves=0)
    env.reset(seed=0)
    for action in ("4", "4", "4", "4", "4"):
        env.step(action)
    observation, *_, info = env.step("4")
    column = ". . . {} . . ."
    assert observation.splitlines() == ["you are X", "1 2 3 4 5 6 7", *(column.format(mark) for mark in "OXOXOX")]
    assert info["admissible_actions"] == list("123567")


@classic
def test_leduc_tells_a_player_what_it_may_know() -> None:
    """Against the true state of the game, for both players, at every moment of random games."""
    game, rng, shown_rounds = GAMES["leduc"].make(), random.Random(0), Counter[int]()
    for seed in range(60):
        game.reset(seed=seed)
        while not game.over:
            state = game.game.env.get_perfect_information()
            board = state["public_card"][1] if state["public_card"] else "none"
            for number, agent in enumerate(game.agents):
                hand, chips = state["hand_cards"][number][1], state["chips"]
                lines = str(game.observe(agent)).splitlines()
                assert lines[:2] == [
                    f"your card {hand}, shown {board}",
                    f"chips you {chips[number]}, they {chips[1 - number]}",
                ]
                to_move = agent == game.agent_selection
                assert (lines[-1] == "moves " + " ".join(state["legal_actions"])) is to_move
            shown_rounds[state["current_round"]] += 1
            game.step(rng.choice(game.infos[game.agent_selection]["admissible_actions"]))
    assert min(shown_rounds[0], shown_rounds[1]) > 30


@classic
def test_leduc_bets_are_told_by_who_made_them() -> None:
    game = GAMES["leduc"].make()
    game.reset(seed=2)
    for move in ("raise", "call"):
        game.step(move)
    second, first = game.agents.copy(), game.agent_selection
    second.remove(first)
    game.step("check")
    assert "you raise, they call | you check" in game.observe(first)
    assert "they raise, you call | they check" in game.observe(second[0])


@classic
@pytest.mark.parametrize("last", [False, True])
def test_rock_paper_scissors_hides_the_first_move(last: bool) -> None:
    """The second player sees the same, whatever the first has chosen in this round; then both see both."""
    seen, afterwards = set(), set()
    for choice in ("rock", "paper", "scissors"):
        env = GameEnv("rps", rounds=3)
        env.reset(seed=0)
        for action in ("rock", "paper", "rock", "rock") if last else ():
            env.step(action)
        observation, reward, *_, info = env.step(choice)
        assert (reward, info["player"]) == (0.0, "player_1")
        seen.add((observation, str(info["rewards"]), tuple(info["admissible_actions"])))
        observation, *_ = env.step("paper")
        afterwards.add(observation)
    assert len(seen) == 1
    assert len(afterwards) == 3


@classic
def test_no_window_is_opened() -> None:
    env = GameEnv("rps")
    play(env, 0, dict.fromkeys(env.players, random_player(0)))
    assert sys.modules["pygame"].display.get_surface() is None


# Experts


@classic
def test_tictactoe_expert_never_loses_from_the_empty_board() -> None:
    env = GameEnv("tictactoe", opening_moves=0)
    expert = env.expert("searching", seed=1).act
    outcomes, _ = match(env, expert, random_player(1), 300)
    assert outcomes["loss"] == 0
    assert outcomes["win"] > 240
    assert match(env, expert, env.expert("knowing", seed=2).act, 100)[0] == {"draw": 100}


@classic
def test_tictactoe_expert_is_random_among_equals() -> None:
    env = GameEnv("tictactoe", opening_moves=0)
    observation, info = env.reset(seed=0)
    expert = env.expert(seed=0)
    assert {expert.act(observation, info) for _ in range(200)} == set("123456789")  # all nine openings draw
    observation, *_, info = env.step("1")
    assert {expert.act(observation, info) for _ in range(20)} == {"5"}  # all else loses to a corner


@classic
def test_connect_four_expert_wins_and_blocks() -> None:
    env = GameEnv("connect_four", opening_moves=0)
    expert = env.expert(seed=0)
    observation, info = env.reset(seed=0)
    for action in ("1", "7", "1", "7", "1"):
        observation, *_, info = env.step(action)
    assert expert.act(observation, info) == "1"
    observation, *_, info = env.step("7")
    assert expert.act(observation, info) == "1"
    outcomes, _ = match(GameEnv("connect_four"), expert.act, random_player(2), 40)
    assert outcomes["win"] >= 39


@classic
def test_leduc_table_follows_the_real_game() -> None:
    """Legal moves (but for folding where checking is free), chips and payoffs along random games."""
    game, rng = GAMES["leduc"].make(), random.Random(1)
    nodes = leduc.solve()
    for seed in range(200):
        game.reset(seed=seed)
        seats, table = [game.agent_selection], leduc.Table()
        seats += [agent for agent in game.agents if agent not in seats]
        node, reward = nodes[""], dict.fromkeys(seats, 0.0)
        while node.payoff is None:
            table, agent = node.table, game.agent_selection
            text = str(game.observe(agent))
            assert leduc.parse(text)[2] == table.bets
            assert seats[table.player] == agent
            own, other = table.chips[table.player], table.chips[1 - table.player]
            assert f"chips you {own}, they {other}" in text
            legal = {move: name for move, name in leduc.NAMES.items() if name in text.splitlines()[-1].split()}
            assert set(table.moves()) == set(legal) - ({"f"} if "k" in legal else set())
            move = rng.choice(table.moves())
            game.step(legal[move])
            node = node.children[table.moves().index(move)]
        reward = game.rewards
        state = game.game.env.get_perfect_information()
        hands = ["JQK".index(state["hand_cards"][game.possible_agents.index(seat)][1]) for seat in seats]
        board = "JQK".index(state["public_card"][1]) if state["public_card"] else 0
        assert node.payoff[hands[0], hands[1], board] / 2 == reward[seats[0]] == -reward[seats[1]]


def _best_answer(node: leduc.Node, player: int, others: np.ndarray) -> np.ndarray:
    """Values [3, 3, 3] of player 0, where ``player`` answers the other's average policy as well as it can.

    ``others`` [card, shown]: how likely the other's choices lead here.
    """
    if node.payoff is not None:
        return node.payoff
    mover, average = node.table.player, node.average()
    if mover != player:
        values = [
            _best_answer(child, player, others * odds) for child, odds in zip(node.children, average, strict=True)
        ]
        return (leduc._spread(average, mover) * np.stack(values)).sum(axis=0)
    values = np.stack([_best_answer(child, player, others) for child in node.children])
    weighed = values * leduc._DEALS * leduc._spread(others[None], 1 - mover) * (1 if player == 0 else -1)
    choice = leduc._own(weighed, mover, "|" in node.table.bets).argmax(axis=0)  # [own card, shown]
    chosen = np.arange(len(values))[:, None, None] == choice
    return (leduc._spread(chosen, mover) * values).sum(axis=0)


def test_leduc_expert_can_hardly_be_exploited() -> None:
    leduc.solve.cache_clear()
    root = leduc.solve()[""]
    gains = [(leduc._DEALS * _best_answer(root, player, np.ones((3, 3)))).sum() for player in (0, 1)]
    exploitability = (gains[0] - gains[1]) / 2  # chips a game and player; always to fold loses 1.5
    assert 0 <= exploitability < 0.02
    uniform = leduc.build()
    against = [(leduc._DEALS * _best_answer(uniform, player, np.ones((3, 3)))).sum() for player in (0, 1)]
    assert (against[0] - against[1]) / 2 > 1


@classic
def test_leduc_expert_wins_chips_from_a_random_player() -> None:
    env = GameEnv("leduc")
    _, mean = match(env, env.expert(seed=1).act, random_player(3), 600)
    assert mean > 0.4  # big blinds a game
    with pytest.raises(ValueError, match=r"Unknown expert 'knowing' in the game 'leduc'.*searching"):
        env.expert("knowing")


@classic
def test_rock_paper_scissors_expert_is_uniform() -> None:
    env = GameEnv("rps")
    observation, info = env.reset(seed=0)
    expert = env.expert(seed=0)
    drawn = Counter(expert.act(observation, info) for _ in range(3000))
    assert all(900 < count < 1100 for count in drawn.values())
    assert len(drawn) == 3


def test_negotiators_make_good_deals() -> None:
    env = GameEnv("negotiation")
    shares = {}
    for kinds in (("searching", "searching"), ("knowing", "knowing"), ("knowing", "searching")):
        joint, deals = [], 0
        for task in range(150):
            players = {player: env.expert(kind, seed=task).act for player, kind in zip(env.players, kinds, strict=True)}
            end = play(env, task, players)[-1]
            deals += all(end["successes"].values())
            joint.append(end["joint_share"])
        assert deals == 150
        shares[kinds] = np.mean(joint)
    assert shares["searching", "searching"] > 0.95
    assert shares["knowing", "knowing"] > 0.98
    outcomes, mean = match(env, env.expert(seed=0).act, random_player(4), 300)
    assert mean > 0.6
    assert outcomes["win"] > 150


# Negotiation


def test_every_scenario_has_a_good_deal() -> None:
    for seed in range(200):
        scenario = draw_scenario(seed)
        assert scenario == draw_scenario(seed)
        assert 5 <= sum(scenario.pile) <= 7
        assert [scenario.points(player, scenario.pile) for player in (0, 1)] == [POINTS, POINTS]
        assert any(min(scenario.both(share)) >= GOOD_DEAL for share in scenario.shares())


def _negotiation(**settings: Any) -> Negotiation:
    game = Negotiation(**settings)
    game.reset(seed=0)
    game.scenario = Scenario((2, 1, 3), ((1, 5, 1), (2, 0, 2)))
    return game


def test_a_deal_gives_each_the_worth_of_its_share() -> None:
    game = _negotiation()
    assert str(game.observe("player_0")) == "pile 2 book 1 hat 3 ball\nworth to you 1 5 1\nturn 1 of 5"
    game.step("Offer 1  1 0.")
    assert "they offer you 1 0 3 worth 8" in game.observe("player_1")
    game.step("offer 2 0 3")
    assert str(game.observe("player_0")).splitlines()[2:] == [
        "you asked 1 1 0",
        "they offer you 0 1 0 worth 5",
        "turn 2 of 5",
    ]
    game.step("accept")
    assert game.rewards == {"player_0": 0.5, "player_1": 1.0}  # 5 of 10, and 2*2 + 3*2 = 10 of 10
    assert game.infos["player_0"]["joint_share"] == 1.0
    assert [game.infos[agent]["success"] for agent in game.agents] == [True, True]
    assert "deal, you get 2 0 3 worth 10" in game.observe("player_1")


def test_without_a_deal_nobody_gets_anything() -> None:
    for moves in (["end"], ["offer 1 0 0", "end"], ["offer 1 0 0"] * 4):
        game = _negotiation(rounds=2)
        for move in moves:
            assert not any(game.terminations.values())
            game.step(move)
        assert all(game.terminations.values())
        assert set(game.rewards.values()) == {0.0}
        assert game.infos["player_0"]["success"] is False
        assert "no deal" in game.observe("player_1")


@pytest.mark.parametrize("text", ["accept", "offer 3 0 0", "offer 1 1", "take it", "", "please end"])
def test_what_is_no_move_passes_the_turn(text: str) -> None:
    game = _negotiation()
    game.step(text)
    assert not game.infos["player_0"]["valid"]
    assert "not understood" in game.observe("player_0")
    assert game.agent_selection == "player_1"
    assert "offer" not in game.observe("player_1")
    game.step("accept")  # there is still no offer
    assert not game.infos["player_1"]["valid"]
    game.step("offer 0 0 1")
    assert game.infos["player_0"]["valid"]


def test_words_reach_the_other_with_chat_alone() -> None:
    game = _negotiation(chat=True)
    game.step("I love hats, offer 0 1 0")
    assert "they say i love hats" in game.observe("player_1")
    assert "they offer you 2 0 3 worth 10" in game.observe("player_1")
    game.step("x" * 500)
    assert "they say " + "x" * 200 + "\n" in game.observe("player_0")
    assert all(info["valid"] for info in game.infos.values())


def test_simultaneous_messages_become_known_together() -> None:
    game = _negotiation(simultaneous=True)
    before = game.observe("player_1")
    game.step("offer 1 1 0")
    assert game.observe("player_1") == before
    game.step("accept")  # of what it cannot know yet
    assert not game.infos["player_1"]["valid"]
    assert not any(game.terminations.values())
    game.step("offer 0 1 0")
    game.step("accept")  # the offer of the round before
    assert game.deal == {"player_0": (1, 1, 0), "player_1": (1, 0, 3)}
