"""``turnwise bench``: how fast worlds, rollouts and updates are on this machine.

The tables show a floor as well, the rate that the machine could reach. Heavy imports wait until a command runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from turnwise.commands import worlds
from turnwise.commands.worlds import print_numbers

if TYPE_CHECKING:
    from turnwise.bench.own import OwnBench
    from turnwise.models.settings import DType

app = typer.Typer(help="Measure this machine: worlds, rollouts, updates.", no_args_is_help=True)
app.command("env")(worlds.bench_env)

console = Console()

TargetArg = Annotated[
    list[str] | None,
    typer.Argument(help="A run, a model folder or hub name, or a configuration; then key.path=value settings."),
]
EnvOption = Annotated[str | None, typer.Option("--env", help="gymnasium id, or module:ns/Id-v0 for your own.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

ROLLOUT, UPDATE = ("environment", "prefill", "decode"), ("score", "train")


@app.command("rollout")
def rollout(
    target: TargetArg = None,
    env: EnvOption = None,
    against: Annotated[
        str, typer.Option(help="generate: re-prefilling with transformers' generate(); vllm: vLLM in this process.")
    ] = "generate",
    episodes: Annotated[int, typer.Option(min=1, help="Against vLLM: how many, all of them at once.")] = 16,
    short: Annotated[bool, typer.Option(help="Without a target: also measure 6-12 turns (without a bar).")] = True,
    as_json: JsonOption = False,
) -> None:
    """Rollouts: the engine's time against calling ``generate()`` every turn, and against the floor of this machine.

    Without a target it plays scripted episodes with a model of 5 M parameters on one thread; with one, your own.
    Against vLLM a target is a model's folder or hub name; model.dtype, lora and rollout.vllm may follow.
    """
    from dataclasses import asdict

    from turnwise.bench.rollout import bench_rollout as run_bench

    if against == "vllm":
        _against_vllm(list(target or []), episodes, as_json)
        return
    if against != "generate":
        raise ValueError(f"--against {against!r}: expected generate or vllm")
    if target or env:
        _own(target, env, ROLLOUT, as_json)
        return
    quiet()
    result = run_bench()
    numbers = {**asdict(result), "ratio": result.ratio}
    if short:
        numbers["ratio_6_12_turns"] = run_bench(num_episodes=16, turns=(6, 12)).ratio
    print_numbers(console, numbers, as_json)


def _against_vllm(words: list[str], episodes: int, as_json: bool) -> None:
    from dataclasses import asdict

    from turnwise.bench.against_vllm import bench_vllm
    from turnwise.config.files import load_config
    from turnwise.config.overrides import beside

    model = words.pop(0) if words and "=" not in words[0] else None
    if model:
        words = ["model={}", "warmstart=null", *beside([f"model.path={model}"], words, by="name")]
    config = load_config("household", ["lora=null", "rollout.backend=vllm", *words])
    quiet()
    dtype: DType = getattr(config.model, "dtype", "float32")
    given: dict[str, Any] = {
        "lora": config.lora,
        "settings": config.rollout.vllm,
        "num_episodes": episodes,
        "at_once": episodes,
    }
    found = bench_vllm(model, dtype=dtype, **given)
    print_numbers(console, {**asdict(found), "ratio": found.ratio}, as_json)


@app.command("update")
def update(target: TargetArg = None, env: EnvOption = None, as_json: JsonOption = False) -> None:
    """Learning: scoring and training in one update of your run, model or configuration (default: household)."""
    _own(target, env, UPDATE, as_json)


@app.command("all")
def everything(target: TargetArg = None, env: EnvOption = None, as_json: JsonOption = False) -> None:
    """One whole update of your run, model or configuration (default: household): where its time goes."""
    _own(target, env, (*ROLLOUT, *UPDATE, "other"), as_json)


def _own(target: list[str] | None, env: str | None, shown: tuple[str, ...], as_json: bool) -> None:
    import json

    from turnwise.bench.own import own_bench
    from turnwise.config.files import config_for_env

    words = list(target or [])
    default = config_for_env(env) if env else "household"
    name = words.pop(0) if words and "=" not in words[0] else default
    quiet()
    found = own_bench(name, words, env=env, num_generate=16 if "decode" in shown else 0)
    if as_json:
        typer.echo(json.dumps(found.plain()))
    else:
        console.print(_table(found, shown))
        for line in _below(found):
            console.print(line, highlight=False)


def _table(found: OwnBench, shown: tuple[str, ...]) -> Table:
    table = Table(title=f"{found.env}: one update of {found.episodes} episodes", title_justify="left")
    table.add_column("")
    for name in ("seconds", "share", "tokens", "tokens/s", "floor tokens/s", "of the floor"):
        table.add_column(name, justify="right")
    for stage in found.stages:
        if stage.name in shown:
            rate, floor = stage.rate, stage.floor_rate
            numbers = [f"{rate:,.0f}" if rate else "", f"{floor:,.0f}" if floor else ""]
            reached = f"{100 * rate / floor:.1f} %" if rate and floor else ""
            tokens = f"{stage.tokens:,}" if stage.tokens else ""
            table.add_row(stage.name, f"{stage.seconds:.3f}", f"{100 * stage.share:.1f} %", tokens, *numbers, reached)
    return table


def _below(found: OwnBench) -> list[str]:
    machine = found.machine
    lines = [
        f"{found.parameters:,} parameters; weights are read at {machine.bandwidth / 1e9:.1f} GB/s, "
        f"matrix products run at {machine.matmul_rate / 1e9:,.0f} GFLOP/s; environment: steps, not tokens"
    ]
    if found.generate_ratio is not None:
        lines.append(
            f"generate() every turn, on some of these episodes: {found.generate_ratio:.2f} times the engine's time"
        )
    return lines


def quiet() -> None:
    """Switch off the loading bars of transformers, but not its warnings."""
    from turnwise.models.loading import without_bars

    without_bars()
