"""Where a shopper that thinks goes wrong: each line of its thoughts beside the expert's, in its own episodes.

    python benchmarks/webshop_thoughts.py RUN --updates 0:2
    python benchmarks/webshop_thoughts.py RUN --episodes FILE.trajectories.jsonl.gz

RUN tells how its world was made. The episodes are those that it trained on, of which --updates chooses, or those that
``turnwise evaluate`` keeps beside its file. Each is played again, and at every turn the thinking expert says what it
would think and do there. A thought is compared up to the first line that differs; a line that is missing differs.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from turnwise.envs.tasks import make_env
from turnwise.envs.webshop.env import WebShopEnv
from turnwise.envs.webshop.expert import read_page
from turnwise.envs.webshop.thinking import FOLLOWS, ThinkingExpert
from turnwise.runs.directory import RunDirectory
from turnwise.runs.trajectories import Selection, parse_updates, select
from turnwise.trajectory import Trajectory

_THOUGHT = re.compile(r"<think>\n?(.*?)\n?</think>", re.DOTALL)
_FOLLOWS = re.compile(rf", ({'|'.join(FOLLOWS)})$")


def kind(place: str, line: str) -> str:
    """Of a line of the expert's thought: the page it is about, what it compares and what it says."""
    said = _FOLLOWS.sub("", line)
    last = said.split()[-1]
    if said.startswith("["):
        return f"{place}: offer, {said.rsplit(': ', 1)[1].split()[0]}"
    for start, name in (("- ", "word"), ("price", "price")):
        if said.startswith(start):
            return f"{place}: {name}, {last}"
    if last in ("yes", "no"):
        return f"{place}: option, {last}"
    return f"{place}: {said.split()[0]}"


@dataclass
class Comparison:
    """Over some episodes. ``first`` counts (won, kind of the first line with another action behind it)."""

    episodes: int = 0
    lines: Counter[str] = field(default_factory=Counter)
    differing: Counter[str] = field(default_factory=Counter)
    first: Counter[tuple[bool, str]] = field(default_factory=Counter)

    def add(self, env: WebShopEnv, played: Trajectory) -> None:
        """Play the episode's actions again. The env must be made as that of the episode was."""
        observation, info = env.reset(options={"split": played.task.split, "task": played.task.index})
        expert, first = env.expert("thinking"), ""
        assert isinstance(expert, ThinkingExpert)
        expert.begin(observation, info)
        for turn in played.turns:
            place = read_page(observation, info).place
            wanted = expert.act(observation, info)
            wrong = self._compare(place, expert.thought(), turn.reply)
            if turn.action != wanted:
                first = first or wrong or f"{place}: the action alone"
                expert.overrule(turn.action)
            observation, *_, info = env.step(turn.action)
        self.episodes += 1
        self.first[bool(played.success), first or "none"] += 1

    def _compare(self, place: str, thought: str, reply: str) -> str:
        """The kind of the first line that differs; "" for none."""
        found = _THOUGHT.search(reply)
        said = iter(found[1].split("\n") if found else ())
        for line in thought.split("\n"):
            self.lines[kind(place, line)] += 1
            if next(said, None) != line:
                self.differing[kind(place, line)] += 1
                return kind(place, line)
        return ""

    def rows(self) -> Iterator[str]:
        yield f"{'lines of thoughts':28}{'lines':>8}{'differ':>9}"
        yield from (f"{k:28}{num:8}{self.differing[k] / num:9.1%}" for k, num in sorted(self.lines.items()))
        yield f"\n{'first other action':28}{'lost':>8}{'won':>9}     (of {self.episodes} episodes)"
        kinds = sorted({k for _, k in self.first}, key=lambda k: -self.first[False, k])
        yield from (f"{k:28}{self.first[False, k]:8}{self.first[True, k]:9}" for k in kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run in turnwise/WebShop-v0 with warmstart.expert=thinking")
    parser.add_argument("--episodes", help="a FILE.trajectories.jsonl.gz of turnwise evaluate, in place of the run's")
    parser.add_argument("--updates", default="", help="of these updates alone: 7, 40:60 or 40:")
    args = parser.parse_args()
    settings = RunDirectory.open(args.run).config().env
    env = make_env(settings.id, **settings.kwargs).unwrapped
    if not isinstance(env, WebShopEnv):
        parser.error(f"{args.run} is a run in {settings.id}, not in WebShop")
    compared = Comparison()
    for each in select(args.episodes or args.run, Selection(updates=parse_updates(args.updates))):
        compared.add(env, each.trajectory)
    print("\n".join(compared.rows()))


if __name__ == "__main__":
    main()
