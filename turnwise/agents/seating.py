"""Who plays in an episode.

Three words have one meaning each.

    player   who acts, in the environment's own terms: "adversary_0" (PettingZoo calls it an agent). The name is empty
             in an environment of one player.
    seat     the place of one player in one episode. An agent fills it: a language model, or an agent without a model.
    role     what kind of player it is. "adversary_0" and "adversary_1" have the role "adversary", and one policy may
             play both.

Examples, for a game of two players: ``Seating({"": model})`` is self-play. The model fills both seats, and both give a
trajectory. ``Seating({"": model}, opponents={"": scripted("random")})`` gives one seat to the model and the other to an
agent that plays at random. Only the model's seat gives a trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import gymnasium
import numpy as np

from turnwise.agents.actions import ParsedAction, parse_action
from turnwise.agents.chat import ChatFormat
from turnwise.agents.guiding import Guides
from turnwise.agents.jobs import Job
from turnwise.agents.opening import Example, new_context
from turnwise.agents.prompts import AgentConfig, Context, check_context_fits
from turnwise.agents.roles import Roles
from turnwise.agents.toolcalls import Tools, name_of
from turnwise.envs.forms import Form
from turnwise.envs.interface import HasPlayers, Info, capability, sampling_of
from turnwise.errors import AgentError
from turnwise.models.engine import Engine, Sampling
from turnwise.models.processing import Continuing, Processor
from turnwise.models.second import SecondModel
from turnwise.seeds import mix
from turnwise.trajectory import IntArray, Turn

TextEnv = gymnasium.Env[str, str]

NO_IDS = np.zeros(0, np.int32)

NO_FORMS = (
    "a request wants its reply in a form (response_format, or tool_choice with the name of a function), which a vLLM "
    "server cannot keep: leave rollout.vllm.url out, so that vLLM runs in this process, set rollout.backend=own, or "
    "ask for no form"
)


@dataclass(frozen=True, slots=True)
class AgentReply:
    """What an agent answered: its whole reply, the action read from it, and whether the reply held an action."""

    reply: str
    action: str
    valid: bool


class CutShortError(Exception):
    """An agent cannot continue its episode, which is then truncated for ``reason``: "context" where that is full."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Agent(Protocol):
    """Chooses the actions of one episode.

    ``begin`` gets the first observation. ``act`` gets each observation, the first one again, and returns the action, or
    an ``AgentReply`` where more was said than the action.
    """

    def begin(self, observation: str, info: Info) -> None: ...
    def act(self, observation: str, info: Info) -> str | AgentReply: ...


@dataclass(slots=True)
class ModelAgent:
    """A language model that plays.

    ``engine`` generates its replies, ``chat`` and ``config`` say how it is shown the environment, and ``examples`` are
    shown before each episode. ``name``, ``version`` (the number of updates) and ``adapter_hash`` identify its weights
    in trajectories. ``guides`` makes the processor of each reply. ``second`` is another model that may draw tokens.
    """

    engine: Engine
    chat: ChatFormat
    config: AgentConfig
    name: str = ""
    version: int = 0
    adapter_hash: str = ""
    examples: tuple[Example, ...] = ()
    second: SecondModel | None = None
    guides: Guides = field(init=False)

    def __post_init__(self) -> None:
        self.guides = Guides(self.chat, self.config)


@dataclass(frozen=True, slots=True)
class Scripted:
    """An agent without a model of ours. ``make(env, seed)`` returns a fresh one for each episode."""

    name: str
    make: Callable[[TextEnv, int], Agent]


AnyAgent = ModelAgent | Scripted
"""Whatever may fill a seat."""


@dataclass(slots=True)
class Seat:
    """The place of one player in one episode: what it was shown, what it did, and what it earned.

    Either ``model`` or ``agent`` fills it. ``recorded`` says whether the seat gives a trajectory. ``slot`` is the
    model's context in its engine; ``was_cut``: it holds more of the last reply than the seat kept. ``num_shown`` counts
    the turns at the last observation.
    """

    player: str = ""
    role: str = ""
    policy: str = ""
    model: ModelAgent | None = None
    agent: Agent | None = None
    recorded: bool = True
    slot: int = -1
    was_cut: bool = False
    turns: list[Turn] = field(default_factory=list)
    observation: str = ""
    context: Context | None = None
    prompt: IntArray = field(default_factory=lambda: NO_IDS)
    continues: bool = False
    begun: bool = False
    num_shown: int = 0
    form: Form | None = None  # what the next reply is held to
    held: Processor | None = None  # what restricts the last reply that was asked for
    early_reward: float = 0.0  # what the player earned before its first turn, as long as it has none

    def observe(self, observation: str, info: Info, instructions: str) -> None:
        """It is this player's turn. Add the observation to the model's context, as the next ``prompt``."""
        self.observation = observation
        first, self.begun = not self.begun, True
        if self.model is None:
            if first and self.agent is not None:
                self.agent.begin(observation, info)
            return
        if self.context is None:
            model = self.model
            check_context_fits(model.config, info)
            self.context = new_context(model.chat, model.config, instructions, model.examples)
            self.prompt, self.continues = self.context.begin(observation, info), False
        elif len(self.turns) == self.num_shown and isinstance(self.context, Roles):  # the last request was withdrawn
            self.prompt, self.continues = self.context.ask(info)
        else:
            last = self.turns[-1]
            self.prompt, self.continues = self.context.extend(last.action_ids, last.action, observation, info)
        self.num_shown = len(self.turns)
        self.hold(info)

    def hold(self, info: Info) -> None:
        """Take the form that a request wants its reply to have.

        Raises ValueError for one that cannot be kept, and AgentError where the engine keeps none and it must be.
        """
        assert self.model is not None
        self.form = form = Form.of(sampling_of(info))
        if form is None:
            return
        if not self.model.engine.processes:
            if form.must:
                raise AgentError(NO_FORMS)
            self.form = None
        elif not self.model.guides.forms.follows(form, self.tools or ()):
            self.form = None

    @property
    def tools(self) -> Tools | None:
        """The tools that the model can call now; None where it is not known."""
        return self.context.tools if isinstance(self.context, Roles) else None

    def processor(
        self,
        admissible: Sequence[str] | None,
        max_tokens: int,
        sampling: Sampling,
        key: int,
        begun: IntArray = NO_IDS,
    ) -> Processor | None:
        """What decides about the tokens of the next reply; None: nothing.

        ``max_tokens`` is the room for an action. The reply is drawn as ``sampling`` says, with ``key``. ``begun`` [n]
        are its first tokens: they are forced, so that no method of decoding is asked for them.
        """
        assert self.model is not None
        guides, second = self.model.guides, self.model.second
        if self.form is not None:
            self.held = guides.formed(self.form, self.tools or ())
        else:
            self.held = guides.processor(admissible, max_tokens)
        held = Continuing(begun, self.held) if len(begun) else self.held
        draw = None if second is None else second.of_reply(self.slot, self.context_ids(), key, sampling)
        return guides.decoded(held, sampling, draw)

    @property
    def fault(self) -> str:
        """Why the last reply could not have what was asked of it, whatever the model said; "" where it could."""
        return str(getattr(self.held, "fault", ""))

    def read(self, reply: str) -> ParsedAction:
        """The action in a reply of the model that has this seat. Raises AgentError where its dialect cannot read it."""
        assert self.model is not None
        dialect = self.model.chat.dialect
        try:
            return parse_action(reply, self.model.config.action_format, dialect, self.tools, self.form)
        except Exception as error:  # a class of the user's: it may fail in any way
            raise AgentError(
                f"the dialect {name_of(dialect)} (agent.tool_calls) cannot read a reply "
                f"({type(error).__name__}: {error}): read(text, tools) must return a Said for any text, and "
                f"this one is {reply[:200]!r}"
            ) from error

    def add_turn(self, turn: Turn) -> None:
        """Append a turn of this player. The first one gets the reward that was earned before it."""
        self.turns.append(turn)
        self.early_reward, early = 0.0, self.early_reward
        self.add_reward(early)

    def add_reward(self, reward: float) -> None:
        """Add a reward to the player's last turn, or keep it for its first turn where there is none yet."""
        if not self.turns:
            self.early_reward += reward
        elif reward:
            self.turns[-1] = replace(self.turns[-1], reward=self.turns[-1].reward + reward)

    @property
    def total_reward(self) -> float:
        """As ``Trajectory.total_reward``: rounded once, so that a threshold is reached where the rewards reach it."""
        return math.fsum((*(turn.reward for turn in self.turns), self.early_reward))

    def context_ids(self) -> IntArray:
        """All token ids of the present context, [N]: everything since it was last opened afresh, then the prompt."""
        parts = [self.prompt]
        for turn in reversed(self.turns if self.continues else []):
            parts += [turn.action_ids, turn.prompt_ids]
            if not turn.continues:
                break
        return np.concatenate(parts[::-1])


@dataclass(frozen=True)
class Seating:
    """Which agent fills which seat.

    The keys of both mappings are names of players or roles; ``""`` stands for every player that is not named. Without
    ``opponents`` the learners fill every seat. With them a learner fills the seat ``Job.learner_seat``, opponents fill
    the others, and only the learner's seat is recorded. An environment of one player has one seat, the learner's.
    """

    learners: Mapping[str, AnyAgent]
    opponents: Mapping[str, AnyAgent] | None = None

    @property
    def models(self) -> list[ModelAgent]:
        """The language models among the agents."""
        found = [*self.learners.values(), *(self.opponents or {}).values()]
        return [agent for agent in found if isinstance(agent, ModelAgent)]

    @property
    def max_reply_tokens(self) -> int:
        """The limit of a reply of the models that learn or are measured. Opponents have their own, which is given where
        no other model plays.
        """
        own = [agent for agent in self.learners.values() if isinstance(agent, ModelAgent)]
        return max(agent.config.max_reply_tokens for agent in own or self.models)

    def seats(self, env: TextEnv, job: Job, seed: int) -> list[Seat]:
        """A filled seat for every player, in the order of the players. ``seed`` feeds agents without a model."""
        game = capability(env, HasPlayers)
        if game is None:
            return [self._seat(env, "", "", self.learners[""], True, seed)]
        seats = []
        for number, player in enumerate(game.players):
            role = game.role(player)
            learns = self.opponents is None or number == job.learner_seat % len(game.players)
            agents = self.learners if learns or self.opponents is None else self.opponents
            agent = next(agents[name] for name in (player, role, "") if name in agents)
            own_seed = mix("seat", seed, job.task.key, job.key, job.sample, player)
            seats.append(self._seat(env, player, role, agent, learns, own_seed))
        return seats

    @staticmethod
    def _seat(env: TextEnv, player: str, role: str, agent: AnyAgent, recorded: bool, seed: int) -> Seat:
        if isinstance(agent, ModelAgent):
            return Seat(player, role, agent.name, model=agent, recorded=recorded)
        return Seat(player, role, agent.name, agent=agent.make(env, seed), recorded=recorded)
