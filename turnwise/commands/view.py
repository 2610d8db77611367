"""``turnwise view``: runs shown in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def view(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option("--out", help="The file; default: view.html in the first run.")] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page on 127.0.0.1 instead, anew as runs go on.")
    ] = False,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="With --serve: 8080; 0: any free one.")] = None,
    trajectories: Annotated[int, typer.Option(min=1, help="About how many of each run are in the page.")] = 10_000,
) -> None:
    """One HTML file that shows runs: curves, events, evaluations, every trajectory token by token. Works offline.

    [dim]turnwise view runs/a runs/b --out both.html[/dim]
    """
    from turnwise.view.page import write_view
    from turnwise.view.serve import Page
    from turnwise.view.serve import serve as run_server

    if serve and out is not None:
        raise ValueError("--serve writes no file: leave --out out, or write the file and open it in a browser")
    if port is not None and not serve:
        raise ValueError("--port belongs to --serve")
    if serve:

        def announce(url: str) -> None:
            console.print(f"serving {url}; stop with Ctrl-C", highlight=False)

        run_server(Page(runs, trajectories), 8080 if port is None else port, announce)
        return
    target = out or runs[0] / "view.html"
    with Console(stderr=True).status("reading"):
        write_view(runs, target, trajectories)
    console.print(f"{target} ({target.stat().st_size / 1e6:.1f} MB): open it in a browser", highlight=False)
