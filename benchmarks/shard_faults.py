"""Shards are killed, at named moments and at random ones: are the episodes and the next weights those of a whole run?

    python benchmarks/shard_faults.py child --random 12 --out benchmarks/results/shard_faults_child.json
    python benchmarks/shard_faults.py ray --random 8 --out benchmarks/results/shard_faults_ray.json

A small cloned agent trains two updates of the household by ARPO, which forks, in two shards. It does so without a fault
first, and then once for each fault, from the same checkpoint. ``child`` kills a shard's process. ``ray`` runs a cluster
of two nodes on this machine. It kills an actor's process, or a whole node, which is added again before the next fault.

Equal means: every line of metrics.jsonl but for its seconds and its counts of losses (the hashes of the weights among
them), and every episode of trajectories.jsonl.gz but for its seconds, in the same order. The exit code is 1 where
something differs, or where a fault did not hit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from turnwise.assembly.run import Assembly
from turnwise.assembly.shards import host_of
from turnwise.config.files import load_config
from turnwise.config.sections import RayConfig
from turnwise.jobs import warmstart
from turnwise.replay.codec import to_record
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.shards.connection import Host, Place
from turnwise.shards.messages import ForkFrom
from turnwise.shards.rollouts import Shards
from turnwise.training.trainer import Trainer

SETTINGS = [
    *("model.hidden_size=32", "model.head_dim=16", "model.ffn_size=48", "agent.max_reply_tokens=8"),
    *("warmstart.tokenizer_episodes=40", "warmstart.max_tokens=8000", "warmstart.split=train"),
    *("rollout.num_tasks=4", "rollout.group_size=4", "rollout.num_slots=8", "rollout.shards=2"),
    *("eval.every=0", "eval.tasks=128", "eval.test_split=null", "num_updates=100", "checkpoint_every=1000"),
    "algorithm={type: arpo, bias: 1.0, initial: 2, base: {type: grpo, drop_uniform_groups: false}}",
]
UPDATES = 2


@dataclass
class Said:
    """A message to a shard: the ``nth`` of its name in this trial. ``mine``: to the shard that the trial is about."""

    mine: bool
    name: str
    arguments: tuple[Any, ...]
    nth: int

    @property
    def forks(self) -> bool:
        return self.name == "go" and any(isinstance(command, ForkFrom) for command in self.arguments[0])


@dataclass
class Fault:
    """Kills ``times`` shards at messages of which ``when`` is true: just before, or ``after_s`` seconds into them."""

    name: str
    when: Callable[[Said], bool]
    after_s: float | None = None
    times: int = 1


class Killing:
    """A host whose shards are killed as ``fault`` says. ``kill(place)`` kills one."""

    def __init__(self, host: Host, kill: Callable[[Place], str]) -> None:
        self.host, self.kill = host, kill
        self.fault: Fault | None = None
        self.begin(None, 1)

    def begin(self, fault: Fault | None, target: int) -> None:
        """Begin a trial about shard ``target``."""
        self.fault, self.target, self.killed = fault, target, list[str]()
        self.counts: dict[tuple[int, str], int] = {}

    def place(self, number: int, seconds: float) -> Place:
        return _Watched(self, number, self.host.place(number, seconds))

    def shared(self, tensors: bytes) -> Any:
        return self.host.shared(tensors)

    def close(self) -> None:
        self.host.close()

    def said(self, number: int, name: str, arguments: tuple[Any, ...]) -> Said:
        """Count a message."""
        nth = self.counts.get((number, name), 0)
        self.counts[number, name] = nth + 1
        return Said(number == self.target, name, arguments, nth)


class _Watched:
    def __init__(self, host: Killing, number: int, place: Place) -> None:
        self.host, self.number, self.inner = host, number, place

    def tell(self, name: str, *arguments: Any) -> None:
        host, fault = self.host, self.host.fault
        said = host.said(self.number, name, arguments)
        hit = fault is not None and len(host.killed) < fault.times and fault.when(said)
        if hit and fault is not None and fault.after_s is None:
            self._kill(said)
        self.inner.tell(name, *arguments)
        if hit and fault is not None and fault.after_s is not None:
            time.sleep(fault.after_s)
            self._kill(said)

    def told(self, seconds: float) -> Any:
        return self.inner.told(seconds)

    def leave(self) -> None:
        self.inner.leave()

    def end(self) -> None:
        self.inner.end()

    def _kill(self, said: Said) -> None:
        self.host.killed.append(f"{self.host.kill(self.inner)} of shard {self.number} at {said.name} {said.nth}")


def named(batches: int) -> list[Fault]:
    """The named moments. The shard has so many ``batches`` in a trial."""
    return [
        Fault("between weights and session", lambda m: m.mine and (m.name, m.nth) == ("begin", 0)),
        Fault("while the session begins", lambda m: m.mine and (m.name, m.nth) == ("begin", 0), 0.0),
        Fault("at the first episodes", lambda m: m.mine and (m.name, m.nth) == ("go", 0), 0.01),
        Fault("before a fork", lambda m: m.mine and m.forks),
        Fault("while it forks", lambda m: m.mine and m.forks, 0.005),
        Fault("in mid-rollout", lambda m: m.mine and (m.name, m.nth) == ("go", 4), 0.02),
        Fault("at the last batch", lambda m: m.mine and (m.name, m.nth) == ("go", batches - 1), 0.0),
        Fault("before the next weights", lambda m: m.mine and (m.name, m.nth) == ("hold", 1)),
        Fault("while it takes the next weights", lambda m: m.mine and (m.name, m.nth) == ("hold", 1), 0.0),
        Fault("both shards at once", lambda m: (m.name, m.nth) == ("go", 2), 0.0, times=2),
        Fault("the new shard too, as it is told again", lambda m: m.mine and m.name == "go", times=2),
    ]


def at_random(batches: int, rng: random.Random) -> Fault:
    """A batch drawn among all of a trial: just before it, or up to 50 ms into it."""
    nth = rng.randrange(batches)
    after = rng.choice([None, rng.uniform(0, 0.05)])
    return Fault("at random", lambda m: m.mine and (m.name, m.nth) == ("go", nth), after)


def trial(trainer: Trainer, host: Killing, fault: Fault | None, target: int = 1) -> tuple[Any, dict[str, Any]]:
    """Two updates from the first checkpoint: what is compared, and what is told of them."""
    trainer.rewind()
    host.begin(fault, target)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = [trainer.step() for _ in range(UPDATES)]
    seconds = time.perf_counter() - began
    episodes = [_timeless(to_record(t)) for t in TrajectoryReader(trainer.run.trajectories_path)]
    metrics = [
        {k: v for k, v in line.items() if k not in ("seconds", "tokens") and "shards/" not in k} for line in lines
    ]
    told = {
        "episodes": len(episodes),
        "forks": sum(bool(episode.get("fork")) for episode in episodes),
        "distinct": len({(episode["policy_version"], episode["episode"]) for episode in episodes}),
        "lost": lines[-1]["shards/lost"],
        "messages_repeated": lines[-1]["shards/messages_repeated"],
        "recovery_s": round(sum(line["seconds"].get("recovery", 0.0) for line in lines), 2),
        "seconds": round(seconds, 2),
    }
    return (metrics, episodes), told


def _timeless(found: Any) -> Any:
    if isinstance(found, dict):
        return {k: _timeless(v) for k, v in found.items() if not k.endswith("_s")}
    return [_timeless(v) for v in found] if isinstance(found, list) else found


class Processes:
    """Child processes, which are killed."""

    def __init__(self) -> None:
        self.host = host_of(None)

    def close(self) -> None:
        """Nothing is left."""

    def kill(self, place: Any) -> str:
        os.kill(place.child._process.pid, signal.SIGKILL)
        return "process"

    def target(self, shards: Shards, trial: int) -> int:
        """The number of the shard that a trial is about: one after the other."""
        return trial % 2


class Nodes:
    """Actors on a Ray cluster of two nodes on this machine, whose second one is killed where the actor is on it."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        self.second = self.cluster.add_node(num_cpus=2)
        self.host = _Located(host_of(RayConfig(address=self.cluster.address)))

    def close(self) -> None:
        """End the cluster."""
        self.cluster.shutdown()

    def kill(self, place: Any) -> str:
        node, process = self.host.where[id(place)]
        if self.second is not None and node == self.second.node_id:
            self.cluster.remove_node(self.second, allow_graceful=False)
            self.second = None
            return "node"
        os.kill(process, signal.SIGKILL)
        return "process"

    def target(self, shards: Shards, trial: int) -> int:
        """A shard on the second node, which is added again where it was killed; in every third trial one on the first.

        Where no shard is on the second node, one is ended, and Ray spreads them anew.
        """
        if self.second is None:
            self.second = self.cluster.add_node(num_cpus=2)
        there = [self._is_there(connection) for connection in shards.connections]
        if not any(there):
            shards.connections[1].end()
            there = [False, True]
        return there.index(trial % 3 != 2 or all(there))

    def _is_there(self, connection: Any) -> bool:
        place = connection._place
        return place is not None and self.host.where[id(place.inner)][0] == self.second.node_id


class _Located:
    """A host that knows where its actors are: the node and the process of each place."""

    def __init__(self, host: Any) -> None:
        self._host, self.where = host, dict[int, tuple[str, int]]()

    def place(self, number: int, seconds: float) -> Place:
        place: Any = self._host.place(number, seconds)
        self.where[id(place)] = place.where(seconds)
        return place  # type: ignore[no-any-return]

    def shared(self, tensors: bytes) -> Any:
        return self._host.shared(tensors)

    def close(self) -> None:
        self._host.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("child", "ray"))
    parser.add_argument("--random", type=int, default=8, help="how many faults at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    where = Processes() if given.kind == "child" else Nodes()
    config = load_config("smoke", SETTINGS)
    host = Killing(where.host, where.kill)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(Path(folder) / "run", config, {})
        shutil.copytree(warmstart(config), run.model_path)
        with closing(Assembly(config, host=host).trainer(run)) as trainer:
            trainer.save()
            whole, told = trial(trainer, host, None)
            batches = min(host.counts[number, "go"] for number in range(2))
            print("whole", json.dumps(told), flush=True)
            again, _ = trial(trainer, host, None)
            assert again == whole, "two trials without a fault differ"
            drawn = random.Random(given.seed)
            faults = [*named(batches), *(at_random(batches, drawn) for _ in range(given.random))]
            lost, repeated = told["lost"], told["messages_repeated"]
            for number, fault in enumerate(faults):
                found, told = trial(trainer, host, fault, where.target(trainer.collector.shards, number))
                row = {
                    "fault": fault.name,
                    "killed": host.killed,
                    "hit": len(host.killed) == fault.times,
                    "weights_equal": [m["adapter_hash"] for m in found[0]] == [m["adapter_hash"] for m in whole[0]],
                    "metrics_equal": found[0] == whole[0],
                    "episodes_equal": found[1] == whole[1],
                    **told,
                    "lost": told["lost"] - lost,
                    "messages_repeated": told["messages_repeated"] - repeated,
                }
                lost, repeated = told["lost"], told["messages_repeated"]
                rows.append(row)
                print(json.dumps(row), flush=True)
    where.close()
    sound = [row["hit"] and row["metrics_equal"] and row["episodes_equal"] for row in rows]
    print(f"{sum(sound)} of {len(rows)} faults: all episodes and all weights equal")
    if given.out is not None:
        made = {"kind": given.kind, "python": platform.python_version(), "torch": torch.__version__, "faults": rows}
        given.out.write_text(json.dumps(made, indent=1) + "\n")
    return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main())
