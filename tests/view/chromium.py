"""A headless Chromium, driven through its own DevTools protocol: no driver program beside the browser itself."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
    "--hide-scrollbars",
)
BINARIES = ("chromium", "chromium-browser", "google-chrome")
_KEYS = {"ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "ArrowRight": 39, "Escape": 27, "Enter": 13}


def find_chromium() -> str | None:
    return next((found for name in BINARIES if (found := shutil.which(name))), None)


class Tab:
    """A page. ``errors`` are what its console, its scripts and its security policy complained about."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.errors = socket, list[str]()
        self._ids = itertools.count(1)
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        number = next(self._ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=180))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        if "method" not in message:
            return  # the answer to a call that was given up
        method, parameters = message["method"], message["params"]
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.errors.append(json.dumps(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(json.dumps(parameters["entry"]))

    def run(self, script: str) -> Any:
        """The value of an expression, awaited where it is a promise."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str, seconds: float = 30.0) -> None:
        """Wait in the page, frame by frame, until an expression is true."""
        milliseconds = int(1000 * seconds)
        found = self.run(
            f"new Promise((done) => {{ const end = Date.now() + {milliseconds};"
            f"const look = () => {{ let found = false; try {{ found = Boolean({condition}); }} catch {{ }}"
            "if (found || Date.now() > end) done(found); else setTimeout(look, 20); }; look(); })"
        )
        assert found, f"never true: {condition}; errors: {self.errors}"

    def open(self, url: str, place: str = "") -> None:
        """``place`` is what stands behind the ``#``; the page is always loaded anew."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=f"{url}#{place}")
        self.until("document.readyState === 'complete' && document.body.dataset.tab")

    def key(self, *names: str) -> None:
        """Press keys as a keyboard does."""
        for name in names:
            code = _KEYS.get(name)
            text = {} if code else {"text": name}
            self.send(
                "Input.dispatchKeyEvent", type="keyDown", key=name, windowsVirtualKeyCode=code or ord(name), **text
            )
            self.send("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code or ord(name))

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium(profile: Path, binary: str) -> Iterator[Tab]:
    """A browser with a fresh profile and one tab; it ends with the block."""
    from websockets.sync.client import connect

    process = subprocess.Popen(
        [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with connect(_address(process, profile), max_size=None) as browser:
            opened = Tab.__new__(Tab)
            opened.socket, opened.errors, opened._ids = browser, [], itertools.count(1)
            target = opened.send("Target.createTarget", url="about:blank")["targetId"]
            base = browser.remote_address
        with connect(f"ws://{base[0]}:{base[1]}/devtools/page/{target}", max_size=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _address(process: subprocess.Popen[bytes], profile: Path) -> str:
    """The browser writes its port and path into its profile."""
    file = profile / "DevToolsActivePort"
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert process.poll() is None, f"the browser ended with exit code {process.returncode}"
        lines = file.read_text().split() if file.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise AssertionError("the browser did not open its DevTools port within a minute")
