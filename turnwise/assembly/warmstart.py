"""The warm start of a run: what is cloned into its model, in which worlds, and how the clone is measured."""

from __future__ import annotations

import warnings
from contextlib import ExitStack, closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.seating import ModelAgent, Seating
from turnwise.assembly.players import opponents
from turnwise.assembly.sources import stored_source
from turnwise.cloning.cloner import OnProgress
from turnwise.cloning.demonstrations import check_stop_split
from turnwise.cloning.rounds import Ground
from turnwise.cloning.rows import Stored
from turnwise.cloning.settings import WarmstartConfig
from turnwise.cloning.warmstart import Cloning, cached_model, forget, new_scratch_model, warmstart
from turnwise.config.sections import GameConfig
from turnwise.envs.given import is_given
from turnwise.envs.tasks import closed_after, maker, panel
from turnwise.evaluation.playing import WARMSTART_KEY, evaluate_policy
from turnwise.models.engine import SlotEngine
from turnwise.models.loading import end_ids, save_model
from turnwise.models.settings import ScratchModelConfig
from turnwise.runs.directory import RunDirectory
from turnwise.training.tasksets import prove_disjoint

if TYPE_CHECKING:
    from turnwise.assembly.run import Assembly


class WarmStart:
    """What the ``warmstart:`` section of a run asks for, with the world, the tasks and the agent of its assembly."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly, self.config = assembly, assembly.config

    def make(self, on_progress: OnProgress | None = None, *, fresh: bool = False) -> Path:
        """The folder of the cloned model, in the cache; cloned now where it is not there, or with ``fresh``.

        Raises ValueError where the configuration has no warmstart section, or the world no such expert.
        """
        cloning = self.cloning
        if not fresh and self.is_cached and (cached := cached_model(cloning)) is not None:
            return cached
        if fresh:
            forget(cloning)
        settings, stored, resumable = cloning.settings, self.stored, not self._is_given
        world = self.assembly.world
        if stored is not None and stored.tasks is not None:
            panels = self.assembly.panels
            prove_disjoint([stored.tasks], [panels.validation, panels.test])
        elif settings.is_own and settings.stop_success is not None:
            check_stop_split(world, settings)
        with ExitStack() as opened:
            worlds = [self._demonstrated(settings, opened)]
            if settings.own_share:
                worlds.append(Ground(world, self.config.env.make, settings.own_share))
            return warmstart(
                cloning, worlds, self._measure, on_progress, stored=stored, learner=self._playing, resumable=resumable
            )

    def put_unlearned(self, run: RunDirectory) -> None:
        """Put the model into a run's folder without cloning: the clone of the cache, else what would be cloned into."""
        model = self.config.model
        if (cached := cached_model(self.cloning)) is not None:
            run.model_path.symlink_to(cached)
        elif isinstance(model, ScratchModelConfig):
            made = new_scratch_model(self.cloning, model, [Ground(self.assembly.world, self.config.env.make)])
            save_model(*made, run.model_path)

    @property
    def is_cached(self) -> bool:
        """Whether the model that a warm start would make is in the cache."""
        return not self._is_given and cached_model(self.cloning) is not None

    @property
    def _is_given(self) -> bool:
        """Whether a world was given as an object, whose name does not say what it does."""
        return any(is_given(world) for world in (self.config.env.id, self.cloning.settings.env or ""))

    def _demonstrated(self, settings: WarmstartConfig, opened: ExitStack) -> Ground:
        """The world that demonstrations are of first: another, or the run's own."""
        if settings.env is None:
            return Ground(self.assembly.world, self.config.env.make)
        make = maker(settings.env, **settings.env_kwargs)
        return Ground(opened.enter_context(closed_after(make())), make, 1 - settings.own_share)

    @cached_property
    def stored(self) -> Stored | None:
        """What a warm start clones in the place of an expert. Raises ValueError where it is not there."""
        config, clone = self.config, self.config.warmstart
        return None if clone is None else stored_source(clone, config.env, self.assembly.agent, config.seed)

    @property
    def cloning(self) -> Cloning:
        """Everything that decides the warm-started model. Raises ValueError without a warmstart section."""
        config = self.config
        if config.warmstart is None:
            raise ValueError("this configuration has no `warmstart:` section: nothing to clone")
        return Cloning(
            settings=config.warmstart,
            model=config.model,
            agent=self.assembly.agent,
            env=config.env,
            seed=config.seed,
            device=config.device,
            described=self.assembly.settled().model_dump(mode="json"),
            examples=self.assembly.examples,
            content="" if self.stored is None else self.stored.content,
        )

    def _measure(self, model: Any, tokenizer: Any) -> float:
        """Sampled success (T = 1, or mean return where success is unknown) of a model that is being cloned.

        A quarter of the stopping panel's tasks is enough to see that a model is far from the goal.
        """
        config, settings = self.config, self.config.warmstart
        assert settings is not None
        assert settings.stop_success is not None
        game = config.game or GameConfig()
        others = opponents(game.eval_opponent, self.assembly.world, num_slots=config.rollout.num_slots)
        seating = Seating({"": self._playing(model, tokenizer)}, others)
        tasks = panel(self.assembly.world, settings.stop_split)
        rate = 0.0
        rule = self.assembly.success
        with closing(Collector(config.env.make, seating, seed=config.seed, success=rule)) as collector:
            for num in (max(1, settings.stop_tasks // 4), settings.stop_tasks):
                report, _ = evaluate_policy(
                    collector,
                    tasks[:num],
                    name="warmstart",
                    max_tokens=config.agent.max_reply_tokens,
                    key=WARMSTART_KEY,
                )
                if why := report.too_many_errors(config.eval.max_error_share):
                    raise ValueError(why)
                if report.success is None:
                    warnings.warn(
                        "the world does not say what success is: its mean return is compared with warmstart."
                        "stop_success, and is what is shown as sampled success. env.success_threshold says it",
                        stacklevel=2,
                    )
                rate = report.success.value if report.success else report.mean_return
                if rate < settings.stop_success - 0.15:
                    break
        return rate

    def _playing(self, model: Any, tokenizer: Any) -> ModelAgent:
        """An agent of a model that is being cloned."""
        config = self.config
        chat = ChatFormat.of(tokenizer, config.agent, end_ids(model))
        engine = SlotEngine(
            model,
            num_slots=config.rollout.num_slots,
            max_length=config.agent.max_context_tokens,
            end_ids=chat.end_ids,
            threads=config.rollout.threads,
        )
        return ModelAgent(engine, chat, config.agent, examples=self.assembly.examples)
