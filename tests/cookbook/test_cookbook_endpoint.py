"""The cookbook's page on endpoints does what it says: every command runs, against a server on this machine."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.chat_server import Response, completion, serving
from turnwise import cli

PAGE = (Path(__file__).parents[2] / "docs" / "cookbook" / "evaluate_endpoint.md").read_text()
TASKS = "2"  # instead of 64


def commands(url: str) -> list[list[str]]:
    blocks = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    lines = blocks.replace("http://127.0.0.1:8000/v1", url).replace("--tasks 64", f"--tasks {TASKS}").splitlines()
    return [words[1:] for line in lines if (words := shlex.split(line))[0] == "turnwise"]


def looking(body: dict[str, Any]) -> Response:
    return completion("<think>What is here?</think><action>look</action>" if body["max_tokens"] == 512 else "look")


def test_every_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TURNWISE_API_KEY", "sk-cookbook-secret")
    monkeypatch.setattr("turnwise.commands.measuring.console", Console(width=200))
    with serving(looking) as server:
        for words in commands(server.url):
            monkeypatch.setattr(sys, "argv", ["turnwise", *words])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert ended.value.code in (0, None), capsys.readouterr().err
        first, last = server.asked[0].body, server.asked[-1].body
    shown = capsys.readouterr().out
    assert "cost 0." in shown
    assert "difference to random" in shown
    assert (first["max_tokens"], last["max_tokens"], last["temperature"]) == (256, 512, 0.7)
    assert "go to" in first["messages"][0]["content"], "the rules and the admissible actions are told"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert not [path for path in files if b"sk-cookbook-secret" in path.read_bytes()]
