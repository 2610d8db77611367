"""What the endpoint of agent programs costs: seconds of one request, and turns a second beside a native world.

    python benchmarks/gateway.py [--episodes 200] [--clients 1 16]

First the time from a request to its reply where replies are dictated at once, so that nothing but client, server and
world take time. Then whole collections with a tiny model: a world that asks the same two questions itself, a program
that asks them through the endpoint with the standard library alone, and one with OpenAI's client (if installed), which
shares its connections or makes a client for each episode. All in one process, one torch thread.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import gymnasium
import numpy as np
import torch

from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.jobs import jobs_for
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import ModelAgent
from turnwise.agents.worldwork import WorldThreads
from turnwise.envs.interface import AnyText
from turnwise.envs.programs.running import Model
from turnwise.envs.programs.world import ProgramEnv
from turnwise.envs.said import said
from turnwise.envs.tasks import TextEnv, panel
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.models.scratch import new_model, train_tokenizer
from turnwise.models.settings import ScratchModelConfig

AGAIN = "Say it again."
ROWS = [{"question": f"What is in cabinet {number}?"} for number in range(400)]
SIZE = ScratchModelConfig(tools=True)


class Native(gymnasium.Env[str, str]):
    """The same conversation, told by a world."""

    observation_space = action_space = AnyText()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        text = ROWS[(seed or 0) % len(ROWS)]["question"]
        return text, {"messages": [{"role": "user", "content": text}]}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        asked = {"messages": [{"role": "user", "content": AGAIN}], "after": 0}
        return AGAIN, 1.0, self.turn == 2, False, asked


def plain(task: dict[str, Any], model: Model) -> float:
    """With urllib, which makes a connection for each request."""
    messages = [{"role": "user", "content": task["question"]}]
    for _ in range(2):
        body = json.dumps({"model": model.name, "messages": messages}).encode()
        headers = {"Authorization": f"Bearer {model.api_key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{model.base_url}/chat/completions", body, headers)
        with urllib.request.urlopen(request) as answer:
            message = json.load(answer)["choices"][0]["message"]
        messages += [message, {"role": "user", "content": AGAIN}]
    return 1.0


SHARED: list[Any] = []


async def _with_openai(client: Any, task: dict[str, Any], model: Model) -> float:
    messages: list[Any] = [{"role": "user", "content": task["question"]}]
    for _ in range(2):
        answer = await client.chat.completions.create(model=model.name, messages=messages)
        messages += [answer.choices[0].message, {"role": "user", "content": AGAIN}]
    return 1.0


async def shared_client(task: dict[str, Any], model: Model) -> float:
    from openai import AsyncOpenAI

    if not SHARED:
        SHARED.append(AsyncOpenAI(base_url=model.base_url, api_key="-"))
    return await _with_openai(SHARED[0].with_options(base_url=model.base_url, api_key=model.api_key), task, model)


async def own_client(task: dict[str, Any], model: Model) -> float:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=model.base_url, api_key=model.api_key) as client:
        return await _with_openai(client, task, model)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--episodes", type=int, default=200)
    asked.add_argument("--clients", type=int, nargs="*", default=[1, 16])
    given = asked.parse_args()
    torch.set_num_threads(1)
    names = ["plain", *(["shared_client", "own_client"] if find_spec("openai") else [])]
    print("one request, replies dictated at once         p50 ms   p95 ms   CPU ms   requests/s")
    for name in names:
        for clients in given.clients:
            print(f"  {name:<16} {clients:>3} at once {'':>14}{latencies(name, clients, given.episodes)}")
    print("collected with a tiny model                   turns/s  CPU ms a turn")
    print(f"  {'a native world':<42} {collected(Native, 0, given.episodes)}")
    for name in names:
        print(
            f"  {f'{name} through the endpoint':<42} {collected(lambda name=name: program(name), 16, given.episodes)}"
        )


def program(name: str) -> ProgramEnv:
    return ProgramEnv(f"{__name__}:{name}", {"train": ROWS})


def latencies(name: str, clients: int, episodes: int) -> str:
    """From giving a reply to having the next request, which is what a turn costs beside the model."""
    waits: list[float] = []

    def play(env: ProgramEnv, share: int) -> None:
        for number in range(share):
            env.reset(seed=number, options={"split": "train", "task": number % len(ROWS)})
            over = False
            while not over:
                began = time.perf_counter()
                over = env.step(said("hello there"))[2]
                waits.append(time.perf_counter() - began)

    envs = [program(name) for _ in range(clients)]
    for env in envs:
        play(env, 2)  # imports, first connections
    waits.clear()
    wall, cpu = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=play, args=(env, max(2, episodes // clients))) for env in envs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    for env in envs:
        env.close()
    p50, p95 = (1000 * float(np.quantile(waits, share)) for share in (0.5, 0.95))
    return f"{p50:8.2f} {p95:8.2f} {1000 * cpu / len(waits):8.2f} {len(waits) / wall:10.0f}"


def collected(make: Callable[[], TextEnv], threads: int, episodes: int) -> str:
    """Turns a second of whole collections, and the processor time of one."""
    tokenizer = train_tokenizer([row["question"] for row in ROWS], SIZE.vocab_size, tools=True)
    config = AgentConfig(context="roles", action_format="calls", max_reply_tokens=12, max_context_tokens=256)
    chat = ChatFormat.of(tokenizer, config)
    engine = SlotEngine(new_model(SIZE, tokenizer, seed=0), num_slots=32, max_length=256, end_ids=chat.end_ids)
    world = WorldThreads(threads)
    collector = Collector(make, ModelAgent(engine, chat, config), threads=world)
    env = make()
    tasks = panel(env, "train")
    jobs = jobs_for([tasks[number % len(ROWS)] for number in range(max(1, episodes // 4))], 4, key=0)
    collector.collect(jobs[:32], Sampling(max_tokens=12))
    wall, cpu = time.perf_counter(), time.process_time()
    played = collector.collect(jobs, Sampling(max_tokens=12))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    collector.close()
    env.close()
    turns = sum(len(each.turns) for each in played)
    return f"{turns / wall:10.0f} {1000 * cpu / turns:8.2f}"


if __name__ == "__main__":
    main()
