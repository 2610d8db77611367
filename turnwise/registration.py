"""The worlds that come along, by their gymnasium ids. ``import turnwise`` registers them; a leaf, quick to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gymnasium.envs.registration import register, registry


@dataclass(frozen=True, slots=True)
class World:
    """An environment of ours: where its class is, what a reader should know, and its fixed arguments."""

    entry_point: str
    summary: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


_GAME = "turnwise.envs.games.env:GameEnv"

WORLDS: dict[str, World] = {
    "turnwise/Household-v0": World(
        "turnwise.envs.household.env:HouseholdEnv", "generated household games, three sizes; no download"
    ),
    "turnwise/ALFWorld-v0": World(
        "turnwise.envs.alfworld.env:ALFWorldEnv", "the official ALFWorld text games, exact; set ALFWORLD_DATA"
    ),
    "turnwise/WebShop-v0": World(
        "turnwise.envs.webshop.env:WebShopEnv", "WebShop, exact; a generated catalogue, or the official files"
    ),
    "turnwise/Search-v0": World(
        "turnwise.envs.search.env:SearchEnv", "multi-hop questions over a corpus, Search-R1 protocol"
    ),
    "turnwise/ScienceWorld-v0": World(
        "turnwise.envs.scienceworld.env:ScienceWorldEnv", "the real ScienceWorld simulator; needs Java"
    ),
    "turnwise/TextWorld-v0": World(
        "turnwise.envs.textworld.env:TextWorldEnv", "TextWorld games, generated offline, or your own .z8"
    ),
    "turnwise/FrozenLake-v0": World(
        "turnwise.envs.toys.frozenlake:FrozenLakeEnv", "find the goal on a frozen lake with holes"
    ),
    "turnwise/Sokoban-v0": World("turnwise.envs.toys.sokoban:SokobanEnv", "push boxes onto their targets"),
    "turnwise/Wordle-v0": World("turnwise.envs.toys.wordle:WordleEnv", "guess a hidden word from coloured letters"),
    "turnwise/Mastermind-v0": World(
        "turnwise.envs.toys.mastermind:MastermindEnv", "guess a hidden code from exact and near hits"
    ),
    "turnwise/TicTacToe-v0": World(_GAME, "two players; PettingZoo's tic-tac-toe as text", {"game": "tictactoe"}),
    "turnwise/ConnectFour-v0": World(_GAME, "two players; PettingZoo's connect four as text", {"game": "connect_four"}),
    "turnwise/LeducHoldem-v0": World(_GAME, "two players; PettingZoo's Leduc hold'em as text", {"game": "leduc"}),
    "turnwise/RockPaperScissors-v0": World(_GAME, "two players at once; PettingZoo's rps as text", {"game": "rps"}),
    "turnwise/Negotiation-v0": World(_GAME, "two players divide a pile of goods by talking", {"game": "negotiation"}),
    "turnwise/SQL-v0": World(
        "turnwise.envs.sql.world:SQLEnv", "questions about generated databases, answered with SQL; tools, roles"
    ),
    "turnwise/Office-v0": World(
        "turnwise.envs.office.world:OfficeEnv", "contacts, calendar and mail of a small office; tools, roles"
    ),
    "turnwise/Files-v0": World(
        "turnwise.envs.files.world:FilesEnv", "bills in a folder of text files, and a calculator; tools, roles"
    ),
    "turnwise/Tools-v0": World(
        "turnwise.envs.tools.world:ToolsEnv", "functions of yours as tools, tasks from your rows"
    ),
    "turnwise/GEM-v0": World(
        "turnwise.envs.adapters.gem:GEMEnv", "any environment of GEM, by name; pip install gem-llm"
    ),
    "turnwise/TextArena-v0": World(
        "turnwise.envs.adapters.textarena:make", "any game of TextArena, by name; pip install textarena"
    ),
    "turnwise/Program-v0": World(
        "turnwise.envs.programs.world:ProgramEnv", "any agent program, through an OpenAI-compatible endpoint"
    ),
    "turnwise/OpenEnv-v0": World("turnwise.envs.adapters.openenv:OpenEnv", "an OpenEnv server, by its address"),
}


def register_worlds() -> None:
    """Add to gymnasium's registry what is not in it yet.

    gymnasium's checking wrappers are left out: they cost more than a step of these worlds, and the environments check
    the order of calls and the type of actions themselves.
    """
    for env_id, world in WORLDS.items():
        if env_id not in registry:
            register(
                env_id, world.entry_point, disable_env_checker=True, order_enforce=False, kwargs=dict(world.kwargs)
            )
