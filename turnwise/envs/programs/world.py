"""``turnwise/Program-v0``: an agent program as a world.

The program runs as it does anywhere else, with a client of its own. What it asks its model is the observation, and what
the model replies is the action. When the program returns, the episode ends, with what it returned as the reward.

    gymnasium.make("turnwise/Program-v0", run="my_agent:agent", tasks="questions.jsonl")

All programs of a process share one endpoint on the loopback address. Each has a random key, and sees nothing of others.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Mapping, Sequence

from turnwise.envs.interface import Info, Panel
from turnwise.envs.programs.asked import Terms
from turnwise.envs.programs.gateway import Gateway, Keys
from turnwise.envs.programs.results import Outcome, ProgramError
from turnwise.envs.programs.running import Model, Running, program_of
from turnwise.envs.programs.session import Exchange
from turnwise.envs.programs.talk import MAX_FULL, Talk
from turnwise.envs.rows import Source, shared_rows
from turnwise.envs.world import TaskEnv

ENV_ID = "turnwise/Program-v0"
_POLL_S = 1.0
_OVER = "this episode is over: a program must not ask the model after its end"


class ProgramEnv(TaskEnv):
    """A program, run once for each episode.

    ``run`` is ``module:function`` or a command line (``running.py``), ``tasks`` and ``fields`` are its tasks
    (``rows.py``). An episode is truncated after ``step_limit`` requests. A program may take ``timeout_s`` seconds from
    a reply to its next request or its end. ``env`` names variables that a command also gets. ``strict`` refuses
    requests that want tokens to be drawn in a way that the run does not offer; elsewhere they are told of once.
    ``name`` is what the model is called.

    A program that raises, takes too long or returns no reward raises ProgramError, which fails the episode. Raises
    ValueError for a program that cannot be found.
    """

    in_roles = True

    def __init__(
        self,
        run: str,
        tasks: Source | Mapping[str, Source],
        fields: Mapping[str, str] | None = None,
        split: str = "train",
        step_limit: int = 50,
        timeout_s: float = 300.0,
        env: Sequence[str] = (),
        strict: bool = False,
        name: str = "agent",
    ) -> None:
        super().__init__(split, step_limit)
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be a positive number of seconds, got {timeout_s!r}.")
        self.run, self.timeout_s = run, timeout_s
        self._rows = shared_rows(ENV_ID, tasks, fields)
        self._program = program_of(run, env)
        self._terms = Terms(model=name, strict=strict)
        self._endpoint: Endpoint | None = None
        self._talk: Talk | None = None
        self._running: Running | None = None
        self._outcomes: list[Outcome] = []

    @property
    def splits(self) -> tuple[str, ...]:
        return self._rows.splits

    def tasks(self, split: str) -> Panel:
        return self._rows.panel(split)

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        self._stop()
        if self._endpoint is None:
            self._endpoint = Endpoint.shared()
        session = self._endpoint.keys.open(self._terms)
        self._talk, self._outcomes = Talk(session), (outcomes := list[Outcome]())

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            session.finish()

        model = Model(self._endpoint.url, session.key, self._terms.model, int(self.np_random.integers(2**31)))
        task = self._rows.row(split, index)
        self._running = self._program.start(task, model, done)
        came = self._next()
        if isinstance(came, Outcome):
            self._stop()
            raise ProgramError(came.error or f"{self.run} returned without asking the model: it must ask at least once")
        observation, info = self._shown(came)
        return observation, {**info, "task": task}

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        assert self._talk is not None
        return self._advance(valid=self._talk.answer(action))

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        try:
            observation, reward, terminated, truncated, info = super().step(action)
        except ProgramError:
            self._ended = True
            raise
        if terminated or truncated:
            self._stop()
        return observation, reward, terminated, truncated, info

    def counted(self, prompt_tokens: int, reply_tokens: int, ended: bool) -> None:
        assert self._talk is not None
        self._talk.counted(prompt_tokens, reply_tokens, ended)

    def refuse(self) -> tuple[str, float, bool, bool, Info]:
        """In the place of ``step``: the context is full. The program is told so, and may go on with a shorter one.

        At the second time in a row the episode is truncated.
        """
        assert self._talk is not None
        self._talk.refuse()
        if self._talk.num_full >= MAX_FULL:
            self._ended = True
            self._stop()
            return "", 0.0, False, True, {}
        observation, reward, self._ended, info = self._advance(valid=True)
        if self._ended:
            self._stop()
        return observation, reward, self._ended, False, info

    def leave(self, why: str = "") -> None:
        """The episode is over. Where a request has no reply (``why``), its program hears so."""
        if self._talk is not None:
            self._talk.fail(why)
        self._ended = True
        self._stop()

    def close(self) -> None:
        self._stop()
        if self._endpoint is not None:
            self._endpoint.leave()
            self._endpoint = None

    def _advance(self, valid: bool) -> tuple[str, float, bool, Info]:
        """The next request, or the end."""
        came = self._next()
        if isinstance(came, Exchange):
            observation, info = self._shown(came)
            return observation, 0.0, False, {**info, "valid": valid}
        if came.result is None:
            self._stop()
            raise ProgramError(came.error)
        ended: Info = {"valid": valid}
        for key in ("success", "score"):
            if (found := getattr(came.result, key)) is not None:
                ended[key] = found
        return f"the program returned {came.result.reward:g}", came.result.reward, True, ended

    def _next(self) -> Exchange | Outcome:
        """The program's next request, or how it ended. Raises ProgramError where neither comes in time."""
        assert self._talk is not None
        assert self._running is not None
        until = time.monotonic() + self.timeout_s
        while not self._outcomes:
            if (exchange := self._talk.session.next(_POLL_S)) is not None:
                return exchange
            self._running.check()
            if not self._outcomes and time.monotonic() > until:
                self._stop()
                raise ProgramError(
                    f"{self.run} took more than {self.timeout_s:g} s without a request or an end "
                    "(env.kwargs.timeout_s); programs that wait for each other need rollout.env_order=free"
                )
        return self._outcomes[0]

    def _shown(self, exchange: Exchange) -> tuple[str, Info]:
        """A request as an observation."""
        assert self._talk is not None
        if exchange.request.ignored:
            _tell_once(self.run, exchange.request.ignored)
        return self._talk.show(exchange)

    def _stop(self) -> None:
        """End the program: its requests are refused from now on."""
        if self._talk is not None and self._endpoint is not None:
            self._endpoint.keys.close(self._talk.session, _OVER)
        if self._running is not None:
            self._running.stop()
        self._talk = self._running = None


class Endpoint:
    """The endpoint that the programs of this process share, open while one of them is there."""

    _lock = threading.Lock()
    _open: Endpoint | None = None

    def __init__(self) -> None:
        self.keys = Keys()
        self._gateway = Gateway(self.keys)
        self.url = self._gateway.url
        self._users = 0

    @classmethod
    def shared(cls) -> Endpoint:
        with cls._lock:
            if cls._open is None:
                cls._open = cls()
            cls._open._users += 1
            return cls._open

    def leave(self) -> None:
        """The last one out closes it."""
        with self._lock:
            self._users -= 1
            if not self._users:
                Endpoint._open = None
                self._gateway.close()


_told: set[tuple[str, str]] = set()


def _tell_once(run: str, ignored: Sequence[str]) -> None:
    fresh = [name for name in ignored if (run, name) not in _told]
    _told.update((run, name) for name in fresh)
    if fresh:
        warnings.warn(
            f"{run} asks for {', '.join(fresh)}, which the run decides otherwise (env.kwargs.strict=true refuses it)",
            stacklevel=2,
        )
