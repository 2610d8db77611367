"""A teacher: a frozen policy that scores what another one has said.

It may share no weight with the student, and must share its tokenizer: a token's id is all that it is asked about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import Parameter

from turnwise.models.policy import Policy
from turnwise.models.scoring import Scores
from turnwise.replay.batch import TokenBatch


class Teacher:
    """A policy named ``name`` whose weights stay as they are: ``weights`` is their hash when it was made."""

    def __init__(self, name: str, policy: Policy) -> None:
        self.name, self.policy = name, policy
        policy.model.requires_grad_(False)
        self.weights = self._hash()

    @property
    def hidden_size(self) -> int:
        return self.policy.hidden_size

    def parameters(self) -> Iterator[Parameter]:
        """None: nothing of it is trained."""
        return iter(())

    def score(self, batch: TokenBatch, **asked: Any) -> Scores:
        """As of ``Policy``, without gradient."""
        with torch.no_grad():
            return self.policy.score(batch, **asked)

    def as_of(self, version: int) -> AbstractContextManager[None]:
        """As of ``Policy``; every version of it is the same."""
        return nullcontext()

    def changed(self) -> str | None:
        """What has become of its weights since it was made; None: nothing."""
        present = self._hash()
        return (
            None if present == self.weights else f"teacher {self.name}: its weights were {self.weights}, now {present}"
        )

    def _hash(self) -> str:
        """16 hex digits over every weight's bits."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.policy.model.named_parameters()):
            digest.update(f"{name} {torch.hash_tensor(weight.detach()).item()}".encode())
        return digest.hexdigest()[:16]


def check_tokens(other: Any, own: Any, who: str) -> None:
    """Raise ValueError where two tokenizers give a token different ids, or one of them has more tokens.

    ``who`` is what the error calls the model with the ``other`` one.
    """
    theirs, ours = other.get_vocab(), own.get_vocab()
    if theirs == ours:
        return
    odd = sorted(token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token))
    shown = ", ".join(
        f"{token!r} ({theirs.get(token, 'absent')}, here {ours.get(token, 'absent')})" for token in odd[:3]
    )
    raise ValueError(
        f"{who} has another tokenizer than the policy, {len(odd)} tokens differ: {shown}. It is asked about the "
        "policy's tokens by their ids: take a model with the same tokenizer"
    )
