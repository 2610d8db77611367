"""turnwise from Python: train, resume, evaluate, and an agent that acts. ``import turnwise`` offers these names."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnwise import jobs
from turnwise.agents.acting import Acting
from turnwise.agents.endpoint import is_endpoint
from turnwise.agents.opening import Example, read_examples
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.scripted import scripted
from turnwise.agents.seating import ModelAgent
from turnwise.algorithms.registry import resolve
from turnwise.assembly.agent_files import agent_settings, examples_of
from turnwise.assembly.players import model_agent
from turnwise.assembly.policies import load_policies, open_run
from turnwise.config.files import load_config, parse_config
from turnwise.config.overrides import beside
from turnwise.config.schema import RunConfig
from turnwise.envs.given import named
from turnwise.envs.interface import TextEnv, speaks_in_roles
from turnwise.envs.settings import EnvConfig
from turnwise.envs.tasks import closed_after
from turnwise.evaluation import evaluate as evaluation
from turnwise.evaluation.report import Report
from turnwise.jobs import Result
from turnwise.learning.settings import Settings
from turnwise.models.drawing import Sampling
from turnwise.models.policy import Policy
from turnwise.runs.directory import RunDirectory
from turnwise.training.observing import Observer, Together

if TYPE_CHECKING:
    from turnwise.assembly.policies import WhichCheckpoint

AnyEnv = str | TextEnv | Callable[..., TextEnv]
AnyModel = str | Path | tuple[Any, Any]
AnyAlgorithm = str | Settings | Callable[..., Any]
AnyReward = str | Callable[..., Any]
AnyCallback = Observer | Callable[[dict[str, Any]], object]


def train(
    config: RunConfig | str | Path | None = None,
    *,
    env: AnyEnv | None = None,
    model: AnyModel | None = None,
    algorithm: AnyAlgorithm | None = None,
    rewards: Sequence[AnyReward] = (),
    settings: Sequence[str] = (),
    callbacks: Sequence[AnyCallback] = (),
    out: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """Train an agent, and measure it on unseen tasks before and after.

    - ``config``: a configuration, or the name or path of one; by default the shipped one that fits ``env``.
    - ``env``: a gymnasium id, an environment, or a function or class that makes one.
    - ``model``: a model folder or hub name, or a loaded ``(model, tokenizer)``, which is copied into the run.
    - ``algorithm``: a name, settings such as ``GRPOConfig(clip_low=0.1)``, or a recipe function at the top of a module.
    - ``rewards``: functions of episode and task at the top of a module, or their names, that pay beside the world.
    - ``settings``: ``key.path=value``, as on the command line.
    - ``callbacks``: functions of each update's record (its line in metrics.jsonl), or ``turnwise.Callback`` objects.
    - ``out``: folder of the run; by default a new one below ``runs/``.
    - ``progress``: show the display of the command line.

    Raises ValueError for what cannot be run, StoppedRunError where something else ends the run.
    """
    if isinstance(config, RunConfig):
        if env is not None or algorithm is not None or rewards or settings or isinstance(model, str | Path):
            raise ValueError(
                "the configuration is complete: give env, model, algorithm and settings to turnwise.load_config, or "
                "give its name here in the place of it"
            )
        if model is not None:
            raise ValueError(
                "the configuration is complete, its model too: give its name in the place of it, beside model="
            )
        resolved = config
    else:
        resolved = _configuration(config, env, model, algorithm, settings, rewards)
    folder = Path(out) if out is not None else jobs.new_folder(resolved)
    loaded = _loaded(model) if isinstance(model, tuple) else None
    with _display(progress, resolved) as display:
        observer = Together([*([display] if display is not None else []), *_listed(callbacks)])
        return jobs.train(resolved, folder, observer, loaded)


def resume(
    path: str | Path,
    *,
    env: AnyEnv | None = None,
    settings: Sequence[str] = (),
    callbacks: Sequence[AnyCallback] = (),
    progress: bool = True,
) -> Result:
    """Continue a run after its newest sound checkpoint, to the same numbers as an unbroken one.

    ``settings`` change what may change, such as ``num_updates=200``. ``env`` is the environment of a run that was given
    one as an object: another process does not know it. Raises as ``train`` does.
    """
    run = RunDirectory.open(path)
    shown = jobs.resumed_config(run, settings)
    if env is not None and named(env) != (shown.env.id, shown.env.kwargs):
        raise ValueError(
            f"{path} trains in {shown.env.id} with {shown.env.kwargs or 'no arguments'}; got {named(env)[0]}: give the "
            "environment that it began with, under the same name"
        )
    with _display(progress, shown) as display:
        observer = Together([*([display] if display is not None else []), *_listed(callbacks)])
        return jobs.resume(path, observer, settings)


def evaluate(target: str | Path, *, env: AnyEnv | None = None, **asked: Any) -> Report:
    """Success on a fixed panel of unseen tasks, with its interval.

    ``target`` is a run, a checkpoint's folder, a model folder or hub name, ``openai:MODEL[@URL]``, ``random`` or
    ``expert``. ``env`` is as of ``train``; by default the run's own. The other arguments are those of
    ``turnwise.evaluation.evaluate.evaluate``: ``split``, ``tasks``, ``samples``, ``temperature``, ``checkpoint`` ...
    """
    if env is None:
        return evaluation.evaluate(target, **asked)
    env_id, kwargs = named(env)
    given = {**kwargs, **(asked.pop("env_kwargs", None) or {})}
    return evaluation.evaluate(target, env=env_id, env_kwargs=given, **asked)


class Agent(Acting):
    """A trained agent, or any chat model, that acts in a loop of yours.

        agent = turnwise.Agent.load("runs/first")
        observation, info = env.reset(seed=0)
        agent.reset(seed=0)
        ended = False
        while not ended:
            action = agent.act(observation, info)
            observation, reward, terminated, truncated, info = env.step(action)
            ended = terminated or truncated

    ``fresh()`` gives another episode over the same model: an agent for each of several environments. ``close()`` ends
    an episode and frees its memory.
    """

    @classmethod
    def load(
        cls,
        target: str | Path,
        *,
        checkpoint: WhichCheckpoint | None = None,
        side: str | None = None,
        agent: Mapping[str, Any] | None = None,
        env: AnyEnv | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        device: str = "cpu",
        num_episodes: int = 64,
    ) -> Agent:
        """A run's policy, or a model folder or hub name.

        ``checkpoint``: last, best, or an update; by default what the run names. ``side``: the role whose policy is
        meant, where a game trained one for each. ``agent`` changes agent settings. A run's policy is shown the examples
        that it was trained with, a model from elsewhere those of ``env``, where that is given. ``temperature`` 0 is
        greedy. ``num_episodes`` is how many may be open at once. Raises ValueError for what is not there.
        """
        model = _player(target, checkpoint, side, agent or {}, env, device, num_episodes)
        return cls(model, Sampling(temperature, top_p, top_k))

    def fresh(self) -> Agent:
        """Another episode over the same model, with no memory of this one."""
        return type(self)(self._model, self._sampling)


def _player(
    target: str | Path,
    checkpoint: WhichCheckpoint | None,
    side: str | None,
    agent: Mapping[str, Any],
    env: AnyEnv | None,
    device: str,
    num_episodes: int,
) -> ModelAgent:
    name = str(target)
    if num_episodes < 1:
        raise ValueError(f"num_episodes={num_episodes}: expected at least 1")
    if not isinstance(checkpoint, int | None) and checkpoint not in ("last", "best"):
        raise ValueError(f"checkpoint is last, best or the number of an update; got {checkpoint!r}")
    if scripted(name) is not None or is_endpoint(name):
        raise ValueError(f"{name} has no model here: Agent.load takes a run, or a model folder or hub name")
    run = open_run(target)
    with ExitStack() as opened:
        world = _world(run, env, opened)
        in_roles = run is None and world is not None and speaks_in_roles(world())
        settings = agent_settings(target, run.config().agent if run else None, agent, in_roles)
        examples = _examples(target, settings, agent, world)
    if run is None:
        if checkpoint is not None or side is not None:
            raise ValueError(f"{target} is not a run: there is no checkpoint or side to choose")
        policy = Policy.load(target, lora=None, device=device)
    else:
        sides = run.sides()
        chosen = sides[0] if side is None and len(sides) == 1 else side
        if chosen not in sides:
            raise ValueError(f"{target} has policies for {', '.join(sides)}: say which with side=...; got {side!r}")
        which = run.config().keep_checkpoint if checkpoint is None else checkpoint
        policy = load_policies(run, sides, which, device)[chosen]
    return model_agent(policy, settings, num_slots=num_episodes, name=name, examples=examples)


def _world(run: RunDirectory | None, env: AnyEnv | None, opened: ExitStack) -> Callable[[], TextEnv] | None:
    """The world ``env``, or else the run's, which is opened only where it is asked; None where there is neither."""
    where = EnvConfig(**dict(zip(("id", "kwargs"), named(env), strict=True))) if env is not None else None
    where = run.config().env if where is None and run is not None else where
    return None if where is None else cache(lambda: opened.enter_context(closed_after(where.make())))


def _examples(
    target: str | Path, settings: AgentConfig, changes: Mapping[str, Any], world: Callable[[], TextEnv] | None
) -> tuple[Example, ...]:
    """The examples that an agent is shown: stored ones, or those of a world."""
    if world is not None:
        return examples_of(target, settings, changes, world)
    if settings.examples and read_examples(target) is None:
        raise ValueError(f"agent.examples={settings.examples}: say of which world, with Agent.load(..., env=...)")
    return read_examples(target) or ()


def _configuration(
    name: str | Path | None,
    env: AnyEnv | None,
    model: AnyModel | None,
    algorithm: AnyAlgorithm | None,
    settings: Sequence[str],
    rewards: Sequence[AnyReward],
) -> RunConfig:
    env_id, kwargs = named(env) if env is not None else (None, {})
    if isinstance(settings, str | Mapping) or not all(isinstance(word, str) for word in settings):
        raise ValueError(f"settings is a list of texts, such as ['num_updates=20']; got {settings!r}"[:200])
    if not isinstance(model, str | Path | tuple | None):
        raise ValueError(f"model is a folder, a hub name, or a loaded (model, tokenizer); got {type(model).__name__}")
    words = [f"env.kwargs={json.dumps(kwargs)}"] if kwargs else []
    if isinstance(model, tuple):
        path = str(getattr(_loaded(model)[0], "name_or_path", "") or type(model[0]).__name__)
        words += [f"model.path={json.dumps(path)}"]
    elif model is not None:
        words += [f"model.path={json.dumps(str(model))}"]
    chosen = algorithm if isinstance(algorithm, str) or algorithm is None else _name_of(algorithm)
    words += _paying(rewards)
    objects = {
        "rewards": bool(rewards),
        "env": env is not None and not isinstance(env, str),
        "model": isinstance(model, tuple),
        "algorithm": isinstance(algorithm, Settings),
    }
    _check_words(settings, objects)
    loaded = ["model={}", "warmstart=null"] if isinstance(model, tuple) else []
    words = [*loaded, *beside(words, settings, by="an argument")]
    config = load_config(name, words, env=env_id, algorithm=chosen)
    if not isinstance(algorithm, Settings):
        return config
    return parse_config({**config.model_dump(mode="json"), "algorithm": algorithm.model_dump(mode="json")})


def _listed(callbacks: Sequence[AnyCallback]) -> Sequence[AnyCallback]:
    if not isinstance(callbacks, Sequence):
        raise ValueError(
            f"callbacks is a list of functions or turnwise.Callback objects, such as [print]; got {callbacks}"
        )
    return callbacks


def _paying(rewards: Sequence[AnyReward]) -> list[str]:
    """The setting that names reward functions, where there are some."""
    if isinstance(rewards, str) or callable(rewards):
        raise ValueError(f"rewards is a list of functions or of their names, such as [exact]; got {rewards!r}"[:200])
    names = [reward if isinstance(reward, str) else _place_of(reward) for reward in rewards]
    return [f"rewards.functions={json.dumps(names)}"] if names else []


def _place_of(function: Callable[..., Any]) -> str:
    """The name under which a resumed run finds a function again."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module is None or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(
            f"a reward function is found again by its name: put it at the top of a module; got {function!r}"[:300]
        )
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if module == "__main__" and script is not None:  # another process knows the script by its file's name
        module = Path(script).stem
    return f"{module}:{name}"


def _check_words(words: Sequence[str], given: Mapping[str, bool]) -> None:
    """Raises ValueError for a setting of what was given as an object: one of the two would be dropped."""
    keys = {"env": "env.id", "model": "model.path", "algorithm": "algorithm", "rewards": "rewards.functions"}
    for word in words:
        name = word.partition("=")[0]
        for what, is_given in given.items():
            if is_given and (name == keys[what] or (what == "algorithm" and name.startswith("algorithm."))):
                raise ValueError(f"{what} is given as an object, and the setting {word!r} names another: keep one")


def _name_of(algorithm: Settings | Callable[..., Any]) -> str:
    """The name under which a configuration finds it again."""
    if isinstance(algorithm, Settings):
        return str(getattr(algorithm, "type", ""))
    module, name = getattr(algorithm, "__module__", None), getattr(algorithm, "__qualname__", "")
    if module is None or not name.isidentifier():
        raise ValueError(
            f"expected an algorithm's name, its settings, or the recipe function at the top of a module; "
            f"got {algorithm!r}"[:300]
        )
    known = f"{module}:{name}"
    resolve(known)
    return known


def _loaded(model: tuple[Any, Any]) -> tuple[Any, Any]:
    if len(model) != 2 or not hasattr(model[0], "parameters") or not hasattr(model[1], "encode"):
        kinds = ", ".join(type(each).__name__ for each in model)
        raise ValueError(f"expected a loaded (model, tokenizer), as transformers gives them; got ({kinds})")
    return model


def _display(progress: bool, config: RunConfig) -> Any:
    if not progress:
        return nullcontext(None)
    from rich.console import Console

    from turnwise.commands.display import LiveDisplay

    return LiveDisplay(Console(), config.num_updates, jobs.title_of(config))
