"""From a name to a teacher, and to the memory that it needs."""

from __future__ import annotations

from turnwise.assembly.players import load_policies, open_run
from turnwise.learning.recipe import Recipe
from turnwise.learning.settings import Settings
from turnwise.models.loading import from_anywhere
from turnwise.models.policy import Policy
from turnwise.models.settings import PretrainedModelConfig
from turnwise.runs.directory import RunDirectory
from turnwise.training.shape import FLOAT, shape_of
from turnwise.training.teacher import Teacher, check_tokens

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
    run = _run(recipe)
    device = str(student.device)
    if run is None:
        policy = Policy.load(recipe.teacher, lora=None, device=device)
    else:
        policy = load_policies(run, [""], run.config().keep_checkpoint, device, samples=False)[""]
    check_tokens(policy.tokenizer, student.tokenizer, recipe.teacher)
    policy.temperature = student.temperature
    return Teacher(recipe.teacher, policy)


def teacher_bytes(recipe: Recipe, device: str) -> int:
    """Memory of the weights of the teacher that a recipe names, on a device; 0 where it needs none.

    Raises ValueError as above.
    """
    if not recipe.needs_teacher:
        return 0
    run = _run(recipe)
    if run is None:
        shape = shape_of(PretrainedModelConfig(path=recipe.teacher), None, device)
    else:
        shape = shape_of(run.config().model, run.config().lora, device)
    return shape.parameters * shape.itemsize + shape.lora * FLOAT


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


def _run(recipe: Recipe) -> RunDirectory | None:
    """The run that is the teacher; None for a model."""
    if not recipe.teacher:
        raise ValueError(_WANTED)
    run = open_run(recipe.teacher)
    if run is not None and run.config().game is not None:
        raise ValueError(
            f"teacher {recipe.teacher} is a run of a game, which may have several policies: export the one that is to "
            "teach (turnwise export), and name its folder"
        )
    return run
