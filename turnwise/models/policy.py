"""The policy: a Hugging Face causal LM with LoRA adapters, as learner and as sampler.

The learner is the peft model. ``score`` computes differentiable log-probabilities and entropies of a TokenBatch.

The sampler is a copy for generation. It shares the memory of every weight without an adapter. Layers with an adapter
hold merged weights W + scale * B A in float32; in half precision they hold base and adapter apart
(``models/merging.py``). ``sync`` copies the learner's present weights to the sampler and computes their hash.

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
from dataclasses import dataclass
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
from turnwise.models.allowed import Drawn, scored, scored_logits
from turnwise.models.freed import give_back
from turnwise.models.head import is_best
from turnwise.models.kinds import is_fast
from turnwise.models.layers import adapter, added, beside, is_half, switched_on
from turnwise.models.loading import save_model
from turnwise.models.lora_layers import as_the_sampler, check_layer, check_reached, targets_of, tell_left_out
from turnwise.models.merging import (
    MERGED_SHARE,
    Survival,
    SurvivalMeter,
    held,
    holds,
    own_layer,
    put,
    unadapted,
    unjoined,
)
from turnwise.models.packed_weights import pack as pack_weight
from turnwise.models.packed_weights import packed_weight
from turnwise.models.packing import Sharing, pack
from turnwise.models.past import PastWeights, Weights
from turnwise.models.paths import Forward, forward_of
from turnwise.models.reading import Reading, by_head, read
from turnwise.models.settings import AdapterUse, DType, LoRAConfig
from turnwise.models.sharding import NOT_DIVIDED, DividedDecoder
from turnwise.models.steering import Shift
from turnwise.models.steering import put as put_shift


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities and entropies [B, T] in nats, 0 outside the action tokens. Column t belongs to token t.

    ``hidden`` [M, h] float32 are the states that predict the M action tokens, row by row. ``best`` [B, T] is True on
    action tokens that no other token is more probable than. ``readings`` [B, T] are what was asked to be read of the
    vocabulary (``reading.py``), 0 outside the action tokens.
    """

    logprobs: Tensor
    entropies: Tensor | None
    hidden: Tensor | None = None
    best: Tensor | None = None
    readings: tuple[Tensor, ...] = ()


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
        self.sampler: Any = _sharing_copy(model).eval() if samples else None
        self._adapted: dict[str, tuple[Any, Any]] = {}  # by name: the learner's layer, the sampler's
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
        self._adapt()
        self._base, self._checkpointing = model, gradient_checkpointing
        self._forward = forward_of(model, checkpointing=gradient_checkpointing)
        self._copied: dict[str, Tensor] | None = None  # digests of the sampler's weights, where no others are like them
        self._frozen: tuple[Any, Forward] | None = None  # the reference policy, where all weights are trained
        self.adapter_hash = ""
        self._frozen_hash: str | None = None
        self._meter = SurvivalMeter([layer for layer, own in self._adapted.values() if own is not None])
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

    def _adapt(self) -> None:
        """Switch the policy's adapters on, and give the sampler layers of its own for them."""
        choose(self.model, self._names)
        inner = self.model.get_base_model() if self._names else self.model
        fast = is_fast(inner.config)
        for name, layer in inner.named_modules():
            if hasattr(layer, "lora_A"):
                check_layer(name, layer)
                if switched_on(layer):
                    if not fast:
                        as_the_sampler(layer)
                    own = None if self.sampler is None else own_layer(self.sampler, name, layer)
                    self._adapted[name] = layer, own
        if not fast and self.sampler is not None:
            check_reached(inner, {name: layer for name, (layer, _) in self._adapted.items()})
            if self.lora is not None and self.lora.target_modules == "all-linear":
                tell_left_out(self.sampler, self._adapted)

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
        """Copy the learner's present weights to the sampler, and update ``version``, ``adapter_hash``, ``survival``.

        Where the weights are divided among ranks, each of them must call it.
        """
        self._copy()
        self.survival = self._meter.measure()
        self.adapter_hash = self.hash_of(self.trainable_state())
        if self.sampler is not None:
            self.sampler.weights_hash = self.adapter_hash
        self.version = version
        if self.past.num:
            self.past.add(self.weights())

    def _copy(self) -> None:
        for layer, target in self._adapted.values():
            if target is not None:
                put(target, held(layer))
            elif self.is_divided:
                held(layer)  # the rank that samples needs this one's part
        if self._copied is not None:
            self._copied = self._digests()
        if self.lora is None and self.sampler is not None:  # its weights are the learner's own; packed ones are copies
            for module in self.sampler.modules():
                if (packed := packed_weight(module)) and module.weight is not None:
                    packed.take(module.weight)

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
        if self.sampler is not None:
            self._copied = self._digests()

    @torch.no_grad()
    def _digests(self) -> dict[str, Tensor]:
        """A number for each weight of the sampler, which is another one when a bit of the weight changes."""
        packed = {f"{name}.packed": packed_weight(module) for name, module in self.sampler.named_modules()}
        weights = dict(self.sampler.named_parameters()) | {n: p.plain() for n, p in packed.items() if p is not None}
        return {name: torch.hash_tensor(weight) for name, weight in weights.items()}

    def keep_reference(self) -> None:
        """Keep a frozen copy of the present weights as the reference policy. With LoRA there is one without a copy."""
        if self.lora is None and self._frozen is None:
            frozen = copy.deepcopy(self._base).requires_grad_(False)
            self._frozen = frozen, forward_of(frozen)

    def pack(self) -> None:
        """Have the sampler multiply with packed weights from now on (packed_weights.py). They follow each ``sync``."""
        for module in self.sampler.modules():
            pack_weight(module)

    def unlike(self) -> str | None:
        """The name of the first layer whose weights in the sampler differ from what ``sync`` would copy; None: none.

        Where the learner's weights are divided among ranks: from what ``sync`` copied.
        """
        if self._copied is not None:
            present = self._digests()
            return next((name for name, number in self._copied.items() if not number.equal(present[name])), None)
        for name, (layer, target) in self._adapted.items():
            if not holds(target, held(layer)):
                return name
        modules: dict[str, Any] = dict(self.sampler.named_modules())
        for name, module in modules.items():
            if packed_weight(module) and name not in self._adapted and not holds(module, {"weight": module.weight}):
                return name
        return None

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
        mask: Tensor = batch.action_mask.to(self.device)
        if torch.is_grad_enabled():
            give_back()
        drawn = Drawn.of(batch)
        kinds = None if drawn is None else drawn.kinds()
        packed = pack(batch.tokens, batch.lengths.tolist(), batch.action_mask, self.device, self.sharing, kinds)
        own = None if drawn is None else drawn.at(packed.origin)
        with self._on(self._reference if reference else self._names):
            states = forward.states(packed.ids, packed.plan).index_select(0, packed.before)
            wanted: dict[str, Any] = {"temperature": self.temperature, "entropy": entropy}
            if forward.linear_head:
                head = _head(base, states)
                values, entropies = scored(*head, packed.targets, own, **wanted)
                highest = is_best(*head, packed.targets) if best else None
                logits_of = by_head(*head)
            else:
                logits = forward.logits(states)
                values, entropies = scored_logits(logits, packed.targets, own, **wanted)
                highest = logits.detach().argmax(-1) == packed.targets if best else None
                logits_of = logits.__getitem__
            size = {"vocabulary": self._base.config.get_text_config().vocab_size, "temperature": self.temperature}
            seen = read(states, packed.targets, own, logits_of, readings, **size) if readings else ()
        empty = values.new_zeros(mask.shape)
        return Scores(
            empty.masked_scatter(mask, packed.to_rows(values)),
            None if entropies is None else empty.masked_scatter(mask, packed.to_rows(entropies)),
            packed.to_rows(states).float() if hidden else None,
            None if highest is None else torch.zeros_like(mask).masked_scatter(mask, packed.to_rows(highest)),
            tuple(empty.masked_scatter(mask, packed.to_rows(each)) for each in seen),
        )

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
        plain = _sharing_copy(self.sampler)
        unjoined(plain, {name: layer for name, (layer, _) in self._adapted.items()})
        return plain

    def unadapted(self) -> Any:
        """The model without its adapters, as a plain one. All weights share memory with the learner's."""
        plain = _sharing_copy(self.sampler)
        unadapted(plain, {name: layer for name, (layer, _) in self._adapted.items()})
        return plain

    @property
    def is_adapted(self) -> bool:
        """Whether it plays with adapters; else with all of its weights."""
        return bool(self._names)

    @property
    def rank(self) -> int:
        """The highest rank of its adapters in a layer, one beside another; 0 without any."""
        layers = (layer for layer, _ in self._adapted.values())
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


def _head(model: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """States, weight and bias whose product are the logits. An adapter of the head is included where it is on."""
    head = model.get_output_embeddings()
    base = getattr(head, "base_layer", head)
    if base is head or not switched_on(head):
        return states, base.weight, base.bias
    if is_half(base.weight.dtype):
        low, high = adapter(head, base.weight.dtype)
        return beside(states, low), torch.cat((base.weight, high), 1), base.bias
    return states, base.weight + added(head), base.bias


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


def _sharing_copy(model: Any) -> Any:
    """A copy of the modules without gradients, whose weights are in the same memory as the model's."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in model.parameters()}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, shared)
