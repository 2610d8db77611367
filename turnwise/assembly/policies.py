"""The policies of a run, or of a model: from a folder or a hub name to weights that learn and sample."""

from __future__ import annotations

import copy
from pathlib import Path

from turnwise.config.sections import GameConfig
from turnwise.envs.interface import HasPlayers, capability
from turnwise.envs.tasks import TextEnv
from turnwise.models.adapters import check_use, load_start
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig, ModelConfig, PretrainedModelConfig
from turnwise.runs.checkpoints import CheckpointName
from turnwise.runs.directory import RunDirectory

WhichCheckpoint = CheckpointName | int
"""The last, the best, or the one after so many updates."""


def open_run(target: str | Path) -> RunDirectory | None:
    """The run at ``target``, if there is one. Raises ValueError as ``RunDirectory.find``."""
    return RunDirectory.find(target)


def sides_of(env: TextEnv, settings: GameConfig | None, env_id: str) -> list[str]:
    """The policies of a run, by the role or player that each plays; ``[""]`` where one plays everything.

    Raises ValueError for settings of games in a world of one player.
    """
    game = capability(env, HasPlayers)
    if game is None:
        if settings is not None:
            raise ValueError(f"{env_id} is a world of one player: leave the game settings out")
        return [""]
    kind = (settings or GameConfig()).policies
    if kind == "shared":
        return [""]
    return list(dict.fromkeys(player if kind == "per_player" else game.role(player) for player in game.players))


def load_policies(
    run: RunDirectory,
    sides: list[str],
    checkpoint: WhichCheckpoint | None = None,
    device: str | None = None,
    *,
    samples: bool = True,
) -> dict[str, Policy]:
    """The policies of a run: its base model with fresh adapters for each side, or as a checkpoint left them.

    Number 0 is what the run began with, also where its checkpoint is no longer there. ``device`` None is the run's own.
    Sides share the weights that are not trained. ``samples`` as of ``Policy``.
    """
    config = run.config()
    policies = new_policies(
        run.base_model(),
        sides,
        model=config.model,
        lora=config.lora,
        seed=config.seed,
        device=device or config.device,
        samples=samples,
    )
    known = run.checkpoints.updates()
    if checkpoint is not None and (checkpoint != 0 or 0 in known):
        if isinstance(checkpoint, int) and checkpoint not in known:
            told = ", ".join(map(str, known)) or "none"
            raise ValueError(f"{run.path} has no checkpoint of update {checkpoint}: there is one of {told}")
        saved = run.checkpoints.load(checkpoint) if isinstance(checkpoint, int) else run.load(checkpoint)
        for side, policy in policies.items():
            policy.load_trainable_state(saved.policy_tensors(side))
            policy.sync(saved.update)
    return policies


def new_policies(
    path: str | Path,
    sides: list[str],
    *,
    model: ModelConfig,
    lora: LoRAConfig | None,
    seed: int,
    device: str,
    samples: bool = True,
) -> dict[str, Policy]:
    """The model of a folder or hub name with fresh adapters for each side, by the settings in ``model`` and ``lora``.

    Sides share the weights that are not trained. ``samples`` as of ``Policy``.
    """
    pretrained = model if isinstance(model, PretrainedModelConfig) else None
    base, tokenizer, start = load_start(path, dtype=pretrained.dtype if pretrained else "float32", device=device)
    use = pretrained.adapter if pretrained else "continue"
    if start is None and use != "continue":
        raise ValueError(
            f"model.adapter={use} is for an adapter, and {path} is a whole model: leave it out, or clone with "
            "warmstart.lora"
        )
    if start is not None:
        check_use(use, lora, str(path))
        if use == "merge":  # once for all sides, which share the weights
            start.merge_into(base)
            start = None
    shared = {id(p): p for p in base.parameters()} if lora else {}
    models = [base, *(copy.deepcopy(base, dict(shared)) for _ in sides[1:])]
    return {
        side: Policy(
            own,
            tokenizer,
            lora=lora,
            seed=seed,
            gradient_checkpointing=pretrained.gradient_checkpointing if pretrained else False,
            start=start,
            use=use,
            samples=samples,
        )
        for side, own in zip(sides, models, strict=True)
    }
