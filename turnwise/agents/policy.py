"""The policy: a Hugging Face causal LM with LoRA adapters, seen from two sides.

The *learner's* side is the peft model: ``score`` gives differentiable log-probs and entropies of a TokenBatch.
The *sampler's* side is a plain copy that shares every untouched weight and holds merged weights W + scale * B A
where adapters sit; ``sync`` refreshes it and names the weights by a hash. The reference policy is the same
model with the adapters off.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from turnwise.agents.decoder import Decoder
from turnwise.agents.head import logprob_entropy
from turnwise.agents.loading import DType, load_model, save_model
from turnwise.agents.packing import Sharing, pack


class LoRAConfig(BaseModel):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), by peft."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1, description="rank r of the update B A")
    alpha: float = Field(32.0, gt=0, description="the update is scaled by alpha / r")
    target_modules: str | tuple[str, ...] = Field(
        "all-linear", description="module names, or all-linear: every linear layer but the head"
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probs and entropies [B, T] (nats), zero off the action tokens; column t belongs to token t.

    ``hidden`` [M, h] float32: the states that predict the M action tokens, rows in order.
    """

    logprobs: Tensor
    entropies: Tensor | None
    hidden: Tensor | None = None


class Policy:
    """``lora=None`` trains every weight. Sampling and scoring agree after each ``sync``."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        lora: LoRAConfig | None,
        seed: int = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        if getattr(model, "peft_config", None):
            raise ValueError("the model has PEFT adapters of its own: merge them first (merge_and_unload)")
        self.tokenizer, self.lora = tokenizer, lora
        self.version, self.temperature = 0, 1.0
        self.sharing: Sharing = "auto"  # of equal beginnings: where it pays
        self.sampler = _sharing_copy(model)
        self.sampler.eval()
        self._merged: list[tuple[Any, Any]] = []
        self.model = model if lora is None else self._with_adapters(model, lora, seed)
        self._base = model
        self._decoder = Decoder(model, checkpointing=gradient_checkpointing)
        self.adapter_hash = ""
        self.sync(version=0)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        lora: LoRAConfig | None,
        dtype: DType = "auto",
        device: str = "cpu",
        seed: int = 0,
        gradient_checkpointing: bool = False,
    ) -> Policy:
        """A model folder or hub name. Raises ValueError where it cannot be found or is of an unknown kind."""
        model, tokenizer = load_model(path, dtype=dtype, device=device)
        return cls(model, tokenizer, lora=lora, seed=seed, gradient_checkpointing=gradient_checkpointing)

    def _with_adapters(self, model: Any, lora: LoRAConfig, seed: int) -> Any:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=targets,
            task_type="CAUSAL_LM",
            lora_dropout=0.0,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = get_peft_model(model, config)
        plain = dict(self.sampler.named_modules())
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                target = plain[name]
                target.weight = nn.Parameter(target.weight.detach().clone(), requires_grad=False)
                self._merged.append((layer, target))
        return adapted

    @property
    def device(self) -> torch.device:
        return next(self.sampler.parameters()).device  # type: ignore[no-any-return]

    @property
    def hidden_size(self) -> int:
        """Width of the states that the head reads."""
        return int(self._base.config.hidden_size)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimizer may change."""
        return (p for p in self.model.parameters() if p.requires_grad)

    def trainable_state(self) -> dict[str, Tensor]:
        """The trainable tensors by name, detached, on the CPU."""
        return {n: p.detach().cpu() for n, p in self.model.named_parameters() if p.requires_grad}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of ``trainable_state``; raises ValueError where names or shapes differ."""
        own = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())[:3]
            raise ValueError(f"the checkpoint's tensors do not fit this model and LoRA setting (e.g. {odd})")
        with torch.no_grad():
            for name, parameter in own.items():
                if parameter.shape != state[name].shape:
                    raise ValueError(
                        f"checkpoint tensor {name} has shape {tuple(state[name].shape)}, "
                        f"the model {tuple(parameter.shape)}"
                    )
                parameter.copy_(state[name])

    @torch.no_grad()
    def sync(self, version: int) -> None:
        """Bring the sampler to the learner's present weights and name them."""
        for layer, target in self._merged:
            target.weight.copy_(layer.base_layer.weight + layer.get_delta_weight("default"))
        self.adapter_hash = weights_hash(self.trainable_state())
        self.version = version

    def score(self, batch: Any, *, entropy: bool = False, reference: bool = False, hidden: bool = False) -> Scores:
        """Log-probs (and entropies) of a TokenBatch's action tokens, [B, T]; differentiable under grad mode.

        Logits are divided by ``temperature``, as they were when the tokens were drawn. ``reference`` switches the
        adapters off; it needs LoRA (raises ValueError without).
        """
        if reference and self.lora is None:
            raise ValueError("a reference policy needs LoRA: with full fine-tuning there is no frozen copy")
        mask: Tensor = batch.action_mask.to(self.device)
        packed = pack(batch.tokens, batch.lengths.tolist(), batch.action_mask, self.device, self.sharing)
        with self.model.disable_adapter() if reference else nullcontext():
            states = self._decoder.states(packed.ids, packed.plan).index_select(0, packed.before)
            values, entropies = logprob_entropy(
                states, *self._head(), packed.targets, temperature=self.temperature, entropy=entropy
            )
        empty = values.new_zeros(mask.shape)
        return Scores(
            empty.masked_scatter(mask, packed.to_rows(values)),
            None if entropies is None else empty.masked_scatter(mask, packed.to_rows(entropies)),
            packed.to_rows(states).float() if hidden else None,
        )

    def _head(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, h] and bias [V] of the head, with its adapter where it has one that is on."""
        head = self._base.lm_head
        base = getattr(head, "base_layer", head)
        if base is head or head.disable_adapters:
            return base.weight, base.bias
        return base.weight + head.get_delta_weight("default").to(base.weight.dtype), base.bias

    def save_merged(self, folder: str | Path) -> None:
        """An ordinary Hugging Face folder with the present weights, tokenizer and chat template."""
        save_model(self.sampler, self.tokenizer, folder)

    def save_adapter(self, folder: str | Path) -> None:
        """The peft adapter (safetensors) and the tokenizer. Raises ValueError without LoRA."""
        if self.lora is None:
            raise ValueError("this run trained all weights: there is no adapter, export the merged model")
        self.model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))


def weights_hash(state: dict[str, Tensor]) -> str:
    """16 hexadecimal digits that identify tensors and their names, to the bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sharing_copy(model: Any) -> Any:
    """A copy of the modules over the same memory, without gradients; what the optimizer writes, it reads."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in model.parameters()}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, shared)
