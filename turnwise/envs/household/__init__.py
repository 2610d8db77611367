"""Procedural household games (``turnwise/Household-v0``)."""

from turnwise.envs.household.generator import PRESETS, Settings, generate
from turnwise.envs.household.panels import GeneratedGames

__all__ = ["PRESETS", "GeneratedGames", "Settings", "generate"]
