"""What a retriever finds, and how it goes over the wire."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.envs.search.corpus import Document


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that was found; scores compare within one engine only, higher is better."""

    document: Document
    score: float


def as_json(hits: Sequence[Hit], with_scores: bool) -> list[Any]:
    """The hits of one query as /retrieve answers them: {"document", "score"} each, or the document alone."""
    rows = [{"id": hit.document.id, "contents": hit.document.contents} for hit in hits]
    return [{"document": r, "score": h.score} for r, h in zip(rows, hits, strict=True)] if with_scores else rows


def from_json(rows: Any) -> list[Hit]:
    """The hits of one query from either answer. Raises ValueError, saying what was expected, for anything else."""
    if not isinstance(rows, list):
        raise ValueError(f"expected a list of documents for each query, got {json.dumps(rows)[:80]}")
    return [_hit(row) for row in rows]


def _hit(row: Any) -> Hit:
    scored = isinstance(row, dict) and isinstance(row.get("document"), dict)
    found = row["document"] if scored else row
    if not isinstance(found, dict) or not isinstance(found.get("contents"), str):
        forms = '{"id", "contents"}, or {"document": {"id", "contents"}, "score"}'
        raise ValueError(f"expected each document as {forms}, got {json.dumps(row)[:80]}")
    score = row.get("score", 0.0) if scored else 0.0
    if not isinstance(score, int | float):
        raise ValueError(f'expected a number as "score", got {json.dumps(score)[:80]}')
    return Hit(Document(str(found.get("id", "")), found["contents"]), float(score))
