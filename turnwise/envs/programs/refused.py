"""The one error of the endpoint."""

from __future__ import annotations

from typing import Any


class RefusedError(Exception):
    """A request that is not honoured: an HTTP ``status``, a sentence for the client, and a ``code`` for its program."""

    def __init__(self, status: int, message: str, code: str = "unsupported", field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.field = status, code, field

    def body(self) -> dict[str, Any]:
        """The answer, in the form of the API."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.field, "code": self.code}}
