"""The policy: a Hugging Face causal LM with LoRA adapters, as learner and as sampler.

The learner is the peft model. ``score`` computes differentiable log-probabilities and entropies of a TokenBatch
(``models/scoring.py``). The sampler is a copy for generation, which shares most of its memory
(``models/sampler_copy.py``). ``sync`` brings it the learner's present weights and computes their hash.

A policy may begin with an adapter (``models/adapters.py``), which is trained on or stays frozen below a new one.

Where several processes learn together, all but one have a policy without a sampler. The frozen weights of the learner
may be divided among them (``divide``); the sampler then has weights of its own.

The reference policy is the policy at its start: the model with the adapter that it began with, or without any. Where
all weights are trained it is a copy (``keep_reference``).
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turnwise.models.adapters import (
    START,
    TRAINED,
    Adapter,
    add_start,
    base_name,
    choose,
    chosen,
    load_start,
    take_over,
    write_adapter,
)
from turnwise.models.freed import give_back
from turnwise.models.kinds import is_fast
from turnwise.models.loading import save_model
from turnwise.models.lora_layers import targets_of
from turnwise.models.merging import MERGED_SHARE, Survival, SurvivalMeter
from turnwise.models.packing import Sharing
from turnwise.models.past import PastWeights, Weights
from turnwise.models.paths import Forward, forward_of
from turnwise.models.reading import Reading
from turnwise.models.sampler_copy import SamplerCopy
from turnwise.models.scoring import Scores, scores_of
from turnwise.models.settings import AdapterUse, DType, LoRAConfig
from turnwise.models.sharding import NOT_DIVIDED, DividedDecoder
from turnwise.models.steering import Shift
from turnwise.models.steering import put as put_shift


class Policy:
    """A model that is trained and sampled from. ``lora=None`` trains every weight.

    Sampler and learner have the same weights after each ``sync``. ``seed`` initialises the adapters. ``start`` is an
    adapter to begin with: ``use`` says whether it is trained on (``lora`` must have its rank, alpha and layers), stays
    frozen below a new one, or is merged into the weights. Without LoRA a policy that begins with an adapter only plays,
    unless it is merged. Without ``samples`` it only learns: ``sampler`` is None, and ``sync`` computes the hash alone.
    Raises ValueError for a model that has PEFT adapters already.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        lora: LoRAConfig | None,
        seed: int = 0,
        gradient_checkpointing: bool = False,
        start: Adapter | None = None,
        use: AdapterUse = "continue",
        samples: bool = True,
    ) -> None:
        if getattr(model, "peft_config", None):
            raise ValueError("the model has PEFT adapters of its own: merge them first (merge_and_unload)")
        self.tokenizer, self.lora = tokenizer, lora
        self.version, self.temperature = 0, 1.0
        self.sharing: Sharing = "auto"  # of common prefixes (packing.py)
        self.shift: Shift | None = None  # of the states after a layer (steering.py)
        if start is not None and use == "merge":
            start.merge_into(model)
            start = None
        self._copy = SamplerCopy(model, samples=samples)
        self._names, self._reference = ([TRAINED] if lora else []), list[str]()
        self.model = model
        if lora is not None:
            self.model = _with_lora(model, lora, seed)
        if start is not None:
            self.model = add_start(self.model, start)
            if lora is not None and use == "continue":
                take_over(self.model, start, lora)
            else:
                self._names = [START, *self._names]
            self._reference = [START]
            if lora is None:
                self.model.requires_grad_(True)  # so that the hash is of all that plays
        choose(self.model, self._names)
        self._copy.adapt(self.model.get_base_model() if self._names else self.model, lora)
        self._base, self._checkpointing = model, gradient_checkpointing
        self._forward = forward_of(model, checkpointing=gradient_checkpointing)
        self._frozen: tuple[Any, Forward] | None = None  # the reference policy, where all weights are trained
        self.adapter_hash = ""
        self._frozen_hash: str | None = None
        self._meter = SurvivalMeter([layer for layer, own in self._copy.layers.values() if own is not None])
        self.survival: Survival | None = None  # how much of the adapters a merge would keep; None in float32
        self.past = PastWeights()
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
        use: AdapterUse = "continue",
    ) -> Policy:
        """The policy of a folder or hub name, of a model or an adapter. Raises ValueError as ``load_start`` does."""
        model, tokenizer, start = load_start(path, dtype=dtype, device=device)
        return cls(
            model,
            tokenizer,
            lora=lora,
            seed=seed,
            gradient_checkpointing=gradient_checkpointing,
            start=start,
            use=use,
        )

    @property
    def sampler(self) -> Any:
        """The model that samples; None where this process only learns."""
        return self._copy.model

    @property
    def device(self) -> torch.device:
        return next(self._base.parameters()).device  # type: ignore[no-any-return]

    @property
    def hidden_size(self) -> int:
        """The width h of the hidden states."""
        return int(self._base.config.hidden_size)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters."""
        return (p for p in self.model.parameters() if p.requires_grad)

    def trainable_state(self) -> dict[str, Tensor]:
        """The trainable tensors by name, detached and on the CPU."""
        return {n: p.detach().cpu() for n, p in self.model.named_parameters() if p.requires_grad}

    def frozen_hash(self) -> str:
        """A hash of the weights that are not trained, computed once: before they are divided among ranks."""
        if self._frozen_hash is None:
            frozen = {n: p.detach().cpu() for n, p in self.model.named_parameters() if not p.requires_grad}
            self._frozen_hash = weights_hash(frozen)
        return self._frozen_hash

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Set the trainable tensors. Raises ValueError where names or shapes differ from the model's."""
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

    def remember(self, num: int) -> None:
        """Hold the weights of the last ``num`` versions from now on, beside the present ones."""
        self.past = PastWeights(num)
        if num:
            self.past.add(self.weights())

    def weights(self) -> Weights:
        """A copy of the trainable tensors, under the hash and the version of the last ``sync``."""
        tensors = {name: tensor.clone() for name, tensor in self.trainable_state().items()}
        return Weights(self.version, self.adapter_hash, tensors)

    @contextmanager
    def as_of(self, version: int) -> Iterator[None]:
        """A context in which the learner has the weights of an earlier version. Sampler and gradients do not change.

        Raises ValueError where they are not held.
        """
        earlier, present = self.past.of(version), self.weights()
        self.load_trainable_state(earlier.tensors)
        try:
            yield
        finally:
            self.load_trainable_state(present.tensors)

    @torch.no_grad()
    def sync(self, version: int) -> None:
        """Bring the learner's present weights to the sampler, and update ``version``, ``adapter_hash``, ``survival``.

        Where the weights are divided among ranks, each of them must call it.
        """
        self._copy.follow(divided=self.is_divided, all_trained=self.lora is None)
        self.survival = self._meter.measure()
        self.adapter_hash = self.hash_of(self.trainable_state())
        if self.sampler is not None:
            self.sampler.weights_hash = self.adapter_hash
        self.version = version
        if self.past.num:
            self.past.add(self.weights())

    def hash_of(self, state: Mapping[str, Tensor]) -> str:
        """The hash of the policy with these trainable tensors, and steered as it is now."""
        return weights_hash({**state, **(self.shift.tensors if self.shift is not None else {})})

    def steer(self, shift: Shift | None) -> None:
        """Add ``shift`` to the states of learner and sampler from now on; None: nothing.

        Whoever asks twice for the same changes nothing. Raises ValueError for a model that it does not fit.
        """
        before = self.hash_of({})
        was, self.shift = self.shift, shift
        if self.hash_of({}) == before:
            return
        try:
            for model in (self._base, self.sampler, None if self._frozen is None else self._frozen[0]):
                if model is not None:
                    put_shift(model, shift)
        except ValueError:
            self.shift = was
            raise
        self.sync(self.version)

    @property
    def is_divided(self) -> bool:
        """Whether the learner's frozen weights are divided among several processes."""
        return isinstance(self._forward, DividedDecoder)

    def divide(self, mesh: Any) -> None:
        """Divide the learner's frozen weights among the ranks of a mesh (``models/sharding.py``); each must call it.

        Raises ValueError where all weights are trained, and for a model that takes the general path.
        """
        if self.lora is None:
            raise ValueError("learner.parallel=fsdp2 divides frozen weights, and lora=null trains all of them: use ddp")
        if not is_fast(self._base.config):
            raise ValueError(NOT_DIVIDED)
        self._meter.keep_rows()
        self._forward = DividedDecoder(self._base, mesh, checkpointing=self._checkpointing)
        self._copy.keep_digests()

    def keep_reference(self) -> None:
        """Keep a frozen copy of the present weights as the reference policy. With LoRA there is one without a copy."""
        if self.lora is None and self._frozen is None:
            frozen = copy.deepcopy(self._base).requires_grad_(False)
            self._frozen = frozen, forward_of(frozen)

    def pack(self) -> None:
        """Have the sampler multiply with packed weights from now on (packed_weights.py). They follow each ``sync``."""
        self._copy.pack()

    def unlike(self) -> str | None:
        """The name of the first layer whose weights in the sampler differ from what ``sync`` would copy; None: none.

        Where the learner's weights are divided among ranks: from what ``sync`` copied.
        """
        return self._copy.unlike()

    def score(
        self,
        batch: Any,
        *,
        entropy: bool = False,
        reference: bool = False,
        hidden: bool = False,
        best: bool = False,
        readings: Sequence[Reading] = (),
    ) -> Scores:
        """Log-probabilities (and entropies) of a TokenBatch's action tokens, [B, T]. Differentiable under grad mode.

        Each token is scored under the distribution that it was sampled from: its logits are divided by ``temperature``,
        or the batch's own, and restricted to the allowed tokens. ``reference`` asks for those of the policy at its
        start; without LoRA it raises ValueError, unless ``keep_reference`` was called there.
        """
        base, forward = self._base, self._forward
        if reference and self.lora is None:
            if self._frozen is None:
                raise ValueError("without LoRA there is a reference policy only where keep_reference() made a copy")
            base, forward = self._frozen
        if torch.is_grad_enabled():
            give_back()
        given: dict[str, Any] = {"temperature": self.temperature, "sharing": self.sharing}
        asked: dict[str, Any] = {"entropy": entropy, "hidden": hidden, "best": best, "readings": readings}
        with self._on(self._reference if reference else self._names):
            return scores_of(batch, base, forward, **given, **asked)

    def _on(self, names: list[str]) -> AbstractContextManager[None]:
        """A context in which these adapters are on."""
        return chosen(self.model, names, self._names) if names != self._names else nullcontext()

    def save_merged(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face folder with the merged weights, the tokenizer and the chat template.

        Warns where the model is in half precision and rounding loses much of the adapters.
        """
        kept = self.survival.adapter if self.survival else None
        if kept is not None and kept < MERGED_SHARE:
            kind = str(next(self.sampler.parameters()).dtype).removeprefix("torch.")
            warnings.warn(
                f"weights merged in {kind} keep {100 * kept:.0f} % of what the adapters add: this folder is nearer "
                "to the base model than the policy is. `turnwise export --adapter` keeps all; so does a float32 run",
                stacklevel=2,
            )
        save_model(self.merged(), self.tokenizer, folder)

    def merged(self) -> Any:
        """The policy as a plain model with merged weights. All other weights share memory with the sampler."""
        return self._copy.merged()

    def unadapted(self) -> Any:
        """The model without its adapters, as a plain one. All weights share memory with the learner's."""
        return self._copy.unadapted()

    @property
    def is_adapted(self) -> bool:
        """Whether it plays with adapters; else with all of its weights."""
        return bool(self._names)

    @property
    def rank(self) -> int:
        """The highest rank of its adapters in a layer, one beside another; 0 without any."""
        layers = (layer for layer, _ in self._copy.layers.values())
        return max((sum(layer.r[name] for name in layer.active_adapters) for layer in layers), default=0)

    def save_adapter(self, folder: str | Path) -> None:
        """Write one peft adapter (safetensors) that stands for the policy on its base model, and the tokenizer.

        Raises ValueError without LoRA, and where an adapter was merged into the base, whose folder does not hold it.
        """
        if not self._names:
            raise ValueError("this run trained all weights: there is no adapter, export the merged model")
        if (merged := getattr(self._base, "merged_adapter", None)) is not None:
            raise ValueError(
                f"this policy began with adapter {merged} merged into its base: an adapter alone would "
                "leave that out, export the merged model"
            )
        if self._names == [TRAINED]:
            self.model.peft_config[TRAINED].base_model_name_or_path = base_name(self._base)
            self.model.save_pretrained(str(folder), selected_adapters=[TRAINED])
        else:
            write_adapter(Path(folder), self.model)
        self.tokenizer.save_pretrained(str(folder))


def _with_lora(model: Any, lora: LoRAConfig, seed: int) -> Any:
    """The peft model of ``model`` with a fresh adapter, which changes nothing yet (B = 0)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets_of(model, lora),
        task_type="CAUSAL_LM",
        lora_dropout=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """A hash of tensors and their names: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
