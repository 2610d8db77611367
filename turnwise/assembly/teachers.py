"""From a name to a teacher, and to the memory that it needs."""

from __future__ import annotations

from turnwise.assembly.frozen import frozen_bytes, frozen_policy
from turnwise.learning.recipe import Recipe
from turnwise.learning.settings import Settings
from turnwise.models.loading import from_anywhere
from turnwise.models.policy import Policy
from turnwise.training.teacher import Teacher

_WANTED = (
    "algorithm=distill learns from a teacher: name one with algorithm.teacher=..., a run, a model folder, an adapter "
    "or a hub name that has the model's tokenizer"
)


def teacher_of(recipe: Recipe, student: Policy) -> Teacher | None:
    """The teacher that a recipe names, on the student's device; None where it needs none.

    A run's is the checkpoint that it names best or last. Raises ValueError where there is no such model, where a run
    has several policies, and for another tokenizer than the student's.
    """
    if not recipe.needs_teacher:
        return None
    if not recipe.teacher:
        raise ValueError(_WANTED)
    policy = frozen_policy(recipe.teacher, f"teacher {recipe.teacher}", student)
    policy.temperature = student.temperature
    return Teacher(recipe.teacher, policy)


def teacher_bytes(recipe: Recipe, device: str) -> int:
    """Memory of the weights of the teacher that a recipe names, on a device; 0 where it needs none.

    Raises ValueError as above.
    """
    if not recipe.needs_teacher:
        return 0
    if not recipe.teacher:
        raise ValueError(_WANTED)
    return frozen_bytes(recipe.teacher, f"teacher {recipe.teacher}", device)


def with_teacher_from_anywhere(algorithm: Settings) -> Settings:
    """An algorithm's settings whose teacher, or that of a base, has a name for any working directory."""
    changed: dict[str, object] = {}
    for name, value in algorithm:
        if name == "teacher" and isinstance(value, str):
            changed[name] = from_anywhere(value)
        elif isinstance(value, Settings):
            changed[name] = with_teacher_from_anywhere(value)
    changed = {name: value for name, value in changed.items() if value != getattr(algorithm, name)}
    return algorithm.model_copy(update=changed) if changed else algorithm
