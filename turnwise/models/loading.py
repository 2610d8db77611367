"""Loading and saving model folders.

Where a checkpoint lacks weights, transformers fills them with random numbers and only logs it. Here every weight must
come from the checkpoint. A ValueError names what does not fit: missing tensors, adapters, or tokens without an
embedding. Which types of models can be computed, and how, is in kinds.py.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from turnwise.models.convert import NAMED, converted, gguf_of
from turnwise.models.kinds import check_general, check_kind, is_fast
from turnwise.models.precision import chosen_dtype, warn_if_slow
from turnwise.models.settings import ADAPTER_FILE, DType


def load_model(path: str | Path, *, dtype: DType = "auto", device: str = "cpu") -> tuple[Any, Any]:
    """The model and the tokenizer of a folder or hub name. The rule of precision.py settles a ``dtype`` of "auto".

    Raises ValueError where there is none, where it is no causal language model, and where checkpoint, configuration and
    tokenizer do not fit each other. Warns of a type that is not computed by the package's own decoder.
    """
    from transformers import AutoModelForCausalLM

    check_device(device)
    warn_if_slow(dtype, device)
    dtype = chosen_dtype(dtype, device)
    name = place(path, dtype)
    check_kind(name)
    with _unreported(), _explained(f"model {name!r}"):
        model, found = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
        )
    if getattr(model, "peft_config", None):
        raise _adapter(name, "")
    _check_tensors(found, name)
    _check_ends(model, name)
    tokenizer = load_tokenizer(name)
    _check_tokens(tokenizer, model, name)
    if not is_fast(model.config):
        check_general(model, name)
    return model.to(device).eval(), tokenizer


def without_bars() -> None:
    """Switch off the loading bars of transformers in this process, and what it says of its own future versions."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a folder or hub name. Raises ValueError where there is none.

    An adapter that was saved without one has that of its base.
    """
    from transformers import AutoTokenizer

    adapter = adapter_place(path)
    if adapter is not None:
        has_own = (adapter / "tokenizer_config.json").is_file()
        name = str(adapter) if has_own else place(base_of(adapter))
    else:
        name = place(path)
    with _explained(f"the tokenizer of {name!r}"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without one
        raise ValueError(f"model {name!r} has no tokenizer: put tokenizer.json and tokenizer_config.json beside it")
    return tokenizer


def adapter_place(path: str | Path) -> Path | None:
    """The folder of the PEFT adapter that ``path`` (a folder or hub name) stands for; None for anything else."""
    folder = Path(path).expanduser()
    if gguf_of(path) is not None:
        return None
    if folder.exists() or str(path).startswith((".", "/", "~")):
        return folder if (folder / ADAPTER_FILE).is_file() else None
    return _hub_adapter(str(path))


@lru_cache
def _hub_adapter(name: str) -> Path | None:
    """The adapter of a hub name, downloaded; None for anything else. It is asked for once."""
    from huggingface_hub import snapshot_download
    from transformers.utils import cached_file

    try:  # a hub name, perhaps of no model at all: whoever loads it says so
        if cached_file(name, ADAPTER_FILE, _raise_exceptions_for_missing_entries=False) is None:
            return None
        kept = ["adapter_*", "*token*", "special_tokens_map.json", "*.jinja", "vocab*", "merges.txt"]
        return Path(snapshot_download(name, allow_patterns=kept))
    except Exception:  # as of ``load_model``
        return None


def base_of(adapter: Path) -> str:
    """The folder or hub name of an adapter's base model. Raises ValueError where there is none."""
    named, told = _base_name(adapter), f"in {adapter / ADAPTER_FILE} (base_model_name_or_path)"
    if not named:
        raise ValueError(f"adapter {adapter} does not say which base model it is of: name it {told}")
    places = [Path(named).expanduser(), adapter / named]
    base = next((place for place in places if place.is_dir()), None)
    if base is None and named.startswith((".", "/", "~")):
        raise ValueError(
            f"adapter {adapter} is one of the base model {named!r}, which is not there: name its place {told}"
        )
    if base is not None and (base / ADAPTER_FILE).is_file():
        raise ValueError(
            f"the base model {str(base)!r} of adapter {adapter} is an adapter itself: merge that into its base first"
        )
    return named if base is None else str(base)


def end_ids(model: Any) -> frozenset[int]:
    """The tokens that end a reply, by ``eos_token_id`` of the model's generation_config (an id, a list, or nothing)."""
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if listed is None:
        return frozenset()
    return frozenset([listed] if isinstance(listed, int) else [int(token) for token in listed])


def check_trainable(model: Any, name: str) -> None:
    """Raises ValueError for weights in float16, where small gradients become 0. (There is no loss scaling.)"""
    if next(model.parameters()).dtype == torch.float16:
        raise ValueError(
            f"{name} is stored in float16, in which small gradients vanish: set model.dtype=bfloat16 or "
            "model.dtype=float32 to train it"
        )


def check_device(device: str) -> None:
    """Raises ValueError for a device that is not there."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: expected cpu, cuda, or cuda:N") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch finds no CUDA device; use device=cpu")


def save_model(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Write an ordinary Hugging Face folder: safetensors, config, tokenizer, chat template."""
    head, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head.weight.data_ptr() != inputs.weight.data_ptr():
        model.config.tie_word_embeddings = False  # an adapter made them differ; loading must not tie them again
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def place(path: str | Path, dtype: DType = "auto") -> str:
    """The folder or hub name for transformers to open.

    A GGUF file and a name of ``convert.NAMED`` stand for their folder in the cache, which is made in ``dtype`` where it
    is missing. Raises ValueError for a folder without a model.
    """
    name = str(path)
    if (file := gguf_of(name)) is not None:
        return str(converted(file, dtype))
    folder = Path(name).expanduser()
    if (folder / ADAPTER_FILE).is_file():
        raise _adapter(name, _base_name(folder))
    if folder.exists() or name.startswith((".", "/", "~")):
        if not (folder / "config.json").exists():
            raise ValueError(f"no model at {name!r}: expected a Hugging Face folder with config.json")
        return str(folder)
    return name


def from_anywhere(name: str) -> str:
    """The name of a model or run, for processes in any working directory: absolute where it is a folder or GGUF file.

    Names of ``convert.NAMED``, hub names and places that are not there stay as they are.
    """
    path = Path(name).expanduser()
    is_local = path.is_dir() or (path.suffix.lower() == ".gguf" and path.is_file())
    return str(path.absolute()) if is_local and name not in NAMED else name


def _base_name(folder: Path) -> str:
    try:
        return str(json.loads((folder / ADAPTER_FILE).read_bytes()).get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _adapter(name: str, base: str) -> ValueError:
    of = f" of {base!r}" if base else ""
    return ValueError(
        f"{name!r} is a PEFT adapter{of}, not a whole model. Merge it into its base first, and name the merged folder: "
        f"`peft.AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload().save_pretrained(FOLDER)`, then "
        "save the tokenizer there; of a turnwise run, `turnwise export` without --adapter does it"
    )


def _check_tensors(found: dict[str, Any], name: str) -> None:
    """Raises ValueError for missing, unexpected and mismatched tensors.

    ``found`` is transformers' own report, which does not list tied weights as missing.
    """
    wrong = {
        "lacks": sorted(found["missing_keys"]),
        "holds what the model has no place for:": sorted(found["unexpected_keys"]),
        "has another shape of": sorted(
            f"{key} ({list(held)} where the configuration says {list(wanted)})"
            for key, held, wanted in found["mismatched_keys"]
        ),
    }
    told = [f"{what} {_some(names)}" for what, names in wrong.items() if names]
    if told:
        raise ValueError(
            f"the checkpoint of model {name!r} does not fit its config.json: it {'; it '.join(told)}. transformers "
            "would fill gaps with random numbers. Copy the folder again, or save the model as what it was trained as"
        )


def _check_tokens(tokenizer: Any, model: Any, name: str) -> None:
    """Raises ValueError for tokens without an embedding.

    An embedding table with more rows than the vocabulary is ordinary padding. Tokens that transformers adds itself, as
    defaults of a tokenizer class, are not checked, because no text gives them.
    """
    rows = len(model.get_input_embeddings().weight)
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        written = _tokenizer_files(name)
        beyond = [(number, token) for number, token in beyond if json.dumps(token)[1:-1] in written or token in written]
    if beyond:
        raise ValueError(
            f"the tokenizer of model {name!r} has tokens without an embedding (the table has {rows} rows): "
            f"{_some([f'{token} ({number})' for number, token in beyond])}. Train with "
            "model.resize_token_embeddings(len(tokenizer)), or use the tokenizer that belongs to the model"
        )


def _check_ends(model: Any, name: str) -> None:
    """Raises ValueError for a damaged generation_config.json, or an ``eos_token_id`` in it that is no token id.

    transformers ignores a damaged file and accepts any ``eos_token_id``.
    """
    path = Path(name) / "generation_config.json"
    if path.is_file():
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(
                f"generation_config.json of model {name!r} is damaged ({error}): the ends of replies that it lists "
                "would be ignored. Copy it again, or remove it"
            ) from None
    listed = getattr(model.generation_config, "eos_token_id", None)
    ends = listed if isinstance(listed, list | tuple) else [] if listed is None else [listed]
    rows = len(model.get_input_embeddings().weight)
    strange = [end for end in ends if type(end) is not int or not 0 <= end < rows]
    if strange:
        raise ValueError(
            f"generation_config.json of model {name!r} ends replies with {strange[0]!r}, which is no token id (0 to "
            f"{rows - 1}): set its eos_token_id to an id, a list of ids, or null"
        )


def _tokenizer_files(name: str) -> str:
    """The text of the model's own tokenizer files."""
    from transformers.utils import cached_file

    names = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
    found = [cached_file(name, each, _raise_exceptions_for_missing_entries=False) for each in names]
    return "\n".join(Path(path).read_text(encoding="utf-8") for path in found if path)


def _some(names: Collection[str], shown: int = 4) -> str:
    rest = len(names) - shown
    return ", ".join(list(names)[:shown]) + (f" and {rest} more" if rest > 0 else "")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """A context that makes one sentence of any error: files made elsewhere, read by a library, fail in any way."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"could not load {what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it needs code of its own, which turnwise does not run; take a model whose type transformers knows"
    if "backend tokenizer" in str(error):
        return (
            "it has no fast tokenizer: put tokenizer.json (as save_pretrained of a fast tokenizer writes it) beside it"
        )
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # the second line says why
    return (
        text
        if isinstance(error, OSError | ValueError | RuntimeError | ImportError)
        else f"{type(error).__name__} {text}"
    )


@contextmanager
def _unreported() -> Iterator[None]:
    """A context without transformers' log of missing keys, which ``_check_tensors`` reports as an error."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
