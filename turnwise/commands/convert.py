"""``turnwise convert``: a GGUF file as an ordinary model folder. Heavy imports wait until the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.console import Console

from turnwise.commands.bench import quiet
from turnwise.models.settings import DType

console = Console()


def convert(
    model: Annotated[str, typer.Argument(help="A GGUF file, or the short name of a model, such as smollm2.")],
    to: Annotated[Path | None, typer.Option("--to", help="New folder; default: the cache, where runs look.")] = None,
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float32, or auto: what runs on this machine's processor take.")
    ] = "auto",
) -> None:
    """Write a GGUF file as a Hugging Face folder.

    `model.path=FILE.gguf` does the same by itself, once, in the cache.
    """
    if dtype not in get_args(DType):
        raise ValueError(f"--dtype {dtype!r}: expected auto, bfloat16 or float32")
    from turnwise.models.convert import NAMED, converted, gguf_of
    from turnwise.models.convert import convert as write
    from turnwise.models.precision import chosen_dtype

    quiet()
    file = gguf_of(model)
    if file is None:
        raise ValueError(f"{model!r} is not a GGUF file: expected a path that ends in .gguf, or {', '.join(NAMED)}")
    if to is not None and to.exists():
        raise ValueError(f"{to} exists: give the name of a new folder")
    kind = chosen_dtype(cast(DType, dtype), "cpu")
    if to is None:
        to = converted(file, kind)
    else:
        write(file, to, kind)
    console.print(f"model: {to}", highlight=False, markup=False, soft_wrap=True)
