"""The ScienceWorld simulator: one Java process, spoken to through py4j, quiet and repeatable.

The package's Python wrapper is left out, not its engine: the wrapper lists all valid commands at every step, which
takes most of the time, loads every task twice, and lets the Java heap grow to gigabytes. Two things in the engine are
set right from outside:

* It lists objects in the order of Java's identity hashes, which differ from run to run. A JVM that gives every object
  the same hash keeps the order of insertion, so equal actions give equal text.
* Listing the valid commands draws from the generator that also moves the bees. The generator is put back after it, so
  that asking changes nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from turnwise.envs.scienceworld.tasks import VARIATIONS, VERSION

Answer = TypeVar("Answer")

NOT_UNDERSTOOD = ("No known action matches that input.", "Unknown action.")
"""How the simulator's answers begin where no action was found in the input."""
_SCRAMBLED = 0x5DEECE66D
"""java.util.Random.setSeed(n) makes the state n ^ this (its documentation says so)."""


class SimulatorError(RuntimeError):
    """The Java process died, hung, ran out of memory or failed: the episode is lost, the next ``reset`` starts anew."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an action led to; ``score`` is the official one, at most 100 and negative after a fatal mistake."""

    observation: str
    score: int
    completed: bool


class Simulator:
    """A running simulator; it ends with ``close``, with this object, and with this process, however that ends.

    ``heap_mb`` bounds the Java heap; a call that takes longer than ``call_timeout_s`` raises ``SimulatorError`` like
    any other failure, and the process is gone by then. Raises ValueError where the package or Java is missing.
    """

    def __init__(self, heap_mb: int = 768, call_timeout_s: float = 120.0) -> None:
        folder = tempfile.TemporaryDirectory(prefix="turnwise-scienceworld-")  # the engine writes where it runs
        self._gateway, self._process = _launch(heap_mb, call_timeout_s, folder.name)
        self.close = weakref.finalize(self, _stop, self._gateway, self._process, folder)
        self._timeout_s = call_timeout_s
        self._world = self._ask(self._prepare)

    @property
    def pid(self) -> int:
        """Of the Java process."""
        return int(self._process.pid)

    @property
    def alive(self) -> bool:
        return self.close.alive and self._process.poll() is None

    def start(self, task: str, variation: int, simplifications: str) -> Outcome:
        """Load a task and look around, which is the official first move."""
        self._load(task, variation, simplifications, gold=False)
        return self.act("look around")

    def gold_path(self, task: str, variation: int, simplifications: str) -> list[str]:
        """The engine's own solution of a task. Slow (seconds), and it ends the episode in progress."""

        def ask() -> str:
            return str(self._join("\n", self._world.getGoldActionSequence()))

        self._load(task, variation, simplifications, gold=True)
        return self._ask(ask).split("\n")

    def act(self, action: str) -> Outcome:
        """Any text; what is not understood takes no time."""
        text = action.encode(errors="replace").decode()  # lone surrogates would break the connection

        def ask() -> Outcome:
            observation = str(self._world.step(text))
            score = round(100 * float(self._world.getScore()))
            return Outcome(observation, score, bool(self._world.getCompleted()) or score < 0)

        return self._ask(ask)

    def valid_actions(self) -> list[str]:
        """Every command that would work now, sorted; while a request is ambiguous, the numbers to choose from."""

        def ask() -> str:
            state = self._random_state.get(self._random)
            listed = self._join("\n", self._world.getValidActionObjectCombinations())
            self._random.setSeed(state ^ _SCRAMBLED)
            return str(listed)

        return self._ask(ask).split("\n")

    def look(self) -> str:
        """The agent's surroundings; takes no time."""
        return str(self._ask(lambda: self._world.freeActionLook()))

    def inventory(self) -> str:
        """What the agent holds; takes no time."""
        return str(self._ask(lambda: self._world.freeActionInventory()))

    def description(self) -> str:
        """The task in the official words, "Task Description:" and so on."""
        return str(self._ask(lambda: self._world.freeActionTaskDesc()))

    def _load(self, task: str, variation: int, simplifications: str, *, gold: bool) -> None:
        error = self._ask(lambda: self._world.load(task, variation, simplifications, gold))
        if error:
            raise SimulatorError(f"ScienceWorld cannot load {task} variation {variation}: {error}")

    def _prepare(self) -> Any:
        """Silence the engine's chatter, open its random generator, and check that it is the release we know."""
        jvm = self._gateway.jvm
        jvm.java.lang.System.setOut(jvm.java.io.PrintStream(jvm.java.io.FileOutputStream(os.devnull)))
        self._random_state = jvm.java.lang.Class.forName("java.util.Random").getDeclaredField("seed")
        self._random_state.setAccessible(True)
        self._random = getattr(getattr(jvm.scala.util, "Random$"), "MODULE$").self()
        self._join = jvm.java.lang.String.join
        world = jvm.scienceworld.runtime.pythonapi.PythonInterface()
        counted = {name: world.getTaskMaxVariations(name) for name in world.getTaskNames()}
        if counted != dict(VARIATIONS):
            raise ValueError(
                f"The installed scienceworld has other tasks than release {VERSION}, for which the panels were made: "
                f"pip install scienceworld=={VERSION}"
            )
        return world

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        """``call`` the engine. A failure of any kind stops the process and raises SimulatorError."""
        from py4j.protocol import Py4JError

        if not self.alive:  # py4j would try to connect again, and log each attempt
            self.close()
            raise SimulatorError(f"The ScienceWorld process is gone ({_fate(self._process)}). Reset to start another.")
        try:
            return call()
        except (Py4JError, OSError) as error:
            fate = _fate(self._process)
            self.close()
            raise SimulatorError(
                f"The ScienceWorld process failed ({fate}; call_timeout_s={self._timeout_s:g}). Reset to start "
                f"another. py4j said: {str(error)[:500]}"
            ) from error
        except BaseException:  # an interrupted call leaves an answer in the pipe that the next one would read
            self.close()
            raise


def _launch(heap_mb: int, timeout_s: float, folder: str) -> tuple[Any, subprocess.Popen[bytes]]:
    """A py4j gateway and its Java process, which dies when our end of its standard input closes."""
    try:
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
        from scienceworld.constants import JAR_PATH
    except ImportError as error:
        raise ValueError(f'ScienceWorld needs the scienceworld package: pip install -e ".[envs]" ({error}).') from error
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # what it reports, _ask raises
    options = [
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:+UnlockExperimentalVMOptions",
        "-XX:hashCode=2",
        "--add-opens=java.base/java.util=ALL-UNNAMED",
    ]
    with tempfile.TemporaryFile() as complaints:
        try:
            port, token, process = launch_gateway(
                classpath=JAR_PATH,
                javaopts=options,
                die_on_exit=True,
                enable_auth=True,
                cwd=folder,
                redirect_stderr=complaints,
                return_proc=True,
            )
        except FileNotFoundError as error:
            raise ValueError(
                "ScienceWorld needs Java 11 or newer, and there is no `java` on the PATH: "
                "apt-get install default-jre-headless, or conda install openjdk."
            ) from error
        except ValueError as error:  # Java ended without naming its port
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip()[-500:]
            raise ValueError(f"ScienceWorld needs a HotSpot Java 11 or newer; `java` did not start: {said}") from error
    parameters = GatewayParameters(port=port, auth_token=token, read_timeout=timeout_s)
    return JavaGateway(gateway_parameters=parameters, java_process=process), process


def _stop(gateway: Any, process: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    process.kill()
    process.wait()
    folder.cleanup()
    gateway.close()
    gateway._gateway_client.is_connected = False  # else every Java object that Python forgets knocks at the closed port


def _fate(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=0.5)  # the connection breaks a moment before the process is gone
    except subprocess.TimeoutExpired:
        return "no answer in time, or an error inside"
    if code == 3:
        return "out of memory: raise heap_mb"  # what ExitOnOutOfMemoryError exits with
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
