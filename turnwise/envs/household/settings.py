"""How big a household game is: explicit settings and the three presets."""

from __future__ import annotations

from dataclasses import dataclass

from turnwise.envs.household.rooms import ROOMS, RoomName, Vocabulary
from turnwise.errors import unknown


@dataclass(frozen=True, slots=True)
class Settings:
    """How big a game is. Pairs are (least, most), both included."""

    rooms: tuple[RoomName, ...] = ("kitchen", "bedroom")
    vocabulary: Vocabulary = "small"
    receptacles: tuple[int, int] = (5, 6)
    twins: int = 1
    """Most receptacles of one type."""
    objects: tuple[int, int] = (4, 6)
    """Movable objects at the start; the lamp of a ``look_at`` task is not counted."""
    capacity: int = 2
    """Most objects in one receptacle at the start."""
    copies: int = 1
    """Most objects of one type, beyond what the goal needs."""
    shared_spots: float = 0.0
    """Chance that a receptacle stands at the same location as the one before it."""
    step_limit: int = 16

    def __post_init__(self) -> None:
        wrong = [name for name in self.rooms if name not in ROOMS]
        if wrong or not self.rooms:
            raise ValueError(f"Unknown rooms {wrong}; expected some of {sorted(ROOMS)}.")
        for name in ("receptacles", "objects"):
            low, high = getattr(self, name)
            if not 2 <= low <= high:
                raise ValueError(f"Settings.{name} must be (least, most) with 2 <= least <= most, got {(low, high)}.")
        if min(self.twins, self.capacity, self.copies, self.step_limit) < 1 or not 0 <= self.shared_spots <= 1:
            raise ValueError("Settings: twins, capacity, copies, step_limit >= 1 and shared_spots in [0, 1].")


ALL_ROOMS: tuple[RoomName, ...] = ("kitchen", "living room", "bedroom", "bathroom")
PRESETS: dict[str, Settings] = {
    "easy": Settings(),
    "medium": Settings(
        rooms=ALL_ROOMS,
        vocabulary="full",
        receptacles=(9, 13),
        twins=20,
        objects=(10, 16),
        capacity=4,
        copies=2,
        step_limit=35,
    ),
    "hard": Settings(
        rooms=ALL_ROOMS,
        vocabulary="full",
        receptacles=(18, 30),
        twins=20,
        objects=(22, 36),
        capacity=9,
        copies=3,
        shared_spots=0.1,
        step_limit=50,
    ),
}


def settings_for(difficulty: str | Settings) -> Settings:
    """A preset by its name, or the settings themselves."""
    if isinstance(difficulty, Settings):
        return difficulty
    if difficulty in PRESETS:
        return PRESETS[difficulty]
    raise unknown("difficulty", difficulty, PRESETS)
