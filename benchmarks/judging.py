"""Wall time of collecting where a judge takes its time: unjudged, asked one after the other, asked beside generation.

    python benchmarks/judging.py --ms 500

Household, the shipped model untrained, one torch thread, and a server of this machine that answers each request after a
pause. Each way plays the same episodes, one after the other in one process; none knows the verdicts of another.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.jobs import jobs_for
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import ModelAgent
from turnwise.envs.tasks import make_env, panel
from turnwise.grading.grader import Grader
from turnwise.grading.settings import Criterion, GradingConfig, JudgeConfig, Rubric
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.models.scratch import new_model, train_tokenizer
from turnwise.models.settings import ScratchModelConfig

WORLD = "turnwise/Household-v0"
WAYS: dict[str, int | None] = {
    "unjudged": None,
    "one after the other": 0,
    "8 threads": 8,
    "32 threads": 32,
}
"""rewards.threads of each way; None: nobody judges."""
RUBRIC = Rubric(criteria=(Criterion(name="purposeful", text="Every command serves the task."),))
ANSWER = {"verdict": [{"criterion": "purposeful", "reason": "It does not.", "choice": "no"}]}
BODY = json.dumps({"choices": [{"message": {"content": json.dumps(ANSWER)}}]}).encode()


class Server(ThreadingHTTPServer):
    """Answers every request with the same verdict, after ``pause_s``."""

    daemon_threads = True
    request_queue_size = 128
    pause_s = 0.0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.pause_s)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: Any) -> None:
        pass


def grader(url: str, threads: int) -> Grader:
    judge = JudgeConfig(model=f"openai:none@{url}", rubric=RUBRIC)
    return Grader(GradingConfig(judge=judge, threads=threads))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--ms", type=float, default=500.0, help="pause before every verdict")
    asked.add_argument("--episodes", type=int, default=64)
    given = asked.parse_args()
    torch.set_num_threads(1)
    tasks = panel(make_env(WORLD), "train")
    chosen = [tasks[i] for i in range(given.episodes)]
    texts = [make_env(WORLD).reset(seed=i)[0] for i in range(20)]
    tokenizer = train_tokenizer(texts, 600)
    model, chat, agent = new_model(ScratchModelConfig(), tokenizer, seed=0), ChatFormat(tokenizer), AgentConfig()
    server = Server(("127.0.0.1", 0), Handler)
    server.pause_s = given.ms / 1000
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"{given.episodes} episodes, {given.ms:g} ms a verdict, 32 at once\n\n| judged | wall s | CPU s | verdicts |")
    print("| --- | ---: | ---: | ---: |")
    for name, threads in WAYS.items():
        engine = SlotEngine(model, num_slots=32, max_length=agent.max_context_tokens, end_ids=chat.end_ids, threads=1)
        own = None if threads is None else grader(f"http://127.0.0.1:{server.server_port}/v1", threads)
        collector = Collector(lambda: make_env(WORLD), ModelAgent(engine, chat, agent), grader=own)
        wall, cpu = time.perf_counter(), time.process_time()
        collector.collect(jobs_for(chosen, 1, 0), Sampling(max_tokens=8))
        spent = time.perf_counter() - wall, time.process_time() - cpu
        took = own.take_spent()["given"] if own is not None else 0
        print(f"| {name} | {spent[0]:.1f} | {spent[1]:.1f} | {took:g} |", flush=True)
        collector.close()


if __name__ == "__main__":
    main()
