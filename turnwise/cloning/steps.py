"""The steps of cloning: gradient, optimizers and rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from turnwise.cloning.losses import Cloned, CloningRow, Scored
from turnwise.cloning.muon import Muon
from turnwise.cloning.settings import WarmstartConfig


class Cloner:
    """Trains a model on cloning rows, with Muon (Jordan et al. 2024) for matrices and AdamW for the rest."""

    def __init__(self, cloned: Cloned, config: WarmstartConfig) -> None:
        self.cloned, self.config = cloned, config
        self._named = [(n, p) for n, p in cloned.model.named_parameters() if p.requires_grad]
        use_muon = config.muon_lr > 0
        matrices = [p for n, p in self._named if use_muon and p.ndim == 2 and "embed" not in n and "lm_head" not in n]
        others = [p for _, p in self._named if all(p is not m for m in matrices)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=config.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)
        ]
        if matrices:
            self.optimizers.append(Muon(matrices, lr=config.muon_lr))
        self._peaks = [group["lr"] for o in self.optimizers for group in o.param_groups]
        self.steps = 0

    def step(self, rows: Sequence[CloningRow], rate: float = 1.0) -> Scored:
        """Take one optimizer step on rows, at this share of the peak rates, in (0, 1]; the warm-up lowers it."""
        share = rate * min(1.0, (self.steps + 1) / max(1, self.config.warmup_steps))
        groups = [group for o in self.optimizers for group in o.param_groups]
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * share
        scored = self.cloned.backward(rows)
        torch.nn.utils.clip_grad_norm_(self.cloned.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return scored

    def state(self) -> dict[str, Tensor]:
        """The weights in training and the optimizers' state, by flat name."""
        made = {f"model.{name}": parameter for name, parameter in self._named}
        for number, optimizer in enumerate(self.optimizers):
            for place, values in optimizer.state_dict()["state"].items():
                made |= {f"optimizer.{number}.{place}.{name}": value for name, value in values.items()}
        return made

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take up what ``state`` gave after so many steps."""
        for name, parameter in self._named:
            parameter.copy_(tensors[f"model.{name}"])
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, place, value = name.split(".")
                states[int(number)].setdefault(int(place), {})[value] = tensor.clone()
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.steps = steps


def cooled(left: float, cooldown: float) -> float:
    """The share of the peak rates where the share ``left`` of the tokens is to come: it falls over the last ones."""
    return left / cooldown if left < cooldown else 1.0
