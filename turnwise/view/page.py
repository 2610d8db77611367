"""The HTML file: styles, scripts, and data that the scripts unpack when they need it. It fetches nothing.

A Content-Security-Policy names the hash of every script, so no other script runs, whatever a model wrote; it also
forbids the page to fetch anything. (Styles are not hashed, since plotly adds its own.) The data is gzip in base64,
inside script elements of a type that browsers do not execute.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from turnwise.config.sections import EvalConfig
from turnwise.runs.directory import RunDirectory
from turnwise.view.episodes import pack, read_episodes
from turnwise.view.runs import columns, comparison, describe, evaluation, events, interval, validation

SCRIPTS = ("core.js", "charts.js", "tables.js", "tree.js", "episode.js", "browser.js", "main.js")
"""The scripts of the page, in the order in which they are executed; they share their top-level names."""


def write_view(paths: Sequence[Path], out: Path, limit: int = 10_000) -> None:
    """Write the page of some runs, and make the folder that it is in.

    Raises ValueError for a folder that is no run, and where plotly is missing.
    """
    text = render(paths, limit)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(out)


def render(paths: Sequence[Path], limit: int = 10_000) -> str:
    """The page as text, with about ``limit`` trajectories of each run at most."""
    if not paths:
        raise ValueError("nothing to view: give the folder of at least one run")
    library = plotly_script()
    runs, blocks = [], list[tuple[str, str]]()
    for number, (path, name) in enumerate(zip(paths, _names(paths), strict=True)):
        run, packed = _run(RunDirectory.open(path), name, limit)
        runs.append(run)
        blocks += [(f"block-{number}-{place}", text) for place, text in enumerate(packed)]
    content = {"runs": runs, "comparison": comparison(paths)}
    blocks += [("content", pack(json.dumps(content, allow_nan=False))), ("plotly", _packed(library))]
    return _document(" · ".join(run["name"] for run in runs), blocks, library)


_packed = cache(pack)  # for the library alone: packing its five megabytes takes a third of a second


def plotly_script() -> str:
    """The plotting library as its package ships it. Raises ValueError where it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ValueError(
            'the view draws its charts with plotly, which is not installed: pip install -e ".[view]"'
        ) from None
    return str(get_plotlyjs())


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of the runs: the folders' own names where these differ, else the paths as given."""
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _run(run: RunDirectory, name: str, limit: int) -> tuple[dict[str, Any], list[str]]:
    config, (metrics, missing) = run.config(), run.logged()
    episodes = read_episodes(run, metrics, limit)
    made = {
        **describe(run, name),
        "metrics": columns(metrics),
        "outcomes": [{"update": update, **interval(found)} for update, found in episodes.outcomes.items()],
        "validation": validation(metrics, _validated(config.eval)),
        "events": events(metrics),
        "evaluation": evaluation(run),
        "episodes": episodes.index,
        "notes": [*([f"{missing}: curves and sums are of the rest."] if missing else []), *episodes.notes],
    }
    return made, episodes.blocks


def _validated(measured: EvalConfig) -> int | None:
    """Tasks of a validation where each was tried once, which gives its success an interval; else None."""
    return measured.tasks if measured.samples == 1 else None


def _document(title: str, blocks: Sequence[tuple[str, str]], library: str) -> str:
    scripts = [_source(name) for name in SCRIPTS]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, (*scripts, library)))}",
            "style-src 'unsafe-inline'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    parts = {
        "policy": html.escape(policy, quote=True),
        "title": html.escape(title),
        "style": _source("view.css"),
        "data": "\n".join(f'<script type="text/plain" id="{name}">{text}</script>' for name, text in blocks),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    page = _source("view.html")
    for name, text in parts.items():  # a run's text is in base64 or escaped, so it holds no mark
        page = page.replace(f"<!--{name}-->", text)
    return page


def _source(name: str) -> str:
    return (files("turnwise.view") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
