"""The one place that turns a run's configuration into objects, each made once.

    with closing(Assembly(config)) as assembly:                # opens the world
        run = RunDirectory.create(out, config, assembly.panels.hashes())
        assembly.make_model(run)                               # clones the expert, where a warm start is configured
        with closing(assembly.trainer(run, observer)) as trainer:
            trainer.step()

Everything below (trainer, sides, collectors, cloning) takes objects and single sections of the configuration.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

from turnwise.agents.decoding import STEERING_FILE
from turnwise.agents.episode import SuccessRule, check_threshold
from turnwise.agents.guiding import NOTHING_OFFERED
from turnwise.agents.opening import Example, read_examples, write_examples
from turnwise.agents.playing import Playing
from turnwise.agents.prompts import AgentConfig
from turnwise.algorithms.registry import build
from turnwise.assembly.agent_files import is_untrained, with_decoding_from_anywhere
from turnwise.assembly.collecting import MEASURE, TRAIN, Cast
from turnwise.assembly.frozen import check_frozen, second_weights, warn_if_steered
from turnwise.assembly.learners import lead, learner_of
from turnwise.assembly.players import check_player, player_from_anywhere
from turnwise.assembly.policies import load_policies, sides_of
from turnwise.assembly.settling import backend_of, has_vllm
from turnwise.assembly.shards import ahead_of, check_shards, is_sharded, shards_of
from turnwise.assembly.steering import keep_vector
from turnwise.assembly.teachers import with_teacher_from_anywhere
from turnwise.assembly.warmstart import WarmStart
from turnwise.cloning.cloner import OnProgress
from turnwise.cloning.examples import examples_for
from turnwise.config.schema import RunConfig
from turnwise.config.sections import GameConfig
from turnwise.envs.interface import HasPlayers, capability, gives_answers, listed_actions, world_name
from turnwise.envs.tasks import TextEnv, close, start, told_of
from turnwise.grading.grader import Grader, grader_of
from turnwise.grading.ranking import Ranker
from turnwise.grading.verdicts import FILE as VERDICTS
from turnwise.learning.planning import GroupPlanner, NoRollouts, Planner
from turnwise.learning.recipe import layers
from turnwise.models.loading import from_anywhere, save_model
from turnwise.models.policy import Policy
from turnwise.models.settings import PretrainedModelConfig
from turnwise.models.steering import Steering
from turnwise.monitoring.mirrors import Mirrors
from turnwise.monitoring.watchdog import Watchdog
from turnwise.replay.store import TrajectoryWriter
from turnwise.runs.directory import RunDirectory
from turnwise.shards.connection import Host
from turnwise.shards.rollouts import ShardedCollector
from turnwise.training.answers import check_answers
from turnwise.training.leading import Leader
from turnwise.training.observing import Callback, Observer
from turnwise.training.ranks import ProcessRanks
from turnwise.training.shape import settled_dtype
from turnwise.training.side import Side
from turnwise.training.tasksets import Panels, TaskOrder, open_panels
from turnwise.training.trainer import LoopSettings, Trainer

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


class Assembly:
    """What a configuration asks for, as objects. Close it: it holds an environment open.

    The one environment ``world`` gives the panels and the players of a game, demonstrates the tasks where a model is
    cloned in the run's own world, and is asked nothing while episodes are played (collectors have their own).
    ``model`` is a loaded (model, tokenizer) in the place of the one that the configuration names; the run gets a copy.
    ``host`` is where shards are placed, by default where the configuration says.
    """

    def __init__(self, config: RunConfig, model: tuple[Any, Any] | None = None, *, host: Host | None = None) -> None:
        self.config, self.model, self.host = config, model, host
        self.success = SuccessRule(config.env.success_threshold)
        self.leader = Leader()  # of the ranks that a trainer's learners work with

    def close(self) -> None:
        """Close the world, if it was opened, and end the other ranks of the learner."""
        self.leader.close()
        if "world" in vars(self):
            close(self.world)

    @cached_property
    def world(self) -> TextEnv:
        """An environment of the run. Raises ValueError for an unknown one, or settings that it does not take."""
        return self.config.env.make()

    @cached_property
    def panels(self) -> Panels:
        """The run's tasks, proven apart.

        Raises ValueError where they overlap, where there are too few, and where the agent is to choose among actions
        that the world does not list, or the algorithm to learn from answers that it does not tell.
        """
        config = self.config
        if is_sharded(config.rollout, config.ray):
            check_shards(self.world, config.env, config.rollout, config.game, config.ray)
        found = open_panels(self.world, config.env.split, config.eval, config.rollout.num_tasks, config.warmstart)
        if config.agent.constrained:
            _, info = start(self.world, found.train[0], config.seed)
            if not listed_actions(info):
                raise ValueError(NOTHING_OFFERED)
        if (recipe := build(config.algorithm, config.run_info)).needs_answers:
            check_answers(recipe.name, told_of(self.world, found.train[0], config.seed))
        return found

    @cached_property
    def side_names(self) -> list[str]:
        """The policies in training, by the role or player that each plays; ``[""]``: one for all."""
        return sides_of(self.world, self.config.game, self.config.env.id)

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """What the agent is shown before its episodes. Raises ValueError where they cannot be made, or are measured."""
        config = self.config
        usual = is_untrained(config.model, config.warmstart)
        made = examples_for(self.world, config.agent, usual=usual, rule=self.success)
        shown = {example.task for example in made}
        for task in (*self.panels.validation, *self.panels.test) if shown else ():
            if task.key in shown:
                raise ValueError(
                    f"task {task.key} of {task.split!r} is measured, and agent.examples shows how it is solved: take "
                    "another agent.examples_split"
                )
        return made

    @cached_property
    def agent(self) -> AgentConfig:
        """The agent's settings, with the number of its examples."""
        return self.config.agent.model_copy(update={"examples": len(self.examples)})

    def settled(self) -> RunConfig:
        """The configuration with everything that it leaves open: what a run's folder keeps, and can read again.

        Models, teachers and opponents in folders are named so that processes in other working directories find them,
        too.
        """
        rollout = self.config.rollout.model_copy(update={"backend": backend_of(self.config)[0]})
        model = self.config.model
        if isinstance(model, PretrainedModelConfig):
            dtype, path = settled_dtype(model, self.config.device), from_anywhere(model.path)
            model = model.model_copy(update={"dtype": dtype, "path": path})
        algorithm, game = with_teacher_from_anywhere(self.config.algorithm), self.config.game
        if game is not None:
            others = {"opponent": game.opponent, "eval_opponent": game.eval_opponent}
            game = game.model_copy(
                update={each: player_from_anywhere(who) for each, who in others.items() if who != "self"}
            )
        changed = {
            "agent": with_decoding_from_anywhere(self.agent),
            "rollout": rollout,
            "model": model,
            "algorithm": algorithm,
            "game": game,
        }
        return RunConfig(**{**dict(self.config), **changed})

    def check_sources(self) -> None:
        """Raise ValueError where the algorithm learns from a file that is not there, or from answers in a world that
        gives none, where the teacher or ``agent.decoding.second`` names no model, ``agent.decoding.steering`` no
        vector, where a threshold of success has no effect, and as ``check_game`` and ``check_server`` do. Warn where
        the model was trained steered, and the run is not.
        """
        for section, given in (("env", self.config.env), ("rewards", self.config.rewards)):
            if (threshold := given.success_threshold) is not None:
                check_threshold(self.world, self.panels.train[0], f"{section}.success_threshold", threshold)
        recipe = build(self.config.algorithm, self.config.run_info)
        recipe.composer.check_sources()
        if recipe.compares_answers and not gives_answers(self.world):
            raise ValueError(
                f"{recipe.name} pays attempts that agree in their answer, and the episodes of {world_name(self.world)} "
                "end in none that could be compared: whatever all attempts do alike would be paid. Let the world pay, "
                "by another algorithm or reward=world, or take a world that gives answers, such as turnwise/Search-v0"
            )
        if recipe.teacher:
            check_frozen(recipe.teacher, f"teacher {recipe.teacher}", self.config.device)
        if (second := self.config.agent.decoding.second) is not None:
            check_frozen(second.model, f"agent.decoding.second.model={second.model}", self.config.device)
        if (steering := self.config.agent.decoding.steering) is not None:
            Steering.read(steering.file)
        elif isinstance(self.config.model, PretrainedModelConfig):
            warn_if_steered(self.config.model.path, f"model.path={self.config.model.path}")
        self.check_game()
        self.check_server()

    def check_game(self) -> None:
        """Raise ValueError for settings of games in a world of one player, and for an opponent that nobody can be."""
        _ = self.side_names
        game = self.config.game or GameConfig()
        for name in {game.opponent, game.eval_opponent} - {"self"}:
            check_player(name)

    def check_server(self) -> None:
        """Raise ValueError where copies begin within replies, which a vLLM server cannot make."""
        recipe = build(self.config.algorithm, self.config.run_info)
        served = self.config.rollout.vllm.url is not None
        if served and any(getattr(layer, "within_replies", False) for layer in layers(recipe.planner)):
            raise ValueError(
                f"{recipe.name} begins copies within replies, by forced tokens, and a vLLM server forces none: "
                "leave rollout.vllm.url out, so that vLLM runs in this process, or set rollout.backend=own"
            )

    def check_grader(self, run: RunDirectory) -> None:
        """Raise ValueError as ``grader`` and ``ranker`` do, and where a key that they need is not set."""
        if (made := self.grader(run)) is not None:
            made.close()
        planner = build(self.config.algorithm, self.config.run_info).planner
        if (ranker := self.ranker(run, planner or GroupPlanner(self.config.rollout.group_size))) is not None:
            ranker.close()

    @cached_property
    def warmstart(self) -> WarmStart:
        """What is cloned before the run begins, if a warm start is configured."""
        return WarmStart(self)

    def make_model(self, run: RunDirectory, on_progress: OnProgress | None = None) -> None:
        """Put the model that the run begins with into its folder, where it is not one that stays in its own place."""
        if self.model is not None:
            save_model(*self.model, run.model_path)
        elif self.config.warmstart is not None:
            shutil.copytree(self.warmstart.make(on_progress), run.model_path)

    def trainer(self, run: RunDirectory, observer: Observer | None = None) -> Trainer:
        """The loop with all that it works on, and the policies that the run begins with; close it."""
        return self.trainer_of(Trainer, run, observer)

    def trainer_of(
        self,
        kind: type[AnyTrainer],
        run: RunDirectory,
        observer: Observer | None = None,
        policies: Mapping[str, Policy] | None = None,
    ) -> AnyTrainer:
        """A trainer of another class, or of other ``policies`` by side than the run begins with."""
        config = self.config
        if run.has_checkpoint:  # a finished run needs its sources no more
            self.check_server()
        else:
            self.check_sources()
        panels, grader = self.panels, self.grader(run)  # first: what is refused is refused before a model is loaded
        self._keep_examples(run)
        self._keep_vector(run)
        self.leader = lead(config.learner, config.device, run, self.side_names, config.ray)
        policies = policies or load_policies(run, self.side_names)
        sides = [self.side(name, policy) for name, policy in policies.items()]
        planner = sides[0].learner.recipe.planner or GroupPlanner(config.rollout.group_size)
        if isinstance(planner, NoRollouts) and config.max_sampled_tokens is not None:
            raise ValueError(
                f"{sides[0].learner.recipe.name} samples nothing here, so that max_sampled_tokens="
                f"{config.max_sampled_tokens} would never be used up: set it to null, and num_updates to what you want"
            )
        self.leader.wait_for("ready", config.learner.ranks)
        collector, measurer = self._playing_episodes(run, sides, grader)
        order = TaskOrder(panels.train, config.rollout.num_tasks, config.seed)
        settings = self._loop()
        return kind(
            run=run,
            sides=sides,
            collector=collector,
            measurer=measurer,
            grader=grader,
            ranker=self.ranker(run, planner),
            ahead=ahead_of(config.rollout.ahead, collector, sides, planner, order, settings),
            panels=panels,
            order=order,
            planner=planner,
            writer=TrajectoryWriter(run.trajectories_path),
            watchdog=Watchdog(config.watchdog, run.metrics()),
            mirrors=Mirrors(config.mirrors, run.path, config.model_dump(mode="json")),
            measuring=config.eval,
            settings=settings,
            observer=observer or Callback(),
        )

    def _loop(self) -> LoopSettings:
        config = self.config
        return LoopSettings(
            seed=config.seed,
            num_updates=config.num_updates,
            max_sampled_tokens=config.max_sampled_tokens,
            checkpoint_every=config.checkpoint_every,
            max_skipped_updates=config.max_skipped_updates,
            keep_checkpoint=config.keep_checkpoint,
            temperature=config.rollout.temperature,
            max_error_share=config.rollout.max_error_share,
            max_reply_tokens=config.agent.max_reply_tokens,
        )

    def _keep_examples(self, run: RunDirectory) -> None:
        """The examples that the run began with, or those of now, which are written down."""
        if (stored := read_examples(run.path)) is not None:
            self.examples = stored
        elif self.examples:
            write_examples(run.path, self.examples)

    def _keep_vector(self, run: RunDirectory) -> None:
        """The vector that the run began with, from its folder: the file that was named may change at any time.

        A run that has a checkpoint and no such copy is of an earlier version, and goes by the name.
        """
        if not run.has_checkpoint and not (run.path / STEERING_FILE).exists():
            keep_vector(self.agent.decoding, run.path)
        self.agent = self.agent.kept_in(run.path)

    def side(self, name: str, policy: Policy) -> Side:
        """One policy in training, with its sampler, learner and buffer."""
        config = self.config
        policy.temperature = config.rollout.temperature
        sharded = is_sharded(config.rollout, config.ray)
        agent = self._cast.agent(name, policy, "vllm" if has_vllm(config) else "own", plays=not sharded)
        second = second_weights(policy, self.agent) if agent.second is None else agent.second.weights
        settings = config.algorithm, config.optimizer, config.run_info
        learner = learner_of(*settings, policy, self.agent, self.leader.ranks)
        called = str(getattr(config.model, "path", "the model"))
        side = Side(name, policy, agent, learner, called, self.leader, config.rollout.ahead, second)
        if sharded:
            policy.frozen_hash()  # while its weights are whole
        if isinstance(self.leader.ranks, ProcessRanks) and self.leader.ranks.lockstep:
            policy.divide(self.leader.ranks.mesh)
        return side

    def grader(self, run: RunDirectory) -> Grader | None:
        """Who pays episodes beside the world, with the verdicts that the run's folder holds; None where nobody does.

        Raises ValueError for a function or a judge that cannot be used, and where a task lacks what the rubric names.
        """
        made = grader_of(self.config.rewards, run.path / VERDICTS, self.config.rollout.env_order)
        if made is not None:
            made.check(lambda: told_of(self.world, self.panels.train[0], self.config.seed))
        return made

    def ranker(self, run: RunDirectory, planner: Planner) -> Ranker | None:
        """Who scores attempts relative to each other; None where nobody does.

        Raises ValueError where the planner decides by rewards or forks, before there are scores.
        """
        ranking = self.config.rewards.ranking
        if ranking is None:
            return None
        if not isinstance(planner, GroupPlanner):
            raise ValueError(
                "rewards.ranking scores whole groups when all of their episodes have ended, and the algorithm's "
                f"{type(planner).__name__} decides before: use rewards.judge, or another algorithm"
            )
        return Ranker(self.config.rewards, ranking, run.path / VERDICTS)

    @property
    def _cast(self) -> Cast:
        config = self.config
        return Cast(self.world, config.env, self.agent, config.rollout, config.game, config.seed, self.examples)

    def _playing_episodes(
        self, run: RunDirectory, sides: Sequence[Side], grader: Grader | None
    ) -> tuple[Playing, Playing]:
        """Who collects and who measures: the same one, but for games with different opponents."""
        config = self.config
        if not is_sharded(config.rollout, config.ray):
            made = self._cast.collectors({side.name: side.agent for side in sides}, grader)
            return made[TRAIN], made.get(MEASURE, made[TRAIN])
        policies = {side.name: side.policy for side in sides}
        settings = self.settled().model_dump(mode="json")
        seconds = {side.name: side.second for side in sides if side.second is not None}
        shards = shards_of(settings, run.base_model(), self.examples, policies, self.host, seconds)
        uses = (TRAIN, TRAIN if capability(self.world, HasPlayers) is None else MEASURE)
        collector, measurer = (ShardedCollector(shards, use, grader) for use in uses)
        return collector, collector if uses[0] == uses[1] else measurer
