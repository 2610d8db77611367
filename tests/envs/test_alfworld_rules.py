"""The rules and the quirks of the official text games, on a small house built by hand."""

from __future__ import annotations

import random

import pytest

from tests.envs.alfworld_house import GOALS, house
from turnwise.envs.alfworld.game import Dialect
from turnwise.envs.alfworld.knowing import next_command
from turnwise.envs.alfworld.simulator import HELP, Simulator
from turnwise.envs.alfworld.world import display_names, sentence_list


def play(simulator: Simulator, *commands: str) -> str:
    """The answer to the last of several admissible commands."""
    text = ""
    for command in commands:
        text, valid = simulator.step(command)
        assert valid, (command, list(simulator.menu()))
    return text


def test_reset_lists_the_room_and_look_there_does_not() -> None:
    simulator = Simulator(house())
    assert simulator.reset() == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, "
        "you see a cabinet 1, a countertop 2, a countertop 1, a desk 1, a fridge 1, a microwave 1, and a "
        "sinkbasin 1.\n\nYour task is to: do pick."
    )
    room = "You are in the middle of a room. Looking quickly around you, you see nothing."
    assert play(simulator, "look") == room
    assert play(simulator, "help") == HELP


def test_the_menu_is_sorted_and_leaves_out_places_at_the_same_spot() -> None:
    simulator = Simulator(house())
    play(simulator, "go to countertop 1")
    menu = list(simulator.menu())
    assert menu == sorted(menu)
    assert [command for command in menu if command.startswith("go to")] == [
        *("go to cabinet 1", "go to desk 1", "go to fridge 1", "go to microwave 1")
    ]
    assert "take apple 2 from countertop 2" in menu, "everything at one spot is in reach"
    assert "examine apple 2" not in menu, "only what is held can be examined"


def test_numbers_run_downwards_over_sorted_ids_and_sinks_are_basins() -> None:
    names = display_names(["Cup_bar_2", "cup_bar_1", "Sink_bar_1_bar_SinkBasin", "Sink_bar_1", "AppleType"])
    assert names["cup_bar_1"] == "cup 2"
    assert names["Cup_bar_2"] == "cup 1"
    assert names["Sink_bar_1_bar_SinkBasin"] == "sinkbasin 1"
    assert names["Sink_bar_1"] == "sink 1"


def test_lists_of_none_one_two_and_three() -> None:
    assert sentence_list([]) == "nothing"
    assert sentence_list(["a"]) == "a"
    assert sentence_list(["a", "b"]) == "a, and b"
    assert sentence_list(["a", "b", "c"]) == "a, b, and c"


def test_what_was_moved_at_one_spot_lies_next_to_it_once_for_each_place_it_left() -> None:
    simulator = Simulator(house())
    faced = "You are facing the countertop 2, countertop 1, and sinkbasin 1. Next to it, you see "
    assert play(simulator, "go to sinkbasin 1", "look") == faced + "nothing."
    assert play(simulator, "take apple 2 from countertop 2", "look") == faced + "nothing."
    assert play(simulator, "move apple 2 to countertop 1", "look") == faced + "a apple 2."
    play(simulator, "take apple 2 from countertop 1", "move apple 2 to sinkbasin 1")
    assert play(simulator, "look") == faced + "a apple 2, and a apple 2."
    play(simulator, "take apple 2 from sinkbasin 1", "move apple 2 to countertop 2")
    assert play(simulator, "look") == faced + "a apple 2, and a apple 2.", "left countertop 1 and the sink"


def test_open_and_close() -> None:
    simulator = Simulator(house())
    assert play(simulator, "go to fridge 1") == "You arrive at fridge 1. The fridge 1 is closed."
    assert simulator.step("take apple 1 from fridge 1") == ("Nothing happens.", False)
    opened = "The fridge 1 is open. In it, you see a apple 1."
    assert play(simulator, "open fridge 1") == f"You open the fridge 1. {opened}"
    assert play(simulator, "examine fridge 1") == opened
    assert "open fridge 1" not in simulator.menu()
    assert play(simulator, "close fridge 1") == "You close the fridge 1."


def test_a_held_object_shows_its_marks() -> None:
    simulator = Simulator(house())
    play(simulator, "go to countertop 1", "take knife 1 from countertop 1")
    assert play(simulator, "slice apple 2 with knife 1") == "You sliced the apple 2 with the knife 1."
    play(simulator, "move knife 1 to countertop 1", "take apple 2 from countertop 2")
    assert play(simulator, "examine apple 2") == "This is a sliced apple 2."
    assert play(simulator, "clean apple 2 with sinkbasin 1") == "You clean the apple 2 using the sinkbasin 1."
    assert play(simulator, "examine apple 2") == "This is a clean sliced apple 2."
    assert play(simulator, "go to microwave 1") == "You arrive at microwave 1. The microwave 1 is closed."
    play(simulator, "heat apple 2 with microwave 1")
    assert play(simulator, "examine apple 2") == "This is a hot and clean sliced apple 2."
    play(simulator, "go to fridge 1", "cool apple 2 with fridge 1")
    assert play(simulator, "examine apple 2") == "This is a cool and clean sliced apple 2."


def test_cold_is_the_word_for_cool_alone_and_it_may_be_so_from_the_start() -> None:
    simulator = Simulator(house())
    play(simulator, "go to fridge 1", "open fridge 1", "take apple 1 from fridge 1")
    assert play(simulator, "examine apple 1") == "This is a cold apple 1."
    assert play(simulator, "go to microwave 1", "heat apple 1 with microwave 1", "examine apple 1") == (
        "This is a hot apple 1."
    )


def test_a_thing_that_holds_others_tells_them_for_ever() -> None:
    simulator = Simulator(house())
    play(simulator, "go to countertop 1", "take spoon 1 from countertop 1", "move spoon 1 to countertop 2")
    play(simulator, "take pan 1 from countertop 1")
    assert play(simulator, "examine pan 1") == ("This is a normal pan 1. In it, you see a fork 1, and a spoon 1.")


def test_a_thing_in_two_places_stays_in_the_other_when_taken() -> None:
    simulator = Simulator(house())
    play(simulator, "go to desk 1", "take pan 1 from desk 1", "go to countertop 1")
    assert "a pan 1" in play(simulator, "examine countertop 1")
    assert play(simulator, "inventory") == "You are carrying: a pan 1."
    assert "take pan 1 from countertop 1" not in simulator.menu(), "the hands are full"


def test_use_reaches_into_closed_places_and_never_turns_off() -> None:
    simulator = Simulator(house())
    play(simulator, "go to cabinet 1")
    assert play(simulator, "use candle 1") == "You turn on the candle 1."
    assert play(simulator, "use candle 1") == "You turn on the candle 1."
    play(simulator, "open cabinet 1", "take candle 1 from cabinet 1")
    assert play(simulator, "examine candle 1") == "This candle 1 is on."


def test_one_object_at_a_time() -> None:
    simulator = Simulator(house())
    assert play(simulator, "inventory") == "You are not carrying anything."
    play(simulator, "go to desk 1", "take cd 1 from desk 1")
    assert not [command for command in simulator.menu() if command.startswith("take")]
    assert play(simulator, "examine cd 1") == "There's nothing special about cd 1."


def test_the_older_dialect() -> None:
    simulator = Simulator(house(dialect="2.1.1"))
    assert "help" not in simulator.menu()
    # locations are numbered like everything else, downwards: loc_bar_5 is the second last of seven
    assert play(simulator, "go to desk 1") == (
        "You arrive at loc 2. On the desk 1, you see a cd 1, a desklamp 1, a pan 1, and a roll 1."
    )
    play(simulator, "take cd 1 from desk 1", "go to countertop 1")
    put = "put cd 1 in/on countertop 1"
    assert play(simulator, put) == "You put the cd 1 in/on the countertop 1."


def test_commands_are_stripped_but_never_lowered() -> None:
    simulator = Simulator(house())
    assert simulator.step("Look") == ("Nothing happens.", False)
    assert simulator.step("  look\n")[1]
    assert simulator.step("")[1] is False


@pytest.mark.parametrize("dialect", ["2.1.1", "2.1.3"])
@pytest.mark.parametrize("goal", GOALS)
def test_the_knowing_expert_wins_from_the_start_and_from_noise(goal: str, dialect: Dialect) -> None:
    for seed in range(20):
        rng, simulator = random.Random(seed), Simulator(house(goal, dialect))
        for _ in range(seed):
            if not simulator.won:
                # The roll fits nowhere: whoever takes it holds it for ever and cannot win any more.
                safe = [command for command in simulator.menu() if "take roll" not in command]
                simulator.step(rng.choice(safe))
        for _ in range(16):
            if not simulator.won:
                play(simulator, next_command(simulator))
        assert simulator.won


def test_two_objects_must_share_one_receptacle() -> None:
    simulator = Simulator(house("two"))
    play(simulator, "go to countertop 1", "take apple 2 from countertop 2", "go to cabinet 1")
    play(simulator, "open cabinet 1", "move apple 2 to cabinet 1")
    assert not simulator.won
    play(simulator, "go to fridge 1", "open fridge 1", "take apple 1 from fridge 1", "go to cabinet 1")
    assert not simulator.won
    play(simulator, "move apple 1 to cabinet 1")
    assert simulator.won


def test_light_needs_the_lamp_on_the_object_held_and_both_here() -> None:
    simulator = Simulator(house("look"))
    play(simulator, "go to desk 1", "use desklamp 1")
    assert not simulator.won
    play(simulator, "take cd 1 from desk 1")
    assert simulator.won
    play(simulator, "go to cabinet 1")
    assert not simulator.won


def test_restoring_a_state_undoes_everything() -> None:
    rng, simulator = random.Random(0), Simulator(house())
    simulator.reset()
    for _ in range(200):
        state, menu, won = simulator.snapshot(), list(simulator.menu()), simulator.won
        for _ in range(5):
            simulator.step(rng.choice(list(simulator.menu())))
        simulator.restore(state)
        assert (simulator.snapshot(), list(simulator.menu()), simulator.won) == (state, menu, won)
        simulator.step(rng.choice(menu))


def test_kept_menus_are_what_a_fresh_look_gives() -> None:
    """The menus are kept between steps; a simulator restored to the same state has none kept."""
    rng, simulator = random.Random(1), Simulator(house("heat"))
    fresh = Simulator(simulator.world)
    simulator.reset()
    for _ in range(2000):
        simulator.step(rng.choice(list(simulator.menu())))
        fresh.restore(simulator.snapshot())
        assert simulator.menu() == fresh.menu()
