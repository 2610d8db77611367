"""``turnwise template``: what a model's chat template can do with tools, tried out. No model is loaded."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turnwise.commands.bench import quiet

console = Console()


def template(
    model: Annotated[str, typer.Argument(help="A model folder, a hub name, a GGUF file, or a run.")],
    show: Annotated[
        bool, typer.Option("--show", help="Print a conversation with tools as the template writes it.")
    ] = False,
) -> None:
    """Tell what a model's chat template can do with tools, calls and results, and which settings it needs."""
    from turnwise.agents.rendering import TRIED, Rendering, abilities_of
    from turnwise.assembly.policies import open_run
    from turnwise.models.loading import load_tokenizer

    quiet()
    run = open_run(model)
    tokenizer = load_tokenizer(run.model_path if run is not None and run.model_path.exists() else model)
    if tokenizer.chat_template is None:
        raise ValueError(f"{model} has no chat template: take a chat (instruct) model")
    usable, end_ids = _chats(tokenizer)
    tried = Rendering.untried(tokenizer, end_ids)
    console.print(_table(model, usable, abilities_of(tried)))
    if show:
        try:
            console.print(Text(tried.text(*TRIED)))
        except ValueError as error:
            console.print(Text(str(error), "red"))


def _table(model: str, usable: str, found: Any) -> Table:
    """What was found, a line for each question, and what follows."""
    lines = {
        "chats (any world)": usable,
        "shows tools": _yes(found.shows_tools),
        "calls are written in": found.dialect or ("a form that turnwise does not know" if found.shows_tools else "-"),
        "several calls a reply": _yes(found.parallel),
        "shows every result": _yes(found.keeps_results),
        "results as they are": _yes(found.verbatim) + ("" if found.verbatim else " (quoted, or not shown)"),
        "text beside a call": _yes(found.keeps_content),
        "thoughts of earlier turns": {True: "kept", False: "dropped (turnwise keeps them)", None: "not shown"}[
            found.keeps_thoughts
        ],
        "for worlds with tools": _advice(found) if usable == "yes" else "it cannot be used",
    }
    table = Table(title=f"The chat template of {model}", title_justify="left", show_header=False)
    for what, answer in lines.items():
        table.add_row(Text(what), Text(answer))
    return table


def _chats(tokenizer: Any) -> tuple[str, Collection[int]]:
    """Whether the template can be used in worlds without tools, and the tokens that may end a reply."""
    from turnwise.agents.chat import ChatFormat

    try:
        return "yes", ChatFormat(tokenizer).end_ids
    except ValueError as error:
        return f"no: {error}", tokenizer.all_special_ids


def _advice(found: Any) -> str:
    settings = "agent.context=roles agent.action_format=calls"
    if not (found.shows_tools and found.keeps_results):
        return f"{settings} agent.tools_in=system: tools, calls and results as text"
    return settings if found.dialect else f"{settings} agent.tool_calls=NAME, or module:Class of your own"


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"
