"""Text worlds with the gymnasium API. Importing this package registers the ``turnwise/`` environments.

gymnasium's checking wrappers are left out: they cost more than a step of these worlds, and the environments
check the order of calls and the type of actions themselves.
"""

from __future__ import annotations

import gymnasium

import turnwise.envs.text_memory  # noqa: F401  (registers shared memory for AnyText)

_ENTRY_POINTS = {
    "turnwise/ALFWorld-v0": "turnwise.envs.alfworld.env:ALFWorldEnv",
    "turnwise/Household-v0": "turnwise.envs.household.env:HouseholdEnv",
}

for _id, _entry_point in _ENTRY_POINTS.items():
    if _id not in gymnasium.registry:
        gymnasium.register(_id, _entry_point, disable_env_checker=True, order_enforce=False)
