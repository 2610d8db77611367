"""One game being played: TextWorld's engine with compact text."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

NOT_UNDERSTOOD = (
    "I beg your pardon",
    "That's not a verb I recogni",
    "You can't see any such thing",
    "I only understood you as far as",
    "I didn't understand",
    "You can't use multiple objects with that verb",
    "You have to be more specific",
    "You'll have to say which compass direction",
    "What do you want to",
    "Which do you mean",
)
"""How the parser's complaints begin."""
REFUSED = frozenset(
    [
        "quit",
        "q",
        "restart",
        "restore",
        "save",
        "undo",
        "script",
        "transcript",
        "unscript",
        "noscript",
        "record",
        "recording",
        "replay",
        "verify",
    ]
)
"""Commands to the interpreter rather than to the game: they end it, or write files."""
_SEVERAL = re.compile(r"[.;\n]|\bthen\b")
_MAX_LENGTH = 190
"""Characters; the interpreter's buffer holds 197."""
_REFUSAL = "That's not a verb I recognise."
_PROMPT = re.compile(r"^(>.*|Would you like to RESTART, .*)$")


_UNIT = {3: 2, 5: 4, 8: 8}
"""Z-machine version -> bytes in a unit of the length that a story's header states."""
_HEADER = 64


def check_story(path: Path) -> bytes:
    """The file's content. Raises ValueError for no whole Z-machine story: the interpreter ends the process on one.

    The header (The Z-Machine Standards Document 1.1, section 11) states version, length and the sum of all bytes
    after itself; a length or sum of 0 is left unchecked, as interpreters do.
    """
    try:
        story = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from error
    advice = "Copy or compile it again, or leave it out; one in the cache is made again when it is deleted."
    if len(story) < _HEADER or story[0] not in _UNIT:
        raise ValueError(f"{path} is damaged, no Z-machine story of version 3, 5 or 8. {advice}")
    length = _UNIT[story[0]] * int.from_bytes(story[26:28], "big")
    if len(story) < length:
        raise ValueError(f"{path} is damaged: it breaks off after {len(story)} of {length} bytes. {advice}")
    stated = int.from_bytes(story[28:30], "big")
    if length and stated and sum(story[_HEADER:length]) % 65536 != stated:
        raise ValueError(f"{path} is damaged: its bytes do not add up to the sum in its header. {advice}")
    return story


def compact(text: str) -> str:
    """Without the banner, the prompt, the status line, the closing question, blank lines and repeated spaces."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if re.search(r"[^\W_]", line) and not _PROMPT.match(line))


class Game:
    """A loaded game. ``admissible`` also tracks the admissible commands, ``tracked`` the way to win: each costs speed.

    Raises ValueError where TextWorld is missing, and for a damaged file.
    """

    def __init__(self, path: Path, *, admissible: bool = True, tracked: bool = False) -> None:
        try:
            import textworld
        except ImportError as error:
            raise ValueError(f'TextWorld needs its engine: pip install -e ".[envs]" ({error}).') from error
        check_story(path)
        self.path, self.admissible, self.tracked = path, admissible, tracked
        known = path.with_suffix(".json").exists()
        infos = textworld.EnvInfos(
            admissible_commands=admissible and known,
            policy_commands=tracked and known,
            won=True,
            lost=True,
            score=True,
            max_score=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Jericho warns that it does not know the game, which TextWorld does
            try:
                self._engine: Any = textworld.start(str(path), infos)
            except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
                reason = f"{type(error).__name__}: {error}"[:150]
                raise ValueError(f"{path.with_suffix('.json')} is not what TextWorld wrote ({reason}).") from error
        self._state: Any = None

    def reset(self) -> str:
        self._state = self._engine.reset()
        return compact(self._state.feedback)

    def step(self, action: str) -> tuple[str, bool]:
        """The answer, and whether the action was understood. One command at a time, and none to the interpreter."""
        typed = "".join(letter if letter.isprintable() else " " for letter in action)  # the engine hangs on others
        command = " ".join(typed.encode("ascii", "replace").decode().split())[:_MAX_LENGTH]
        verb = command.lower().partition(" ")[0]
        if verb in REFUSED or verb.startswith("tw-") or _SEVERAL.search(action.strip().lower()):
            return _REFUSAL, False
        self._state = self._engine.step(command)[0]
        answer = compact(self._state.feedback)
        return answer, not answer.startswith(NOT_UNDERSTOOD)

    @property
    def won(self) -> bool:
        return bool(self._state.won)

    @property
    def lost(self) -> bool:
        return bool(self._state.lost)

    @property
    def score(self) -> float:
        """In [0, 1], of the game's own maximum; 0 where it has none."""
        highest = self._state.max_score or 0
        return min(1.0, max(0, self._state.score or 0) / highest) if highest > 0 else 0.0

    @property
    def commands(self) -> list[str] | None:
        """Admissible commands, sorted; None where they are not known."""
        found = self._state.admissible_commands
        return None if found is None else list(found)

    @property
    def way_to_win(self) -> list[str]:
        """Commands that win from here; empty where none do, or none are known, or where it is not tracked."""
        return list(self._state.policy_commands or ())

    def close(self) -> None:
        self._engine.close()
