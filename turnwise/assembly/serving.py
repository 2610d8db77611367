"""A run or a model as an endpoint: the gateway of agent programs, with the collector behind it and no training.

    with closing(Service("runs/first", Offer(port=8000))) as service:
        service.run()           until ``stop`` is called

Whoever asks is a world (``envs/programs/serving.py``), so that conversations are played, recorded and stored as the
episodes of any other world.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol

from turnwise.agents.collector import Collector
from turnwise.agents.endpoint import is_endpoint
from turnwise.agents.jobs import Job
from turnwise.agents.rollouts import Rollouts
from turnwise.agents.scripted import scripted
from turnwise.agents.seating import ModelAgent
from turnwise.agents.worldwork import WorldThreads
from turnwise.assembly.players import players
from turnwise.assembly.policies import WhichCheckpoint, open_run
from turnwise.config.files import parse_config
from turnwise.envs.panels import content_key
from turnwise.envs.programs.asked import Terms
from turnwise.envs.programs.gateway import Gateway
from turnwise.envs.programs.serving import Conversations, ServedEnv
from turnwise.envs.tasks import SERVED
from turnwise.models.drawing import Sampling
from turnwise.models.settings import PretrainedModelConfig
from turnwise.replay.store import TrajectoryWriter
from turnwise.runs.directory import RunDirectory
from turnwise.runs.exporting import dialogues, origin
from turnwise.trajectory import RolloutFinished, Task, Trajectory


@dataclass(frozen=True, slots=True)
class Offer:
    """What is served, and to whom.

    ``agent`` are changes of the agent's settings. ``num_slots`` conversations are open at once, each for ``idle_s``
    seconds of silence. ``temperature`` is that of requests which name none. ``record`` is a new folder for the
    conversations, or a new file of chats, NAME.jsonl. ``name`` is what clients call the model.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    name: str = "agent"
    record: Path | None = None
    checkpoint: WhichCheckpoint | None = None
    agent: Mapping[str, Any] = field(default_factory=dict)
    num_slots: int = 16
    idle_s: float = 600.0
    temperature: float = 1.0
    device: str = "cpu"
    strict: bool = False


class Service:
    """A served agent. It listens from its making; ``run`` answers.

    Raises ValueError for a target that is no model, where other machines could ask without a key, where the address
    cannot be used, and where ``record`` is not empty.
    """

    def __init__(self, target: str, offer: Offer) -> None:
        if not _is_local(offer.host) and not offer.api_key:
            raise ValueError(
                f"--host {offer.host} lets other machines ask the model: give --api-key KEY too, or serve on 127.0.0.1"
            )
        self.offer = offer
        terms = Terms(offer.name, offer.strict, greedy=True, temperature=offer.temperature)
        self._door = Conversations(terms, offer.api_key or None, offer.idle_s)
        self.agent = _agent(target, offer, self._door)
        self._gateway = Gateway(self._door, offer.host, offer.port)
        try:
            self._record = _record(target, offer, self.agent)
        except ValueError:
            self._gateway.close()
            raise
        threads = WorldThreads(offer.num_slots, order="free")
        self._collector = Collector(lambda: ServedEnv(self._door), self.agent, threads=threads)
        self._stopped = False

    @property
    def url(self) -> str:
        """What clients call ``base_url``."""
        return self._gateway.url

    def run(self) -> None:
        """Answer until ``stop`` is called. An error ends every conversation, and is raised."""
        usual = self.offer.temperature or 1.0  # at 0 every reply would be greedy, whatever its request asks for
        limits = Sampling(usual, max_tokens=self.agent.config.max_reply_tokens)
        rollouts = Rollouts(self._collector, limits, key=time.time_ns(), on_episode=self._keep)
        for number in range(self.agent.engine.num_slots):
            rollouts.add(_job(number))
        try:
            while rollouts.busy:
                for event in rollouts.advance():
                    if isinstance(event, RolloutFinished):
                        rollouts.forget(event.rollout)
                        if not self._stopped:
                            rollouts.add(_job(event.rollout + self.agent.engine.num_slots))
        finally:
            self.stop()  # before worlds are waited for: they wait for requests
            rollouts.abandon()

    def stop(self) -> None:
        """Let ``run`` return. Conversations end, and their last requests are refused."""
        self._stopped = True
        self._door.close()

    def close(self) -> None:
        self.stop()
        self._gateway.close()
        self._collector.close()

    def _keep(self, trajectory: Trajectory) -> None:
        if self._record is not None and trajectory.turns and trajectory.end != "error":
            self._record.add(trajectory)


class Record(Protocol):
    """Where conversations are kept."""

    def add(self, trajectory: Trajectory) -> None: ...


def _record(target: str, offer: Offer, agent: ModelAgent) -> Record | None:
    if offer.record is None:
        return None
    if offer.record.suffix == ".jsonl":
        return _Lines(offer.record, agent.config.system or "")
    return _Folder(offer.record, _described(target, offer, agent))


class _Lines:
    """A file of chats, each a line of JSON that is written when its conversation has ended."""

    def __init__(self, path: Path, system: str) -> None:
        self._path, self._system = path, system
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
        except OSError as error:
            raise ValueError(f"--record {path} must be a new file ({error.strerror}): choose another name") from error

    def add(self, trajectory: Trajectory) -> None:
        rows = ({**row, **origin(trajectory)} for row in dialogues(trajectory, self._system))
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


class _Folder:
    """A folder like a run's, with the conversations as its episodes."""

    def __init__(self, path: Path, described: Mapping[str, Any]) -> None:
        self._run = RunDirectory.create(path, parse_config(described), {})
        self._writer = TrajectoryWriter(self._run.trajectories_path)

    def add(self, trajectory: Trajectory) -> None:
        """Conversations that begin alike are of one task."""
        key = content_key(trajectory.turns[0].observation)
        self._writer.append(0, [replace(trajectory, task=replace(trajectory.task, key=key))])


def _agent(target: str, offer: Offer, door: Conversations) -> ModelAgent:
    if scripted(target) is not None or is_endpoint(target):
        raise ValueError(f"{target} is no model of this machine: serve a run, a model folder or a hub name")
    agent = {"context": "roles", "action_format": "calls", "examples": 0, **offer.agent}
    made = players(
        target,
        ServedEnv(door),
        num_slots=offer.num_slots,
        checkpoint=offer.checkpoint,
        agent=agent,
        device=offer.device,
    )
    found = made.get("")
    if not isinstance(found, ModelAgent):
        raise ValueError(f"{target} has a policy for each of {', '.join(made)}: serve a run of one policy")
    return found


def _job(number: int) -> Job:
    return Job(Task(SERVED, "served", number, str(number)))


def _described(target: str, offer: Offer, agent: ModelAgent) -> dict[str, Any]:
    """The configuration of the folder that keeps conversations."""
    run, path = open_run(target), target
    if run is not None:
        theirs = run.config().model
        elsewhere = theirs.path if isinstance(theirs, PretrainedModelConfig) else ""
        path = elsewhere if elsewhere and not run.model_path.exists() else str(run.model_path)
    return {
        "env": {"id": SERVED, "split": "served"},
        "model": {"path": path},
        "agent": agent.config.model_dump(mode="json"),
    }


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
