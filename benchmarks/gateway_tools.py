"""The same episodes of tools, told by a world and asked for through the endpoint: what the endpoint costs.

    python benchmarks/gateway_tools.py [--model FOLDER] [--size 256] [--sessions 16] [--episodes 64] [--out FILE]

The world is turnwise/Files-v0, once as it is and once inside a program that offers its tools to a client. Replies are
the expert's: the engine computes the model and draws nothing, so that every side plays the same episodes, which is
checked token by token. Process time is counted, of one torch thread and all others: client, server, world and model.
The sides are played in turns, and the least of the repeats counts.

``--model`` is a folder; ``--size`` the width of a model from nothing (``growth.py``; 256: 5 M parameters).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from growth import sized
from torch import Tensor

from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.jobs import jobs_for
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import ModelAgent
from turnwise.agents.worldwork import Order, WorldThreads
from turnwise.envs.files.world import FilesEnv
from turnwise.envs.programs.running import Model
from turnwise.envs.programs.world import ProgramEnv
from turnwise.envs.said import Call, heard, said
from turnwise.envs.tasks import TextEnv, panel
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.models.loading import end_ids
from turnwise.models.policy import Policy
from turnwise.models.scratch import new_model, train_tokenizer
from turnwise.models.settings import LoRAConfig
from turnwise.runs.directory import provenance
from turnwise.trajectory import Task, Trajectory

NUM_TASKS = 200
AGENT = AgentConfig(context="roles", action_format="calls", max_reply_tokens=128, max_context_tokens=1024)
_QUESTION = re.compile(r"(?:Which number is in|What is the sum of) '[^?]+\?")


class Dictated(SlotEngine):
    """Computes its model and says what the expert would: ``plans`` has the replies to each question."""

    def __init__(self, model: Any, chat: ChatFormat, plans: dict[str, list[list[int]]], num_slots: int) -> None:
        super().__init__(
            model, num_slots=num_slots, max_length=AGENT.max_context_tokens, end_ids=chat.end_ids, threads=1
        )
        self._chat, self._plans = chat, plans
        self._left: dict[int, Iterator[list[int]]] = {}
        self._script: dict[int, list[int]] = {}

    def submit(self, slot: int, ids: Any, *, fresh: bool, **more: Any) -> None:
        super().submit(slot, ids, fresh=fresh, **more)
        if fresh:
            questions = _QUESTION.findall(self._chat.decode(ids))
            self._left[slot] = iter(self._plans[questions[-1]])
        self._script[id(self._slots[slot])] = next(self._left[slot])

    def _sample(self, logits: Tensor, states: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
        super()._sample(logits, states)  # what drawing costs
        ids = torch.tensor([self._script[id(state)][len(state.ids)] for state in states])
        logprobs = torch.log_softmax(logits.float(), -1)
        return ids, logprobs.gather(-1, ids[:, None])[:, 0], torch.zeros(len(states))


@dataclass(slots=True)
class Waits:
    """Seconds of each request, as its program sees them, and of the world's steps: from a reply to the next request."""

    requests: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)


WAITS = Waits()


class TimedProgram(ProgramEnv):
    def step(self, action: str) -> tuple[str, float, bool, bool, Any]:
        began = time.perf_counter()
        found = super().step(action)
        WAITS.steps.append(time.perf_counter() - began)
        return found


@contextmanager
def posting(model: Model) -> Iterator[Callable[[bytes], Any]]:
    """The standard library's client, one connection for a program."""
    link = HTTPConnection(urlsplit(model.base_url).netloc)
    headers = {"Authorization": f"Bearer {model.api_key}", "Content-Type": "application/json"}

    def post(body: bytes) -> Any:
        link.request("POST", "/v1/chat/completions", body, headers)
        return json.load(link.getresponse())["choices"][0]["message"]

    try:
        yield post
    finally:
        link.close()


class Opened:
    """An episode of the world, as a program plays it."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.env = FilesEnv(split="train")
        _, info = self.env.reset(seed=0, options={"split": "train", "task": task["index"]})
        self.tools, self.messages = info["tools"], list(info["messages"])
        self.reward, self.is_over = 0.0, False

    def take(self, message: dict[str, Any]) -> None:
        """Do what a message of the assistant says."""
        calls = message.get("tool_calls") or []
        made = [Call(each["function"]["name"], json.loads(each["function"]["arguments"])) for each in calls]
        _, reward, terminated, truncated, info = self.env.step(said(message["content"] or "", made))
        self.reward, self.is_over = self.reward + reward, terminated or truncated
        self.messages.append(message)
        for asked, result in zip(calls, info.get("messages", ()), strict=False):
            self.messages.append({"role": "tool", "tool_call_id": asked["id"], "content": result["content"]})


def plain(task: dict[str, Any], model: Model) -> float:
    """A program with the standard library alone."""
    opened = Opened(task)
    with posting(model) as post:
        while not opened.is_over:
            asked = {"model": model.name, "messages": opened.messages, "tools": opened.tools}
            began = time.perf_counter()
            message = post(json.dumps(asked).encode())
            WAITS.requests.append(time.perf_counter() - began)
            opened.take(message)
    return opened.reward


SHARED: list[Any] = []


def _import_openai() -> None:
    """Make the client that all episodes share: its import takes seconds, in which no other program could go on."""
    from openai import AsyncOpenAI

    SHARED.append(AsyncOpenAI(base_url="http://127.0.0.1", api_key="-"))


async def shared_client(task: dict[str, Any], model: Model) -> float:
    """The same with OpenAI's client, whose connections are shared."""
    client, opened = SHARED[0].with_options(base_url=model.base_url, api_key=model.api_key), Opened(task)
    while not opened.is_over:
        began = time.perf_counter()
        answer = await client.chat.completions.create(model=model.name, messages=opened.messages, tools=opened.tools)
        WAITS.requests.append(time.perf_counter() - began)
        opened.take(
            answer.choices[0].message.model_dump(exclude_none=True) | {"content": answer.choices[0].message.content}
        )
    return opened.reward


@dataclass(frozen=True, slots=True)
class Side:
    """Who asks, and how many of its episodes have a slot. ``program`` "": the world itself."""

    name: str
    program: str
    slots: int
    threads: int
    order: Order = "fixed"
    waiting_share: float = 0.5


def sides(sessions: int, programs: list[str]) -> list[Side]:
    found = [Side("native", "", sessions, 0)]
    for name in programs:
        found.append(Side(f"{name}, fixed", name, sessions, sessions))
        found.append(Side(f"{name}, fixed, an eighth waits", name, sessions, sessions, waiting_share=1 / 8))
        found.append(Side(f"{name}, free", name, sessions, sessions, "free"))
    return found


class Setting:
    """A model, its chat and what it is to say."""

    def __init__(self, model: str | None, size: int) -> None:
        self.env = FilesEnv(split="train")
        self.tasks, plans = list[Task](), dict[str, list[str]]()
        for task in panel(self.env, "train")[:NUM_TASKS]:
            self.env.reset(seed=0, options={"split": "train", "task": task.index})
            asked = self.env.problem.question
            if asked not in plans:  # a question says which plan is meant
                self.tasks.append(task)
                plans[asked] = self.env.plan(self.env.problem, looks=True)
        self.rows = [{"index": task.index} for task in self.tasks]
        if model is None:
            told = [str(list(plans)), json.dumps(self.env.reset(seed=0)[1]["tools"])]
            told += [action for plan in plans.values() for action in plan]
            config = sized(size).model_copy(update={"tools": True})
            tokenizer, self.agent = train_tokenizer(told, config.vocab_size, tools=True), AGENT
            self.model = new_model(config, tokenizer, seed=0)
        else:
            policy = Policy.load(model, lora=LoRAConfig(rank=16), dtype="float32")
            tokenizer, self.model = policy.tokenizer, policy.sampler
            self.agent = AGENT.model_copy(update={"tools_in": "system"})
        self.chat = ChatFormat.of(tokenizer, self.agent, end_ids(self.model))
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.plans = {
            asked: [[*self.chat.within(self.chat.dialect.write(heard(action))), self.chat.end_id] for action in plan]
            for asked, plan in plans.items()
        }

    def played(self, side: Side, episodes: int) -> tuple[dict[str, float], list[Trajectory]]:
        """Collect ``episodes`` after a few to warm up: process and wall time of a turn, in ms."""
        made: Callable[[], TextEnv] = FilesEnv if not side.program else lambda: self.program(side.program)
        engine = Dictated(self.model, self.chat, self.plans, side.slots)
        threads = WorldThreads(side.threads, side.order, waiting_share=side.waiting_share)
        collector = Collector(made, ModelAgent(engine, self.chat, self.agent), threads=threads)
        env = made()
        tasks = panel(env, "train") if side.program else self.tasks
        jobs = jobs_for(tasks[: episodes // 4], 4, key=0)
        sampling = Sampling(max_tokens=self.agent.max_reply_tokens)
        collector.collect(jobs[:4], sampling)
        WAITS.requests.clear(), WAITS.steps.clear()
        steps, tokens = engine.counts.steps, engine.counts.sampled_tokens
        wall, cpu = time.perf_counter(), time.process_time()
        found = collector.collect(jobs, sampling)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        collector.close()
        env.close()
        turns, sampled = sum(len(each.turns) for each in found), engine.counts.sampled_tokens - tokens
        cost = {"cpu_ms": 1000 * cpu / turns, "wall_ms": 1000 * wall / turns, "turns": turns, "tokens": sampled}
        cost["at_once"] = sampled / (engine.counts.steps - steps)
        for name in ("requests", "steps") if side.program else ():
            waits = getattr(WAITS, name)
            cost |= {f"{name}_{p}_ms": 1000 * float(np.quantile(waits, q)) for p, q in (("p50", 0.5), ("p95", 0.95))}
        return cost, found

    def program(self, name: str) -> ProgramEnv:
        return TimedProgram(f"{__name__}:{name}", {"train": self.rows})


def tokens_of(trajectories: list[Trajectory]) -> list[tuple[int, ...]]:
    """All tokens of each episode, prompts and replies, in an order of their own."""
    return sorted(
        tuple(np.concatenate([part for turn in each.turns for part in (turn.prompt_ids, turn.action_ids)]).tolist())
        for each in trajectories
    )


def compared(setting: Setting, sides: list[Side], episodes: int, repeats: int) -> dict[str, Any]:
    """Every side's least cost, and its ratio to that of the first. Raises RuntimeError where episodes differ."""
    costs: dict[str, dict[str, float]] = {}
    expected: list[tuple[int, ...]] | None = None
    for _ in range(repeats):
        for side in sides:
            cost, found = setting.played(side, episodes)
            expected = expected or tokens_of(found)
            if tokens_of(found) != expected or not all(each.success or each.total_reward == 1 for each in found):
                raise RuntimeError(f"{side.name} played other episodes than the world")
            print(f"  {side.name:<32}" + "  ".join(f"{key} {value:.2f}" for key, value in cost.items()), flush=True)
            if side.name not in costs or cost["cpu_ms"] < costs[side.name]["cpu_ms"]:
                costs[side.name] = cost
    native = costs[sides[0].name]["cpu_ms"]
    return {name: {**cost, "ratio": cost["cpu_ms"] / native} for name, cost in costs.items()}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--model", help="folder of a model, in float32")
    asked.add_argument("--size", type=int, default=256, help="width of a model from nothing")
    asked.add_argument("--sessions", type=int, default=16, help="episodes at once")
    asked.add_argument("--episodes", type=int, default=64)
    asked.add_argument("--clients", nargs="*", default=["plain", "shared_client"], help="shared_client: OpenAI's")
    asked.add_argument("--only", nargs="*", default=[""], help="sides whose names contain one of these, and the world")
    asked.add_argument("--repeats", type=int, default=2)
    asked.add_argument("--out", type=Path, help="JSON file, to whose list of runs these figures are added")
    given = asked.parse_args()
    torch.set_num_threads(1)
    clients = [name for name in given.clients if name != "shared_client" or find_spec("openai")]
    if "shared_client" in clients:
        _import_openai()
    made = {key: provenance()[key] for key in ("commit", "versions", "python")}  # of what runs, also where HEAD moves
    setting = Setting(given.model, given.size)
    print(f"{setting.parameters / 1e6:.1f} M parameters, {given.sessions} sessions, {given.episodes} episodes")
    native, *others = sides(given.sessions, clients)
    chosen = [native, *(side for side in others if any(text in side.name for text in given.only))]
    found = compared(setting, chosen, given.episodes, given.repeats)
    for name, cost in found.items():
        print(f"  {name:<32}ratio {cost['ratio']:.3f}")
    if given.out is not None:
        known = json.loads(given.out.read_text()) if given.out.exists() else {"runs": []}
        about = {"sessions": given.sessions, "episodes": given.episodes, "sides": found}
        known["runs"].append({"parameters": setting.parameters, **made, **about})
        given.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
