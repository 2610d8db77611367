"""Environments with the packages of some extras, for tests that need them. They are kept in the cache, beside .venv.

Each sees all packages of ``.venv``, which has to be there (``scripts/start.py test`` makes it). Its folder is named by
the extras of pyproject.toml, ``constraints.txt`` and the Python version.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(name: str, extras: tuple[str, ...]) -> int:
    """Make the environment ``name`` where it is missing. Print its python, or run a module and its words in it."""
    python = made(name, extras)
    if not sys.argv[1:]:
        sys.stdout.write(f"{python}\n")
        return 0
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    return subprocess.run([str(python), "-m", *sys.argv[1:]], cwd=ROOT, env=environ, check=False).returncode


def made(name: str, extras: tuple[str, ...]) -> Path:
    """The python of the environment, which is made where it is missing or half made."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [package for extra in extras for package in known[extra]]
    versions = ROOT / "constraints.txt"
    key = hashlib.sha256("\n".join([*wanted, versions.read_text(), sys.version]).encode()).hexdigest()[:12]
    cache = os.environ.get("TURNWISE_CACHE") or Path.home() / ".cache" / "turnwise"
    folder = Path(cache).expanduser() / "envs" / f"{name}-{key}"
    python, stamp = folder / "bin" / "python", folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several that want it, one makes it
        if not stamp.exists():
            shutil.rmtree(folder, ignore_errors=True)
            step([sys.executable, "-m", "venv", str(folder)])
        see(folder)
        if not stamp.exists():
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
            step([*pip, "-c", str(versions), *wanted])
            stamp.touch()
    return python


def see(folder: Path) -> None:
    """Let the environment import what ``.venv`` of this checkout has."""
    site = Path("lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")
    if not (ROOT / ".venv" / site).is_dir():
        sys.exit("there is no .venv with this Python: run python3 scripts/start.py test --collect-only first")
    (folder / site / "turnwise_venv.pth").write_text(f"{ROOT / '.venv' / site}\n")


def step(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"{' '.join(command[-6:])} failed")
