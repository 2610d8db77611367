"""A model's turn: the tokens that its engine is asked with, and the action that is read from its reply.

An example: an observation made 40 new tokens (``Seat.prompt``), and the engine holds 200 of the context. ``prompt_of``
says that the 40 go on from these. ``ask`` submits them, and ``answer_of`` reads the reply that the engine draws.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from turnwise.agents.actions import ParsedAction, action_start, tokens_before
from turnwise.agents.jobs import Job
from turnwise.agents.seating import NO_IDS, Seat
from turnwise.agents.wishes import Wishes
from turnwise.envs.interface import Info, ignored_of, listed_actions
from turnwise.models.drawing import Sampling
from turnwise.models.engine import Reply
from turnwise.seeds import mix
from turnwise.trajectory import IntArray


class Prompt(NamedTuple):
    """The tokens that are submitted, [P], and whether the engine's context begins afresh with them.

    The context then has ``length`` tokens, and there is room for ``limit`` beside a reply.
    """

    ids: IntArray
    fresh: bool
    length: int
    limit: int

    @property
    def fits(self) -> bool:
        return self.length <= self.limit


def usual(seat: Seat, run: Sampling) -> Sampling:
    """How the replies of a seat are sampled: as the ``run`` says where it learns or is measured.

    A frozen opponent has the limit of its own settings, and no temperatures of the algorithm.
    """
    assert seat.model is not None
    return run if seat.recorded else replace(run, max_tokens=seat.model.config.max_reply_tokens, heat=None)


def prompt_of(seat: Seat, max_reply_tokens: int, *, whole: bool = False) -> Prompt:
    """What the engine is asked with for the next reply of a model.

    ``whole``: the engine may hold less than the seat's context, all of which is submitted. A context that is full
    begins again where the agent's settings say so (``agent.on_overflow=restart``).
    """
    assert seat.model is not None
    assert seat.context is not None
    engine, config = seat.model.engine, seat.model.config
    limit = min(config.max_context_tokens, engine.max_length) - max_reply_tokens
    fresh, ids = not seat.continues, seat.prompt
    if seat.continues and (whole or seat.was_cut):  # of a reply that was cut the engine holds too much
        fresh, ids = True, seat.context_ids()
    length = len(ids) + (0 if fresh else engine.length(seat.slot))
    if length > limit and config.on_overflow == "restart":
        seat.prompt = ids = seat.context.restart()
        seat.continues, fresh, length = False, True, len(ids)
    return Prompt(ids, fresh, length, limit)


def ask(seat: Seat, prompt: Prompt, info: Info, job: Job, run: Sampling, seed: int, begun: IntArray = NO_IDS) -> None:
    """Have the model draw the reply to a prompt, as ``run``, the attempt and the request wish.

    ``seed`` is the run's. ``begun`` [n] are tokens that the reply begins with.
    """
    assert seat.model is not None
    place = (job.task.key, job.key, job.sample, len(seat.turns), *([seat.player] if seat.player else []))
    key = mix("reply", seed, *place)
    run = usual(seat, run)
    sampling = _wishes(seat, info, job).sampling(run)
    processor = seat.processor(listed_actions(info), run.max_tokens, sampling, key, begun)
    seat.model.engine.submit(seat.slot, prompt.ids, fresh=prompt.fresh, key=key, sampling=sampling, processor=processor)


def _wishes(seat: Seat, info: Info, job: Job) -> Wishes:
    """The temperature of an attempt is for what learns, and not for a frozen opponent."""
    return Wishes.of(info, job.temperature if seat.recorded else None)


def not_followed(seat: Seat, info: Info) -> list[str]:
    """What a request wishes of its reply in vain."""
    form = ["form"] if Wishes.of(info).form is not None and seat.form is None else []
    return [*ignored_of(info), *form]


class Answer(NamedTuple):
    """A reply as far as it counts, its text, its action, and how many of its tokens come before that."""

    reply: Reply
    text: str
    action: ParsedAction
    thought_tokens: int


def answer_of(seat: Seat, info: Info, job: Job, run: Sampling, reply: Reply) -> Answer:
    """What a model answered to what it was asked. Raises AgentError where its dialect cannot read the reply."""
    assert seat.model is not None
    chat, style, wishes = seat.model.chat, seat.model.config.action_format, _wishes(seat, info, job)
    reply = wishes.recorded(reply, run)
    kept, text = wishes.cut(reply, chat.decode)
    seat.was_cut = kept is not reply
    action = seat.read(text)
    thought = tokens_before(action_start(text, style), len(kept.ids), lambda n: chat.decode(kept.ids[:n]))
    return Answer(kept, text, action, thought)
