"""What rooms contain: receptacles, objects, their attributes, and what fits where.

Tables of our own, counted over the *training* games of the official ALFWorld text set: shares and counts are
rounded. Names are the official types without their suffix (``CounterTop``). Where a thing usually lies comes
from ``turnwise.envs.alfworld.priors``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, get_args

from turnwise.envs.alfworld.game import TaskType
from turnwise.envs.alfworld.priors import placement_rates

RoomName = Literal["kitchen", "living room", "bedroom", "bathroom"]
Vocabulary = Literal["small", "full"]

TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)

OPENABLE = frozenset({"Cabinet", "Drawer", "Fridge", "Microwave", "Safe"})
APPLIANCES = {"clean": "SinkBasin", "heat": "Microwave", "cool": "Fridge"}
LAMP = "DeskLamp"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CLEANABLE = _words(
    "Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Kettle Knife Ladle Lettuce Mug Pan Plate Pot "
    "Potato SoapBar Spatula Spoon Tomato"
)
HEATABLE = _words("Apple Bread Cup Egg Mug Plate Potato Tomato")
COOLABLE = _words("Apple Bowl Bread Cup Egg Lettuce Mug Pan Plate Pot Potato Tomato WineBottle")
SLICEABLE = _words("Apple Bread Egg Lettuce Potato Tomato")
HOLLOW = _words("Bowl Box Cup Mug Pan Plate Pot")
"""Objects that are receptacles of their own: examining one lists what it holds (here: always nothing)."""

_FITS = {
    "ArmChair": "Book Box CellPhone Cloth CreditCard KeyChain Laptop Newspaper Pillow RemoteControl",
    "BathtubBasin": "Cloth DishSponge HandTowel SoapBar",
    "Bed": "BaseballBat BasketBall Book CellPhone Laptop Pillow TennisRacket",
    "Cabinet": "Book Bowl Box CD Candle Cloth Cup DishSponge Glassbottle HandTowel Kettle Ladle Mug "
    "Newspaper Pan PepperShaker Plate Plunger Pot SaltShaker SoapBar SoapBottle SprayBottle TissueBox "
    "ToiletPaper Vase WateringCan WineBottle",
    "Cart": "Candle Cloth DishSponge HandTowel Plunger SoapBar SoapBottle SprayBottle TissueBox ToiletPaper",
    "CoffeeMachine": "Mug",
    "CoffeeTable": "Book Bowl Box Candle CellPhone CreditCard KeyChain Laptop Newspaper Pen Pencil "
    "Plate RemoteControl Statue TissueBox Vase Watch WateringCan",
    "CounterTop": "AlarmClock Apple Book Bowl Bread ButterKnife CD Candle CellPhone Cloth CreditCard "
    "Cup DishSponge Egg Fork Glassbottle HandTowel Kettle KeyChain Knife Ladle Laptop Lettuce Mug Pan Pen "
    "Pencil PepperShaker Plate Pot Potato RemoteControl SaltShaker SoapBar SoapBottle Spatula Spoon "
    "SprayBottle Statue TissueBox ToiletPaper Tomato Vase WineBottle",
    "Desk": "AlarmClock BasketBall Book Bowl Box CD CellPhone Cloth CreditCard KeyChain Laptop Mug Pen "
    "Pencil RemoteControl Statue TennisRacket TissueBox Vase Watch WateringCan",
    "DiningTable": "AlarmClock Apple BaseballBat BasketBall Book Bowl Box Bread ButterKnife CD Candle "
    "CellPhone Cloth CreditCard Cup DishSponge Egg Fork Glassbottle Kettle KeyChain Knife Ladle Laptop "
    "Lettuce Mug Newspaper Pan Pen Pencil PepperShaker Plate Pot Potato RemoteControl SaltShaker "
    "SoapBottle Spatula Spoon SprayBottle Statue TennisRacket TissueBox Tomato Vase Watch WateringCan "
    "WineBottle",
    "Drawer": "Book ButterKnife CD Candle CellPhone Cloth CreditCard DishSponge Fork HandTowel KeyChain "
    "Knife Ladle Newspaper Pen Pencil PepperShaker RemoteControl SaltShaker SoapBar SoapBottle Spatula "
    "Spoon SprayBottle TissueBox ToiletPaper Watch WateringCan",
    "Dresser": "AlarmClock BasketBall Book Bowl Box CD Candle CellPhone Cloth CreditCard KeyChain "
    "Laptop Mug Newspaper Pen Pencil Plate RemoteControl SprayBottle Statue TennisRacket TissueBox "
    "ToiletPaper Vase Watch WateringCan",
    "Fridge": "Apple Bowl Bread Cup Egg Glassbottle Lettuce Mug Pan Plate Pot Potato Tomato WineBottle",
    "GarbageCan": "Apple Bread CD Cloth DishSponge Egg HandTowel Lettuce Newspaper Pen Pencil Potato "
    "SoapBar SoapBottle SprayBottle TissueBox ToiletPaper Tomato WineBottle",
    "HandTowelHolder": "HandTowel",
    "LaundryHamper": "Cloth",
    "Microwave": "Apple Bowl Bread Cup Egg Glassbottle Mug Plate Potato Tomato",
    "Ottoman": "Book Box CellPhone CreditCard KeyChain Laptop Newspaper Pillow RemoteControl",
    "Safe": "CD CellPhone CreditCard KeyChain Statue Vase",
    "Shelf": "AlarmClock Book Bowl Box CD Candle CellPhone Cloth CreditCard Cup DishSponge Glassbottle "
    "HandTowel Kettle KeyChain Mug Newspaper Pen Pencil PepperShaker Plate Pot RemoteControl SaltShaker "
    "SoapBar SoapBottle SprayBottle Statue TissueBox ToiletPaper Vase Watch WateringCan WineBottle",
    "SideTable": "AlarmClock Apple BaseballBat BasketBall Book Bowl Box Bread ButterKnife CD Candle "
    "CellPhone Cloth CreditCard Cup DishSponge Egg Fork HandTowel Kettle KeyChain Knife Laptop Lettuce "
    "Mug Newspaper Pan Pen Pencil PepperShaker Plate Pot Potato RemoteControl SaltShaker SoapBar "
    "SoapBottle Spatula Spoon SprayBottle Statue TennisRacket TissueBox ToiletPaper Tomato Vase Watch "
    "WateringCan WineBottle",
    "SinkBasin": "Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Glassbottle HandTowel Kettle "
    "Knife Ladle Lettuce Mug Pan Plate Pot Potato SoapBar Spatula Spoon Tomato",
    "Sofa": "Book Box CellPhone CreditCard KeyChain Laptop Newspaper Pillow RemoteControl",
    "StoveBurner": "Kettle Pan Pot",
    "TVStand": "TissueBox",
    "Toaster": "",
    "ToiletPaperHanger": "ToiletPaper",
    "Toilet": "Candle Cloth DishSponge HandTowel SoapBar SoapBottle SprayBottle TissueBox ToiletPaper",
    "TowelHolder": "Towel",
}
FITS = {place: _words(things) for place, things in _FITS.items()}
"""What a receptacle accepts; official ``canContain`` as it occurs in the training games."""


@dataclass(frozen=True, slots=True)
class Room:
    """``always`` [type -> how many at most]: there is at least one of each. ``sometimes`` [type -> (share of
    rooms, most)]. ``objects`` [type -> usual number]."""

    always: dict[str, int]
    sometimes: dict[str, tuple[float, int]]
    objects: dict[str, float] = field(default_factory=dict)


ROOMS: dict[RoomName, Room] = {
    "kitchen": Room(
        {"Fridge": 1, "Microwave": 1, "SinkBasin": 1, "CounterTop": 3, "Cabinet": 14, "CoffeeMachine": 1}
        | {"StoveBurner": 4, "GarbageCan": 1, "Toaster": 1},
        {
            "Drawer": (0.97, 7),
            "DiningTable": (0.57, 2),
            "SideTable": (0.11, 1),
            "Shelf": (0.2, 3),
            "Safe": (0.04, 1),
        },
        {
            "Apple": 2,
            "Bowl": 2,
            "Bread": 1.6,
            "ButterKnife": 1.8,
            "Cup": 2,
            "DishSponge": 2,
            "Egg": 2,
            "Fork": 2,
        }
        | {"Kettle": 0.9, "Knife": 2, "Ladle": 0.7, "Lettuce": 1.8, "Mug": 2, "Pan": 1.3, "PepperShaker": 2}
        | {"Plate": 1.8, "Pot": 1.6, "Potato": 2, "SaltShaker": 2, "SoapBottle": 2, "Spatula": 2, "Spoon": 2}
        | {"Tomato": 2, "WineBottle": 0.8},
    ),
    "living room": Room(
        {"GarbageCan": 1, "Sofa": 1},
        {"ArmChair": (0.92, 2), "CoffeeTable": (0.83, 1), "SideTable": (0.82, 2), "Drawer": (0.78, 5)}
        | {"DiningTable": (0.48, 1), "Dresser": (0.38, 1), "Shelf": (0.37, 6), "Cabinet": (0.16, 4)}
        | {"Ottoman": (0.12, 1)},
        {
            "Book": 0.5,
            "Box": 1.4,
            "CellPhone": 0.4,
            "CreditCard": 2,
            "KeyChain": 2,
            "Laptop": 1.4,
            "Newspaper": 1.2,
        }
        | {"Pen": 0.4, "Pencil": 0.3, "Pillow": 1.1, "Plate": 0.6, "RemoteControl": 2, "Statue": 2.2}
        | {"TissueBox": 0.7, "Vase": 1.6, "Watch": 1, "WateringCan": 0.5},
    ),
    "bedroom": Room(
        {"Bed": 1, "GarbageCan": 1},
        {
            "Drawer": (0.96, 6),
            "Desk": (0.7, 1),
            "Shelf": (0.68, 5),
            "SideTable": (0.66, 2),
            "Dresser": (0.46, 1),
        }
        | {"LaundryHamper": (0.28, 1), "ArmChair": (0.19, 2), "Safe": (0.16, 1), "Cabinet": (0.16, 3)},
        {"AlarmClock": 1.7, "Book": 1.9, "Bowl": 0.7, "Box": 0.5, "CD": 2, "CellPhone": 2, "Cloth": 0.3}
        | {"CreditCard": 2, "KeyChain": 2, "Laptop": 1.6, "Mug": 1, "Pen": 2, "Pencil": 2, "Pillow": 1.7}
        | {"RemoteControl": 0.3, "Statue": 0.2, "TissueBox": 0.3, "Vase": 0.2, "Watch": 0.2},
    ),
    "bathroom": Room(
        {"SinkBasin": 2, "Toilet": 1, "ToiletPaperHanger": 1, "HandTowelHolder": 1, "GarbageCan": 1}
        | {"TowelHolder": 1},
        {"CounterTop": (0.86, 1), "BathtubBasin": (0.67, 1), "Drawer": (0.58, 5), "Cabinet": (0.44, 4)}
        | {"Shelf": (0.25, 2), "Cart": (0.08, 1), "Dresser": (0.08, 1), "SideTable": (0.06, 1)},
        {"Candle": 2, "Cloth": 2, "DishSponge": 0.5, "HandTowel": 1.2, "SoapBar": 2, "SoapBottle": 2}
        | {"SprayBottle": 2, "TissueBox": 0.5, "ToiletPaper": 2.3, "Towel": 1.1},
    ),
}

HOSTS: dict[TaskType, tuple[RoomName, ...]] = {
    "pick_and_place_simple": ("kitchen", "living room", "bedroom", "bathroom"),
    "look_at_obj_in_light": ("living room", "bedroom"),
    "pick_clean_then_place_in_recep": ("kitchen", "bathroom"),
    "pick_heat_then_place_in_recep": ("kitchen",),
    "pick_cool_then_place_in_recep": ("kitchen",),
    "pick_two_obj_and_place": ("kitchen", "living room", "bedroom", "bathroom"),
}

SMALL = _words(
    "Cabinet CounterTop DiningTable Fridge Microwave SinkBasin Bed Desk Drawer Dresser Shelf SideTable "
    "Apple Egg Tomato Mug Cup Plate Fork Spoon Book CD CellPhone KeyChain Pen Pillow AlarmClock"
)
"""The small vocabulary: twelve receptacle types and fifteen object types (the lamp comes on top)."""


@lru_cache(maxsize=64)
def room(name: RoomName, vocabulary: Vocabulary, twins: int) -> Room:
    """The room's table, cut to a vocabulary and to ``twins`` receptacles of one type."""
    full = ROOMS[name]

    def known(kind: str) -> bool:
        return vocabulary == "full" or kind in SMALL

    always = {kind: min(most, twins) for kind, most in full.always.items() if known(kind)}
    sometimes = {kind: (share, min(most, twins)) for kind, (share, most) in full.sometimes.items() if known(kind)}
    if vocabulary == "small" and "Cabinet" in always:  # else small kitchens would be nearly all alike
        sometimes["Cabinet"] = (1.0, always.pop("Cabinet"))
    return Room(always, sometimes, {kind: usual for kind, usual in full.objects.items() if known(kind)})


@lru_cache(maxsize=4096)
def rate(thing: str, place: str) -> float:
    """How many ``thing`` usually lie in one ``place``; 0 where it does not fit or was never seen there."""
    if thing != LAMP and thing not in FITS[place]:
        return 0.0
    return placement_rates().get(thing.lower(), {}).get(place.lower(), 0.0)
