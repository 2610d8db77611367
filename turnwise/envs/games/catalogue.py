"""The games that have a name: how each is made, where it starts, who plays it well."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gymnasium.spaces import Text

from turnwise.envs.games import boards, leduc, negotiators, views
from turnwise.envs.games.adapter import NumbersView, TextGame, sequential
from turnwise.envs.games.experts import Policy
from turnwise.envs.games.negotiation import Negotiation
from turnwise.envs.panels import SIZES
from turnwise.errors import unknown

Sizes = tuple[int, int]  # of the panels validation and test
Game = Any  # a PettingZoo AEC environment of texts
ExpertMaker = Callable[[Callable[[], Game]], Policy]

_USUAL = (SIZES["validation"], SIZES["test"])
ONE_START = (1, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """``make(**settings)`` gives a text game; ``experts`` by kind, made from a way to look at the running game.

    ``sizes``: the opening moves that can be asked for, the usual number first -> sizes of the evaluation panels,
    small enough that each split has so many different starts. ``by_sight``: whether starts look different.
    """

    name: str
    make: Callable[..., Game]
    experts: Mapping[str, ExpertMaker] = field(default_factory=dict)
    by_sight: bool = False
    sizes: Mapping[int, Sizes] = field(default_factory=lambda: {0: _USUAL})

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises ValueError for a setting that the game does not take."""
        parameters = inspect.signature(self.make).parameters
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for each in settings:
            if each not in parameters and not open_ended:
                raise unknown("setting", each, [*parameters, "opening_moves"], f"the game {self.name!r}")

    def opening(self, num_moves: int | None) -> tuple[int, Sizes]:
        """The number of opening moves, and what it means for panels. Raises ValueError for one that is not offered."""
        chosen = next(iter(self.sizes)) if num_moves is None else num_moves
        if chosen not in self.sizes:
            offered = ", ".join(map(str, sorted(self.sizes)))
            raise ValueError(f"opening_moves of the game {self.name!r} must be one of: {offered}; got {num_moves!r}.")
        return chosen, self.sizes[chosen]


def kind_of(game: str | Callable[..., Any]) -> Kind:
    """A game by name, or a factory of PettingZoo environments: AEC or parallel, of texts or with discrete actions."""
    if not isinstance(game, str):
        return Kind(str(getattr(game, "__name__", "game")), game)
    if game not in GAMES:
        raise unknown("game", game, GAMES)
    return GAMES[game]


def as_text(game: Any) -> Game:
    """``game`` itself where its players read and write already, else as bare numbers."""
    game = sequential(game)
    reads = isinstance(game.action_space(game.possible_agents[0]), Text)
    return game if reads else TextGame(lambda: game, NumbersView())


def classic(module: str, **settings: Any) -> Any:
    """A game of ``pettingzoo.classic`` without its wrappers: ``TextGame`` plays legal moves only.

    The modules themselves are imported because the short names (``tictactoe_v3``) are deprecated. No window is opened.
    Raises ValueError where the classic games are not installed.
    """
    try:
        found = importlib.import_module(f"pettingzoo.classic.{module}")
    except ImportError as error:
        name = module.rsplit(".", 1)[-1]
        raise ValueError(
            f'The game {name!r} needs PettingZoo\'s classic games ({error}): pip install -e ".[games]"'
        ) from error
    return found.raw_env(**settings)


def _tictactoe(strikes: int = 3) -> TextGame:
    return TextGame(partial(classic, "tictactoe.tictactoe"), views.TicTacToeView(), strikes)


def _connect_four(strikes: int = 3) -> TextGame:
    return TextGame(partial(classic, "connect_four.connect_four"), views.ConnectFourView(), strikes)


def _leduc(strikes: int = 3) -> TextGame:
    return TextGame(partial(classic, "rlcard_envs.leduc_holdem"), views.LeducView(), strikes)


def _rps(rounds: int = 5, strikes: int = 3) -> TextGame:
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    # Its screen is allocated at every reset, shown or not: as small as may be.
    game = partial(classic, "rps.rps", max_cycles=rounds, screen_height=14)
    return TextGame(game, views.RockPaperScissorsView(rounds), strikes)


def _seen(policy: Policy) -> ExpertMaker:
    """An expert that never looks at the running game."""
    return lambda game: policy


def _any(observation: str) -> Mapping[str, float]:
    return dict.fromkeys(views.RockPaperScissorsView.names, 1.0)


GAMES: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        # Nothing is hidden on a board: who sees the state sees no more.
        Kind(
            "tictactoe",
            _tictactoe,
            dict.fromkeys(("searching", "knowing"), _seen(boards.tictactoe)),
            by_sight=True,
            sizes={2: (12, 12), 3: (32, 32), 4: (64, 64), 0: ONE_START},
        ),
        Kind(
            "connect_four",
            _connect_four,
            dict.fromkeys(("searching", "knowing"), _seen(boards.connect_four)),
            by_sight=True,
            sizes={4: (64, 128), 2: (6, 6), 6: _USUAL, 0: ONE_START},
        ),
        Kind("leduc", _leduc, {"searching": _seen(leduc.equilibrium)}),
        Kind("rps", _rps, {"searching": _seen(_any)}, sizes={0: ONE_START}),
        Kind(
            "negotiation",
            Negotiation,
            {
                "searching": _seen(negotiators.fair_minded),
                "knowing": lambda game: partial(negotiators.knowing, game),
            },
            by_sight=True,
        ),
    )
}
