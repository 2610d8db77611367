"""What induction heads at initialisation are worth: teacher-forced probabilities by kind of token, and speed.

    python benchmarks/induction.py household webshop --tokens 300000        some CPU minutes a world and variant
    python benchmarks/induction.py household --seeds 0,1 warmstart.batch_episodes=16
    python benchmarks/induction.py household --speed                        only tokens per CPU second
    python benchmarks/induction.py household --variants before,heads+model.num_heads=2

A model is cloned from a world's expert on so many tokens, in three variants: ``before`` has the heads of 32 that the
shipped shape had, ``without`` has heads of 64 drawn at random, ``heads`` the same with induction heads. Then each token
of the expert's replies in held-out demonstrations without noise gets its probability, given the true tokens before it.
``token`` is the mean over tokens, ``whole`` the mean over places of the probability of all tokens there. One thread.

Results go to ``benchmarks/results/induction.json`` after each clone. A clone that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from turnwise.agents.chat import ChatFormat
from turnwise.assembly.run import Assembly
from turnwise.cloning.cloner import Cloner, clone
from turnwise.cloning.losses import OBSERVATION, CloningRow, Whole
from turnwise.cloning.rounds import Ground
from turnwise.cloning.rows import expert_rows
from turnwise.cloning.warmstart import new_scratch_model
from turnwise.config.files import load_config
from turnwise.models.attention import packed_plan
from turnwise.models.paths import forward_of
from turnwise.models.settings import ScratchModelConfig

RESULTS = Path(__file__).parent / "results" / "induction.json"

_CLONING = ("warmstart.stop_success=null", "warmstart.batch_episodes=5", "warmstart.cooldown_share=0.6")
_LARGE = ("model.head_dim=64", "model.qk_norm=1.7", "model.rope_theta=1e6")
VARIANTS: Mapping[str, Sequence[str]] = {
    "before": ("model.head_dim=32", "model.qk_norm=1", "model.rope_theta=1e4"),
    "without": (*_LARGE, "model.induction_heads=false"),
    "heads": (*_LARGE, "model.induction_heads=true"),
}

_ROOMS = {
    "number taken": r"take [a-z]+ (\d+)",
    "name taken": r"take ([a-z]+)",
    "other number": r"(\d+)",
    "verb": r"^(go to|[a-z]+)",
    "other name": r"([a-z]+)",
}
KINDS: Mapping[str, Mapping[str, str]] = {
    "household": _ROOMS,
    "alfworld": _ROOMS,
    "alfworld-homes": _ROOMS,
    "search": {"what is searched": r"search: (.+)", "answer": r"answer: (.+)", "verb": r"^(\w+)"},
    "webshop": {
        "search": r"search\[(.+)\]",
        "product": r"click\[(b\d+)\]",
        "navigation": r"click\[(buy now|back to search|< prev|next >|description|features|reviews|attributes)\]",
        "option": r"click\[(.+)\]",
        "verb": r"^(\w+)",
    },
}
"""By world: kinds of places in an action, as group 1 of a pattern. A token belongs to the first kind that has it."""


def main(words: Sequence[str] | None = None) -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("worlds", nargs="+", metavar="WORLD", help=f"of {', '.join(KINDS)}; or key.path=value")
    asked.add_argument("--tokens", type=int, default=300_000)
    asked.add_argument("--seeds", default="0")
    asked.add_argument("--variants", default=",".join(VARIANTS))
    asked.add_argument("--held-out", type=int, default=100, help="demonstrations")
    asked.add_argument("--speed", action="store_true")
    asked.add_argument("--results", type=Path, default=RESULTS)
    given = asked.parse_args(words)
    torch.set_num_threads(1)
    settings = [word for word in given.worlds if "=" in word]
    variants = given.variants.split(",")
    for world in (word for word in given.worlds if "=" not in word):
        if given.speed:
            print(world, json.dumps(speed(world, variants, settings)), flush=True)
            continue
        for seed in map(int, given.seeds.split(",")):
            for variant in variants:
                name = " ".join([world, variant, f"seed={seed}", f"tokens={given.tokens}", *settings])
                found = json.loads(given.results.read_text()) if given.results.exists() else {}
                if name not in found:
                    found[name] = cloned(world, variant, seed, given.tokens, settings, given.held_out)
                    given.results.write_text(json.dumps(found, indent=1) + "\n")
                print(name, json.dumps(found[name]), flush=True)


class Subject:
    """A model of one variant before cloning, in its world."""

    def __init__(self, world: str, variant: str, seed: int, tokens: int, settings: Sequence[str]) -> None:
        own = (f"seed={seed}", f"warmstart.max_tokens={tokens}")
        name, *more = variant.split("+")
        self.config = load_config(world, [*own, *_CLONING, *VARIANTS[name], *more, *settings])
        assert isinstance(self.config.model, ScratchModelConfig)
        assert self.config.warmstart is not None
        self.settings, assembly = self.config.warmstart, Assembly(self.config)
        self.world = assembly.world
        self.model, self.tokenizer = new_scratch_model(
            assembly.warmstart.cloning, self.config.model, [Ground(self.world, self.config.env.make)]
        )
        self.chat = ChatFormat.of(self.tokenizer, self.config.agent)

    def rows(self, *, held_out: bool = False) -> Iterator[CloningRow]:
        """Demonstrations of the expert, as cloned; or, ``held_out``, of the split that checkpoints are measured on."""
        settings = self.settings
        if held_out:
            settings = settings.model_copy(update={"split": self.config.eval.split, "noise": 0.0})
        source = expert_rows(self.world, self.chat, self.config.agent, settings, self.config.seed)
        return (row for each in source for row in each)


def cloned(world: str, variant: str, seed: int, tokens: int, settings: Sequence[str], held_out: int) -> dict[str, Any]:
    """Clone, then score held-out demonstrations."""
    subject = Subject(world, variant, seed, tokens, settings)
    panel = list(islice(subject.rows(held_out=True), held_out))
    progress, _ = clone(Whole(subject.model), subject.tokenizer, ([row] for row in subject.rows()), subject.settings)
    return {
        "parameters": sum(weight.numel() for weight in subject.model.parameters()),
        "tokens": progress.tokens,
        "cpu_s": round(progress.cpu_s, 1),
        "loss": round(progress.loss, 4),
        "kinds": by_kind(subject, panel, KINDS[world]),
    }


def by_kind(subject: Subject, rows: Sequence[CloningRow], patterns: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Of each kind of place: the mean probability of its tokens, of whole places, and how many places there are."""
    tokens: dict[str, list[float]] = {}
    wholes: dict[str, list[float]] = {}
    for row in rows:
        found = probabilities(subject.model, row)
        for reply in replies(row):
            for kind, places in kinds_of(subject.tokenizer, row.ids[reply], patterns).items():
                for place in places:
                    own = found[reply][place]
                    tokens.setdefault(kind, []).extend(own)
                    wholes.setdefault(kind, []).append(float(np.prod(own)))
            wholes.setdefault("action", []).append(float(np.prod(found[reply])))
            tokens.setdefault("action", []).extend(found[reply])
    return {
        kind: {"token": round(float(np.mean(tokens[kind])), 4), "whole": round(float(np.mean(own)), 4), "num": len(own)}
        for kind, own in sorted(wholes.items())
    }


@torch.no_grad()
def probabilities(model: Any, row: CloningRow) -> np.ndarray:
    """[T] of each token of a row, given those before it; 1 for the first."""
    forward, ids = forward_of(model), torch.from_numpy(row.ids.astype(np.int64))
    states = forward.states(ids, packed_plan([len(ids)], np.arange(len(ids) - 1), model.device))
    found = forward.logits(states).float().softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return np.concatenate(([1.0], found.double().numpy()))


def replies(row: CloningRow) -> Iterator[slice]:
    """Where the replies of a row stand, each with its end token."""
    edges = np.flatnonzero(np.diff(np.r_[0, (row.kinds != OBSERVATION).astype(int), 0]))
    yield from (slice(begin, end) for begin, end in edges.reshape(-1, 2))


def kinds_of(tokenizer: Any, ids: np.ndarray, patterns: Mapping[str, str]) -> dict[str, list[list[int]]]:
    """The places of each kind in a reply, as lists of tokens' indices; the end token belongs to none."""
    ends = [len(tokenizer.decode(ids[: n + 1])) for n in range(len(ids) - 1)]
    text, taken, found = tokenizer.decode(ids[:-1]), set[int](), dict[str, list[list[int]]]()
    for kind, pattern in patterns.items():
        for match in re.finditer(pattern, text):
            begins = [0, *ends[:-1]]
            own = [n for n, end in enumerate(ends) if begins[n] < match.end(1) and end > match.start(1)]
            if own := [n for n in own if n not in taken]:
                found.setdefault(kind, []).append(own)
                taken.update(own)
    return found


def speed(world: str, variants: Sequence[str], settings: Sequence[str], steps: int = 3) -> dict[str, float]:
    """Tokens per CPU second of each variant's optimizer steps: the best of ``steps`` rounds, the variants in turns."""
    cloners, found = {}, dict.fromkeys(variants, 0.0)
    for variant in variants:
        subject = Subject(world, variant, 0, 1_000_000, settings)
        batch = list(islice(subject.rows(), subject.settings.batch_episodes))
        cloners[variant] = (Cloner(Whole(subject.model), subject.settings), batch)
    for round_ in range(steps + 1):
        for variant, (cloner, batch) in cloners.items():
            began = time.process_time()
            for _ in range(3):
                cloner.step(batch)
            rate = 3 * sum(len(row.ids) for row in batch) / (time.process_time() - began)
            found[variant] = max(found[variant], rate) if round_ else 0.0
    return {variant: round(rate) for variant, rate in found.items()}


if __name__ == "__main__":
    main()
