"""Generated games as official game files: read back by us, and played by the official engine."""

from __future__ import annotations

import json
import lzma
import os
import random
from functools import lru_cache
from pathlib import Path

import pytest

from turnwise.envs.alfworld.game import Game
from turnwise.envs.alfworld.pddl import parse_game, read_game_file
from turnwise.envs.alfworld.simulator import Simulator
from turnwise.envs.household import export
from turnwise.envs.household.generator import PRESETS, generate

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TURNWISE_DATA", ROOT.parent / "shared" / "data"))
GAMES = DATA / "alfworld" / "games_2.1.3.jsonl.xz"


@lru_cache(maxsize=1)
def _texts() -> tuple[str, str]:
    """(domain, grammar): from the installed package, else from the shared data, else the test is skipped."""
    try:
        return export.official_texts()
    except ModuleNotFoundError:
        if not GAMES.exists():
            pytest.skip(f"neither alfworld is installed nor {GAMES} present (TURNWISE_DATA)")
    with lzma.open(GAMES, "rt", encoding="utf-8") as lines:
        header = json.loads(next(lines))
    return header["pddl_domain"], header["grammar_template"]


def _transcript(game: Game, seed: int, length: int = 60) -> list[object]:
    """Text, admissible commands and outcome of a random walk that ends with the walkthrough's commands."""
    rng = random.Random(seed)
    simulator = Simulator(game)
    record: list[object] = [simulator.reset(), list(simulator.menu())]
    for turn in range(length + len(game.walkthrough)):
        walk = turn - length
        command = game.walkthrough[walk] if walk >= 0 else rng.choice(list(simulator.menu()))
        record += [command, *simulator.step(command), list(simulator.menu()), simulator.won]
    return record


@pytest.mark.parametrize("difficulty", sorted(PRESETS))
def test_an_exported_game_reads_back_and_plays_the_same(difficulty: str, tmp_path: Path) -> None:
    domain, grammar = _texts()
    for seed in range(12):
        game = generate(seed, difficulty)
        path = export.export_game(game, tmp_path / str(seed), domain=domain, grammar=grammar)
        back = parse_game(read_game_file(path))
        assert _transcript(back, seed) == _transcript(game, seed)
        assert (back.goal, back.task, back.walkthrough) == (game.goal, game.task, game.walkthrough)
        assert json.loads(path.with_name("traj_data.json").read_text()) == {"task_type": game.goal.type}


def test_without_the_official_package_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install -e "\.\[official\]"'):
        export.export_game(generate(0), tmp_path)


def test_a_grammar_without_a_task_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 0 rules"):
        export.with_task("grammar", "put a mug in desk.")


@pytest.mark.parametrize(("difficulty", "seeds"), [("easy", range(6)), ("hard", range(6, 9))])
def test_the_official_engine_plays_exported_games_alike(difficulty: str, seeds: range, tmp_path: Path) -> None:
    pytest.importorskip("alfworld", reason='needs the official engine: pip install -e ".[official]"')
    import textworld
    import textworld.gym
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler

    wanted = textworld.EnvInfos(won=True, admissible_commands=True)
    for seed in seeds:
        game = generate(seed, difficulty)
        path = export.export_game(game, tmp_path / str(seed))
        name = textworld.gym.register_games([str(path)], wanted, wrappers=[AlfredDemangler()])
        official, simulator, rng = textworld.gym.make(name), Simulator(game), random.Random(seed)
        for walk in (game.walkthrough, (None,) * 25):  # the way to the goal, then a random walk
            text, infos = official.reset()
            assert text == simulator.reset()
            for planned in walk:
                assert sorted(set(infos["admissible_commands"])) == list(simulator.menu())
                command = planned or rng.choice(list(simulator.menu()))
                text, _, _, infos = official.step(command)
                assert (command, text) == (command, simulator.step(command)[0])
                assert infos["won"] == simulator.won
                if simulator.won:
                    break
            assert simulator.won or walk is not game.walkthrough
        official.close()
