"""A retrieval server over HTTP: any that speaks Search-R1's POST /retrieve."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from turnwise.envs.search.hits import Hit, from_json

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RemoteRetriever:
    """Asks ``url`` (host alone, or with its path; "/retrieve" is added where there is none).

    What may pass (no connection, no answer within ``timeout_s`` seconds, status 429 or 5xx) is tried ``tries`` times
    with pauses of ``backoff_s`` seconds, doubling; then search raises ConnectionError, naming the URL. An answer of
    another status or form raises ValueError at once: trying again would not help.
    """

    def __init__(self, url: str, timeout_s: float = 10.0, tries: int = 4, backoff_s: float = 0.5) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"A retrieval server is given as http://host:port, got {url!r}.")
        if timeout_s <= 0 or tries < 1 or backoff_s < 0:
            raise ValueError("A retrieval server needs timeout_s > 0, tries >= 1 and backoff_s >= 0.")
        path = parts.path if parts.path.strip("/") else "/retrieve"
        self.url = urllib.parse.urlunsplit(parts._replace(path=path))
        self.timeout_s, self.tries, self.backoff_s = timeout_s, tries, backoff_s

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        body = json.dumps({"queries": list(queries), "topk": topk, "return_scores": True}).encode()
        answer = self._insist(body)
        try:
            result = json.loads(answer)["result"]
            if len(result) != len(queries):
                raise ValueError(f"expected {len(queries)} results, got {len(result)}")
            return [from_json(rows)[:topk] for rows in result]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.url} did not answer as a retrieval server does, with {{'result': [[documents], ...]}}: "
                f"{type(error).__name__}: {error}. It began {answer[:60]!r}. Is this the right URL?"
            ) from error

    def _insist(self, body: bytes) -> bytes:
        reason: Any = None
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.backoff_s * 2 ** (attempt - 1))
            try:
                return self._ask(body)
            except urllib.error.HTTPError as error:
                reason = f"status {error.code} {error.reason}"
                if error.code != 429 and error.code < 500:
                    said = error.read(200).decode(errors="replace")
                    raise ValueError(f"{self.url} refused the search: {reason}. It said: {said}") from error
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
        raise ConnectionError(
            f"No answer from the retrieval server {self.url} in {self.tries} tries (last: {reason}). "
            "Is it running? `turnwise serve-search` starts one."
        )

    def _ask(self, body: bytes) -> bytes:
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with _OPENER.open(request, timeout=self.timeout_s) as response:
            return bytes(response.read())
