"""The Python interface: train, resume and evaluate with objects; an agent that acts in somebody's own loop."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import turnwise
from tests.models import tiny_model, tokenizer
from tests.worlds import Cue
from turnwise.agents.seating import CutShortError
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.api import Result
from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.envs.given import named
from turnwise.runs.directory import RunDirectory

SHORT = (
    *("num_updates=2", "rollout={num_tasks: 4, group_size: 4, num_slots: 16}"),
    *("eval={every: 0, test_tasks: 4}", "agent={max_reply_tokens: 4, max_context_tokens: 512}", "checkpoint_every=1"),
    *("optimizer.lr=1e-2", "algorithm.kl_coef=0", "algorithm.drop_uniform_groups=false"),
)


def trained(out: Path, model: Any, **more: Any) -> Result:
    """Two updates of GRPO in a world that was never registered."""
    given = {"env": Cue, "algorithm": "grpo", "settings": SHORT, "progress": False, **more}
    return turnwise.train(model=model, out=out, **given)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return trained(tmp_path_factory.mktemp("api") / "run", str(model)).path


def lines(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in RunDirectory.open(path).metrics()]


def test_a_class_is_trained_on_and_callbacks_are_told(tmp_path: Path, model: Path, run: Path) -> None:
    class Counts(turnwise.Callback):
        def __init__(self) -> None:
            self.stages: list[str] = []
            self.episodes = 0

        def stage(self, name: str) -> None:
            self.stages.append(name)

        def episode(self, trajectory: Any) -> None:
            self.episodes += 1

    counts, updates = Counts(), list[int]()
    result = trained(
        tmp_path / "again", str(model), callbacks=[counts, lambda record: updates.append(record["update"])]
    )
    assert updates == [0, 1]
    assert counts.stages == ["measure", "train", "measure"]
    assert counts.episodes == 2 * 16 + 4 * len(result.before) + 4 * len(result.after)
    assert lines(result.path) == lines(run), "the same call gives the same numbers"


def test_a_loaded_model_trains_like_its_folder_and_stays_as_it_was(tmp_path: Path, run: Path) -> None:
    loaded = tiny_model()
    before = {name: weight.clone() for name, weight in loaded.state_dict().items()}
    result = trained(tmp_path / "loaded", (loaded, tokenizer()))
    assert lines(result.path) == lines(run)
    assert all(bool((before[name] == weight).all()) for name, weight in loaded.state_dict().items())
    with pytest.raises(ValueError, match=r"expected a loaded \(model, tokenizer\)"):
        trained(tmp_path / "wrong", (tokenizer(), loaded))


def test_settings_of_an_algorithm_may_be_given(tmp_path: Path, model: Path) -> None:
    chosen = GRPOConfig(clip_low=0.1, kl_coef=0.0, drop_uniform_groups=False)
    plain = [word for word in SHORT if not word.startswith("algorithm")]
    result = trained(tmp_path / "run", str(model), algorithm=chosen, settings=plain)
    assert RunDirectory.open(result.path).config().algorithm == chosen


def test_a_run_goes_on_and_is_measured_with_the_world_given_again(run: Path) -> None:
    gymnasium.registry.pop("given/Cue-v0")
    with pytest.raises(ValueError, match=r"given as an object.*turnwise\.resume"):
        turnwise.resume(run, settings=["num_updates=3"], progress=False)
    turnwise.resume(run, env=Cue, settings=["num_updates=3"], progress=False)
    assert len(lines(run)) == 3
    assert turnwise.evaluate(run, env=Cue, tasks=3).num_tasks == 3


def test_what_a_world_may_be() -> None:
    made = gymnasium.make("turnwise/Household-v0", difficulty="hard")
    assert named(made) == ("turnwise/Household-v0", {"difficulty": "hard"})
    assert named("a:b/C-v0") == ("a:b/C-v0", {})
    own = Cue()
    own.mark = "mine"  # type: ignore[attr-defined]
    env_id, kwargs = named(own)
    first, second = (gymnasium.make(env_id, **kwargs).unwrapped for _ in range(2))
    assert first is not second
    assert first.mark == second.mark == "mine"  # type: ignore[attr-defined]
    assert named(lambda: Cue())[0] == "given/lambda-v0"
    with pytest.raises(ValueError, match="expected a gymnasium id, an environment, or a function"):
        named(3)  # type: ignore[arg-type]


def test_a_complete_configuration_takes_nothing_beside_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the configuration is complete"):
        turnwise.train(load_config("smoke"), env=Cue, out=tmp_path / "run")
    with pytest.raises(ValueError, match="recipe function at the top of a module"):
        turnwise.train("smoke", algorithm=lambda config, run: None, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"a callback is a function of an update's record"):
        turnwise.train("smoke", callbacks=[3], out=tmp_path / "run", progress=False)  # type: ignore[list-item]
    assert not (tmp_path / "run").exists()


def test_a_time_limit_of_a_given_world_is_kept() -> None:
    limited = gymnasium.make("turnwise/Household-v0", max_episode_steps=2)
    env_id, kwargs = named(limited)
    assert env_id.startswith("given/")
    env = gymnasium.make(env_id, **kwargs)
    env.reset(seed=0)
    assert [env.step("look")[3] for _ in range(2)] == [False, True]


def test_worlds_of_the_same_name_are_cloned_each_anew(model: Path) -> None:
    env_id, _ = named(Cue)
    config = load_config("smoke", [f"env.id={env_id}", "eval={every: 0, test_split: null}"])
    assert not Assembly(config).warmstart.is_cached


def test_a_model_that_was_given_survives_a_restart(tmp_path: Path, model: Path) -> None:
    class Stop(turnwise.Callback):
        def stage(self, name: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", (tiny_model(), tokenizer()), callbacks=[Stop()])
    assert (tmp_path / "run" / "model").is_dir()
    assert len(lines(turnwise.resume(tmp_path / "run", env=Cue, progress=False).path)) == 2


def test_what_is_said_twice_is_refused(tmp_path: Path, model: Path, run: Path) -> None:
    chosen = GRPOConfig(clip_low=0.1)
    with pytest.raises(ValueError, match=r"algorithm is given as an object, and the setting 'algorithm\.kl_coef=0'"):
        trained(tmp_path / "run", str(model), algorithm=chosen)
    with pytest.raises(ValueError, match="env is given as an object"):
        trained(tmp_path / "run", str(model), settings=["env.id=turnwise/Sokoban-v0"])
    with pytest.raises(
        ValueError, match=r"two values of model\.path are asked for, .* by an argument and \"other\" by"
    ):
        trained(tmp_path / "run", str(model), settings=["model.path=other"])
    with pytest.raises(ValueError, match="give the environment that it began with"):
        turnwise.resume(run, env="turnwise/Sokoban-v0", progress=False)
    with pytest.raises(ValueError, match="settings is a list of texts"):
        trained(tmp_path / "run", str(model), settings="num_updates=1")
    with pytest.raises(ValueError, match="settings is a list of texts"):
        trained(tmp_path / "run", str(model), settings={"num_updates": 1})
    with pytest.raises(ValueError, match="callbacks is a list of functions"):
        trained(tmp_path / "run", str(model), callbacks=print)
    for wrong in ({"tasks": -1}, {"tasks": 0}, {"samples": 0}, {"tasks": 2.5}, {"num_slots": 0}):
        with pytest.raises(ValueError, match=r"\w+=\S+: expected a whole number of at least 1"):
            turnwise.evaluate(run, **wrong)
    with pytest.raises(ValueError, match=r"loaded \(model, tokenizer\); got"):
        trained(tmp_path / "run", tiny_model())
    with pytest.raises(ValueError, match="another process does not know given/Cue-v0"):
        trained(tmp_path / "run", str(model), settings=[*SHORT, "env.process=true"])
    assert not (tmp_path / "run").exists()


def test_an_agents_episodes_are_given_back(run: Path) -> None:
    agent = turnwise.Agent.load(run, num_episodes=2)
    for _ in range(5):
        other = agent.fresh()
        other.reset()
    agent.reset()
    third = agent.fresh()
    with pytest.raises(ValueError, match="2 episodes of this model are open"):
        third.reset()
    other.close()
    third.reset()
    with pytest.raises(ValueError, match="expected a temperature of 0"):
        turnwise.Agent.load(run, temperature=-1.0)


def test_an_agent_acts_turn_by_turn(run: Path) -> None:
    agent = turnwise.Agent.load(run)
    with pytest.raises(ValueError, match=r"begin an episode with agent\.reset"):
        agent.act("hello")

    def said(who: turnwise.Agent, seed: int) -> list[str]:
        who.reset(seed=seed)
        return [who.act(text) for text in ("go to drawer 1", "On the cabinet 2, you see a mug 1", "a plate 1")]

    first, other = said(agent, 0), agent.fresh()
    assert said(agent, 0) == first, "a seed repeats"
    assert said(other, 0) == first, "over the same model"
    assert said(agent, 1) != first
    other.reset(seed=5)
    alone = said(agent, 2)
    other.act("go to drawer 1")  # a second episode in between
    assert said(agent, 2) == alone
    greedy = turnwise.Agent.load(run, temperature=0.0)
    assert said(greedy, 0) == said(greedy, 1)
    with pytest.raises(ValueError, match="expected an observation, which is a string"):
        agent.act(3)  # type: ignore[arg-type]


def test_an_agent_says_when_its_context_is_full(run: Path) -> None:
    agent = turnwise.Agent.load(run, agent={"max_context_tokens": 64})
    agent.reset()

    def go_on() -> None:
        for _ in range(20):
            agent.act("You arrive at cabinet 1")

    with pytest.raises(CutShortError, match="the context is full"):
        go_on()


def test_whom_an_agent_may_be(run: Path, model: Path) -> None:
    assert isinstance(turnwise.Agent.load(model), turnwise.Agent)
    with pytest.raises(ValueError, match="expert has no model here"):
        turnwise.Agent.load("expert")
    with pytest.raises(ValueError, match="is not a run: there is no checkpoint or side"):
        turnwise.Agent.load(model, checkpoint="best")
    with pytest.raises(ValueError, match="say which with side"):
        turnwise.Agent.load(run, side="white")


def test_old_places_are_told() -> None:
    with pytest.raises(ImportError, match=r"import turnwise\.learning\.parts"):
        importlib.import_module("turnwise.algorithms.parts")
    with pytest.raises(ImportError, match=r"turnwise\.config\.schema\.RunConfig"):
        from turnwise.config import RunConfig  # noqa: F401
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = turnwise.trian


def test_the_worlds_are_registered_by_importing_turnwise() -> None:
    assert gymnasium.spec("turnwise/Household-v0").entry_point == "turnwise.envs.household.env:HouseholdEnv"


EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_example_loop_learns_from_the_parts(
    monkeypatch: pytest.MonkeyPatch, shared_cache: None, capsys: pytest.CaptureFixture[str]
) -> None:
    import turnwise.config.files as files

    small = files.load_config("smoke", algorithm="grpo")
    monkeypatch.setattr(files, "load_config", lambda *_, **__: small)
    example = runpy.run_path(str(EXAMPLES / "loop.py"))
    assert len(example["main"](1)) == 1
    assert "update 0: success" in capsys.readouterr().out


def test_the_example_agent_acts_in_its_own_loop(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gymnasium.registry.pop("given/Cue-v0", None)
    env_id, _ = named(Cue)
    runpy.run_path(str(EXAMPLES / "act.py"))["main"](str(run), env_id)
    assert "\n> " in capsys.readouterr().out
