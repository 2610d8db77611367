"""Serving the page over HTTP to this machine alone; it is made again when a run has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from turnwise.view.page import render

HOST = "127.0.0.1"


class Page:
    """The page of some runs, made again when one of their files has changed."""

    def __init__(self, paths: Sequence[Path], limit: int) -> None:
        self.paths, self.limit = paths, limit
        self._lock = Lock()
        self._seen: list[tuple[Path, int]] = []
        self._bytes = b""

    def read(self) -> bytes:
        """The page as it is now, in UTF-8."""
        with self._lock:
            files = (file for path in self.paths for file in sorted(path.iterdir()) if file.is_file())
            seen = [(file, file.stat().st_mtime_ns) for file in files]
            if seen != self._seen:
                self._bytes, self._seen = render(self.paths, self.limit).encode(), seen
            return self._bytes


def make_server(page: Page, port: int = 0) -> ThreadingHTTPServer:
    """A server of one page on the loopback address; port 0 takes a free one.

    Requests under another host name are refused, so that no other site can read the page by DNS rebinding.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (HOST, "localhost"):
                self.send_error(403, f"This page is served to {HOST} alone")
            elif self.path != "/":
                self.send_error(404)
            else:
                self._answer()

        def _answer(self) -> None:
            try:
                content = page.read()
            except (ValueError, OSError) as error:
                self.send_error(500, "This run cannot be read", str(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Silent: the library does not print."""

    return ThreadingHTTPServer((HOST, port), Handler)


def serve(page: Page, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until interrupted. ``on_ready`` is called with the address once the first page is made."""
    page.read()
    with make_server(page, port) as server:
        on_ready(f"http://{HOST}:{server.server_port}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
