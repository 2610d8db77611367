"""``turnwise template`` tells what a chat template can do, and with which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.agents.test_rendering import HERMES, LLAMA, PLAIN
from tests.agents.test_templates import HARMONY, bytes_of
from turnwise.cli import app


def told(own: Any, folder: Path, *more: str) -> str:
    own.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    found = CliRunner().invoke(app, ["template", str(folder), *more], env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.output
    return " ".join(found.output.split())


def test_what_each_template_can_do(tmp_path: Path) -> None:
    hermes = told(bytes_of(HERMES), tmp_path / "hermes", "--show")
    assert "calls are written in │ hermes" in hermes
    assert '"probe_key": "a \\"b\\"\\nc"' in hermes
    llama = told(bytes_of(LLAMA), tmp_path / "llama")
    assert "several calls a reply │ no" in llama
    assert "results as they are │ no (quoted" in llama
    plain = told(bytes_of(PLAIN), tmp_path / "plain", "--show")
    assert "shows tools │ no" in plain
    assert "agent.tools_in=system" in plain
    harmony = told(bytes_of(HARMONY), tmp_path / "harmony")
    assert "chats (any world) │ no: the chat template has" in harmony
    assert "for worlds with tools │ it cannot be used" in harmony


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    bytes_of(None).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    found = CliRunner().invoke(app, ["template", str(tmp_path)])
    assert isinstance(found.exception, ValueError)
    with pytest.raises(ValueError, match="has no chat template"):
        raise found.exception
