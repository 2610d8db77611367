#!/usr/bin/env python3
"""A virtual environment of its own in which vLLM runs on a CPU (docs/vllm.md). It is kept in the cache.

    python3 scripts/vllm_env.py                              makes it where it is missing, and prints its python
    python3 scripts/vllm_env.py pytest -m slow tests/models/vllm     the same, then a module in it, from this checkout

vLLM wants other versions of some packages than ``constraints.txt`` names, so nothing of it goes into ``.venv``. The
versions are those of ``constraints-vllm.txt``, which is complete: nothing is resolved. The folder is named by that
file's content and the Python version. Needs Linux on x86-64 or ARM, python3 >= 3.11 with venv and pip, 2 GB of disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ROOT / "constraints-vllm.txt"


def main() -> int:
    words = sys.argv[1:]
    if words[:1] in (["-h"], ["--help"]):
        sys.stdout.write(__doc__ or "")
        return 0
    python = made()
    if not words:
        sys.stdout.write(f"{python}\n")
        return 0
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    return subprocess.run([str(python), "-m", *words], cwd=ROOT, env=environ, check=False).returncode


def made() -> Path:
    """The python of the environment, which is made where it is missing or half made."""
    key = hashlib.sha256(VERSIONS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    cache = os.environ.get("TURNWISE_CACHE") or Path.home() / ".cache" / "turnwise"
    folder = Path(cache).expanduser() / "envs" / f"vllm-{key}"
    python, stamp = folder / "bin" / "python", folder / "complete"
    if stamp.exists():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several that want it, one makes it
        if not stamp.exists():
            install(folder, python)
            stamp.touch()
    return python


def install(folder: Path, python: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    sys.stderr.write(f"making {folder} (some 2 GB: minutes)\n")
    step(
        [sys.executable, "-m", "venv", str(folder)], "python3 needs its venv module (Debian: apt install python3-venv)"
    )
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    advice = "torch's builds for a CPU are in PyTorch's own package index, which pip finds by PIP_EXTRA_INDEX_URL"
    step([*pip, "--no-deps", "-r", str(VERSIONS)], f"{VERSIONS.name} could not be installed: {advice}")


def step(command: list[str], advice: str) -> None:
    if subprocess.run(command, check=False).returncode:
        sys.stderr.write(f"{advice}\n")
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
