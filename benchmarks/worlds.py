"""Every world in one table: speed, resets, memory, what its expert and a random agent reach. One process a world.

    python benchmarks/worlds.py                     all worlds
    python benchmarks/worlds.py turnwise/Wordle-v0  some of them
    python benchmarks/worlds.py --json              one JSON line a world

Times are CPU seconds of the process; memory is the peak of the process and of what it started. Worlds whose package
or data is missing say so in their row.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """What is measured: the panel for the agents, and how many tasks of it; games are played against a random agent."""

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    split: str = "test"
    tasks: int = 256
    games: int = 50
    seconds: float = 5.0
    expert: str = "expert"
    samples: int = 1


ENTRIES = [
    Entry("turnwise/Household-v0"),
    Entry("turnwise/ALFWorld-v0", split="valid_unseen", tasks=134),
    Entry("turnwise/WebShop-v0"),
    Entry("turnwise/Search-v0"),
    Entry("turnwise/ScienceWorld-v0", tasks=10, games=4, expert="expert:knowing"),
    Entry("turnwise/TextWorld-v0", tasks=32, games=8, expert="expert:knowing"),
    Entry("turnwise/FrozenLake-v0"),
    Entry("turnwise/Sokoban-v0"),
    Entry("turnwise/Wordle-v0"),
    Entry("turnwise/Mastermind-v0"),
    Entry("turnwise/TicTacToe-v0", samples=8),
    Entry("turnwise/ConnectFour-v0", tasks=32),
    Entry("turnwise/LeducHoldem-v0", samples=4),
    Entry("turnwise/RockPaperScissors-v0", samples=256),
    Entry("turnwise/Negotiation-v0"),
]


def measure(entry: Entry) -> dict[str, Any]:
    """One row; runs in its own process."""
    from turnwise.agents.scripted import scripted
    from turnwise.agents.seating import Seating
    from turnwise.envs.bench import bench
    from turnwise.envs.interface import HasPlayers, capability
    from turnwise.envs.tasks import make_env, maker, panel
    from turnwise.evaluation.playing import evaluate_scripted

    speed = bench(entry.games, entry.seconds, entry.id, split=entry.split, **entry.kwargs)
    env = make_env(entry.id, **entry.kwargs)
    tasks = panel(env, entry.split)[: entry.tasks]
    row: dict[str, Any] = {"id": entry.id, "speed": asdict(speed)}
    others = None if capability(env, HasPlayers) is None else {"": scripted("random")}
    for name in (entry.expert, "random"):
        player = scripted(name)
        assert player is not None
        seating = Seating({"": player}, others)  # type: ignore[arg-type]
        report, _ = evaluate_scripted(maker(entry.id, **entry.kwargs), seating, tasks, name=name, samples=entry.samples)
        row[name.partition(":")[0]] = {
            "success": asdict(report.success) if report.success else None,
            "episodes": sum(map(len, report.outcomes)),
            "turns": report.mean_turns,
            "draws": report.draw_share,
            "score": report.score.value if report.score else None,
        }
    env.close()
    usage = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {**row, "peak_mib": round(usage[0]), "children_peak_mib": round(usage[1])}


def measured(entry: Entry) -> dict[str, Any]:
    """``measure`` in a process of its own; its last line of complaint where it cannot be."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(entry))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"id": entry.id, "error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def line(row: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    if "error" in row:
        return f"| {row['id']} | {row['error']} |"

    def rate(found: dict[str, Any]) -> str:
        success = found["success"]
        if success is None:
            return f"score {found['score']}"
        shown = f"{100 * success['value']:.1f} [{100 * success['low']:.1f}, {100 * success['high']:.1f}]"
        draws = "" if found["draws"] is None else f", draws {100 * found['draws']:.0f}"
        return f"{shown} ({found['episodes']}{draws})"

    speed = row["speed"]
    numbers = f"{speed['steps_per_s']:,.0f} | {speed['load_ms']:.2f} | {speed['reset_ms']:.2f}"
    memory = f"{row['peak_mib']}" + (f" + {row['children_peak_mib']}" if row["children_peak_mib"] > 1 else "")
    agents = f"{rate(row['expert'])} | {row['expert']['turns']:.1f} | {rate(row['random'])}"
    return f"| {row['id'].removeprefix('turnwise/')} | {numbers} | {memory} | {agents} |"


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--one"]:
        print(json.dumps(measure(Entry(**json.loads(words[1])))))
        return
    wanted = [word for word in words if not word.startswith("--")]
    if "--json" not in words:
        print("| world | steps/s | first reset ms | reset ms | peak MiB | expert % (episodes) | turns | random % |")
        print("| --- | ---: | ---: | ---: | ---: | --- | ---: | --- |")
    for entry in ENTRIES:
        if not wanted or entry.id in wanted:
            row = measured(entry)
            print(json.dumps(row) if "--json" in words else line(row), flush=True)


if __name__ == "__main__":
    main()
