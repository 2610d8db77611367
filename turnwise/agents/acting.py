"""A language model that acts one turn at a time, in any loop: ``observation -> action``.

    agent = turnwise.Agent.load("runs/first")
    observation, info = env.reset(seed=0)
    agent.reset(seed=0)
    action = agent.act(observation, info)

Training and evaluation play many episodes at once (``collector.py``); this plays one, for people and their programs.
"""

from __future__ import annotations

import weakref
from typing import Any

from turnwise.agents.asking import prompt_of
from turnwise.agents.seating import AgentReply, CutShortError, ModelAgent, Scripted, Seat
from turnwise.envs.interface import Info, instructions_of, listed_actions, request_of
from turnwise.envs.tasks import TextEnv
from turnwise.models.drawing import Sampling
from turnwise.seeds import mix
from turnwise.trajectory import Turn


class Acting:
    """One episode of a model: what it was shown and what it said, turn by turn.

    ``sampling`` says how tokens are drawn; the limit of a reply is the agent's own. Replies depend on the seed that
    ``reset`` gets, on the turn and on what was observed, and on nothing else.
    """

    def __init__(self, model: ModelAgent, sampling: Sampling | None = None) -> None:
        given = sampling or Sampling()
        self._model = model
        self._sampling = Sampling(given.temperature, given.top_p, given.top_k, model.config.max_reply_tokens)
        self._slot: int | None = None
        self._seat, self._instructions, self._seed = Seat(), "", 0

    def reset(self, *, instructions: str = "", seed: int = 0) -> None:
        """Begin an episode. ``instructions`` are the world's; they are shown where the agent was trained with them."""
        self.close()
        engine = self._model.engine
        if engine.num_free == 0:
            raise ValueError(
                f"{engine.num_slots} episodes of this model are open: close() an agent, or load it with "
                "num_episodes=..."
            )
        self._slot = engine.open()
        self._given_back = weakref.finalize(self, engine.close, self._slot)  # also where nobody closes it
        self._seat = Seat(model=self._model, slot=self._slot)
        self._instructions, self._seed = instructions, seed

    def act(self, observation: str, info: Info | None = None) -> str:
        """The action for an observation. ``info`` is the environment's: the agent may be shown its admissible actions.

        Raises ValueError before ``reset``, CutShortError where the context is full.
        """
        return self.reply(observation, info).action

    def reply(self, observation: str, info: Info | None = None) -> AgentReply:
        """The same with the whole reply, and whether it held an action."""
        if self._slot is None:
            raise ValueError("agent.act before agent.reset: begin an episode with agent.reset(seed=...)")
        if not isinstance(observation, str):
            raise ValueError(f"expected an observation, which is a string; got {type(observation).__name__}")
        seat, engine, config = self._seat, self._model.engine, self._model.config
        seat.observe(observation, dict(info or {}), self._instructions)
        prompt = prompt_of(seat, self._sampling.max_tokens)
        if not prompt.fits:
            raise CutShortError(
                f"the context is full: {prompt.length} tokens and a reply of {self._sampling.max_tokens} do not fit "
                f"into agent.max_context_tokens={min(config.max_context_tokens, engine.max_length)}"
            )
        key = mix("reply", self._seed, len(seat.turns))
        processor = seat.processor(listed_actions(info or {}), self._sampling.max_tokens, self._sampling, key)
        engine.submit(self._slot, prompt.ids, fresh=prompt.fresh, key=key, sampling=self._sampling, processor=processor)
        (reply,) = _finished(engine)
        if seat.fault:
            raise ValueError(seat.fault)
        text = self._model.chat.decode(reply.ids)
        parsed = seat.read(text)
        seat.add_turn(
            Turn(
                observation=observation,
                prompt_ids=seat.prompt,
                continues=seat.continues,
                action_ids=reply.ids,
                logprobs=reply.logprobs,
                entropies=reply.entropies,
                reply=text,
                action=parsed.text,
                valid=parsed.valid,
                reward=0.0,
                processing=reply.processing,
                request=request_of(info or {}),
            )
        )
        return AgentReply(text, parsed.text, parsed.valid)

    def close(self) -> None:
        """Give back the episode's place in the engine."""
        if self._slot is not None:
            self._given_back()
            self._slot = None


def _finished(engine: Any) -> list[Any]:
    """The replies of the first step that finishes any: one is being made."""
    while not (replies := engine.step()):
        pass
    return list(replies)


class _InEpisode:
    """A model as a scripted player of an ``Episode``."""

    def __init__(self, acting: Acting, instructions: str, seed: int, max_turns: int) -> None:
        self._acting, self._instructions, self._seed = acting, instructions, seed
        self._left = max_turns

    def begin(self, observation: str, info: Info) -> None:
        self._acting.reset(instructions=self._instructions, seed=self._seed)

    def act(self, observation: str, info: Info) -> AgentReply:
        if self._left == 0:
            raise CutShortError("max_turns")
        self._left -= 1
        return self._acting.reply(observation, info)


def as_player(model: ModelAgent, sampling: Sampling | None = None) -> Scripted:
    """A model that plays an episode turn by turn, where whoever plays is asked for text (``turnwise play``)."""

    def make(env: TextEnv, seed: int) -> _InEpisode:
        return _InEpisode(Acting(model, sampling), instructions_of(env), seed, model.config.max_turns)

    return Scripted(model.name, make)
