"""The page as a file: what may run in it, what is packed, who may read it when it is served."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.view.runs import EVIL, attempt, make_run, task
from turnwise import cli
from turnwise.runs.directory import RunDirectory
from turnwise.view.page import SCRIPTS, plotly_script, render
from turnwise.view.serve import Page, make_server


class Scripts(HTMLParser):
    """The scripts of a page: (type, text) of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str | None, str]] = []
        self.policy = ""
        self.outside: list[str] = []
        self._kind: str | None = None
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.outside += [value or "" for name, value in attrs if name in ("src", "href")]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        self._inside, self._kind = tag == "script", given.get("type")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found.append((self._kind, data))

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    played = [[attempt(u, task(u), s, s == 0, EVIL) for s in (0, 1)] for u in range(2)]
    return make_run(tmp_path_factory.mktemp("view") / f"<b>{'run'}", played)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return render([run])


def test_only_our_scripts_may_run(page: str) -> None:
    scripts = Scripts(page)
    ours = [text for kind, text in scripts.found if kind is None]
    assert len(ours) == len(SCRIPTS)
    for text in (*ours, plotly_script()):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in scripts.policy
    (allowed,) = re.findall(r"script-src ([^;]*)", scripts.policy)
    assert allowed.count("'sha256-") == len(allowed.split()) == len(SCRIPTS) + 1  # and nothing else, such as eval
    assert "default-src 'none'" in scripts.policy


def test_nothing_comes_from_outside(page: str) -> None:
    assert Scripts(page).outside == []


def test_text_of_a_run_is_packed_or_escaped(page: str) -> None:
    scripts = Scripts(page)
    assert "hacked" not in page
    assert "<title>&lt;b&gt;run · turnwise</title>" in page
    assert all(re.fullmatch(r"[A-Za-z0-9+/=]*", text) for kind, text in scripts.found if kind == "text/plain")


def test_the_same_run_gives_the_same_page(run: Path, page: str) -> None:
    assert render([run]) == page


def test_without_plotly_the_command_to_install_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[view\]"'):
        render([run])


# --- served ---


@contextmanager
def serving(page: Page) -> Iterator[ThreadingHTTPServer]:
    server = make_server(page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(server: ThreadingHTTPServer, path: str = "/", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_it_is_served_to_this_machine_alone_and_follows_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [[attempt(0, task(0), s, s == 0) for s in (0, 1)]])
    with serving(Page([run], 100)) as server:
        assert server.server_address[0] == "127.0.0.1"
        status, first = ask(server)
        assert (status, first.decode()) == (200, render([run], 100))
        assert ask(server)[1] == first
        assert ask(server, "/etc/passwd")[0] == 404
        assert ask(server, Host=f"evil.example:{server.server_port}")[0] == 403
        RunDirectory.open(run).log({"update": 1, "success": 1.0, "seconds": {"collect": 1.0}})
        assert ask(server)[1] != first
        (run / "config.yaml").write_text("algorithm: nosuch")
        status, answer = ask(server)
        assert status == 500
        assert b"nosuch" in answer


# --- command ---


def command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["turnwise", "view", *words])
    cli.main()


def test_the_command_writes_a_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "page.html"
    with pytest.raises(SystemExit) as ended:
        command([str(run), "--out", str(target), "--trajectories", "2"], monkeypatch)
    assert not ended.value.code
    assert target.read_text() == render([run], 2)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no run at nowhere"),
        (["nowhere", "--serve", "--out", "x.html"], "--serve writes no file"),
        (["nowhere", "--port", "9000"], "--port belongs to --serve"),
    ],
)
def test_mistakes_are_one_message(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(words, monkeypatch)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
