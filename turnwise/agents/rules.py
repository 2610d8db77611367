"""Decoding as a processor: what each token of a reply is drawn from, changed by rules (docs/decoding.md).

``Decoded`` asks the processor that restricts the reply (``guiding.py``, ``forms.py``), if there is one. Where that
leaves a choice, a second model may draw the token; else rules see the distribution over what is left. Each gives a
temperature in turn, and then says which tokens it leaves out. All of it is recorded with the turn, so that the learner
scores under the same (``models/processing.py``). Rules count what they do, for the metrics.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from turnwise.agents.decoding import MirostatConfig, SecondConfig
from turnwise.heat import Heat
from turnwise.models.processing import FREE, Processor, Step, inside

Draw = Callable[[Sequence[int], Step], tuple[int, float]]
"""A second model's token after some tokens of the reply, and the entropy of its distribution in nats."""


class Acted:
    """How often rules acted, and how much, since last asked: sums over tokens."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}

    def add(self, **counts: float) -> None:
        for name, count in counts.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(count)

    def take(self) -> dict[str, float]:
        """The sums by name; they begin anew."""
        found, self._sums = self._sums, {}
        return found


class Rule:
    """Changes what the tokens of one reply are drawn from. Asked for each token that is a choice.

    ``reads``: whether it needs the token's logits.
    """

    reads = True

    def temperature(self, logits: Tensor, temperature: float) -> float:
        """The token's temperature. ``logits`` [V] are -inf where a token is not allowed."""
        return temperature

    def dropped(self, logprobs: Tensor) -> Tensor | None:
        """Tokens to leave out, [V] bool, of log-probs [V] at the token's temperature. None: none."""
        return None

    def after(self, token: int, *, chosen: bool) -> None:
        """The token that came; not ``chosen``: nothing was asked."""


class Steered(Rule):
    """Counts the tokens of a policy whose states are steered. The policy has done the rest (``models/steering.py``)."""

    reads = False

    def __init__(self, acted: Acted) -> None:
        self._acted = acted

    def after(self, token: int, *, chosen: bool) -> None:
        if chosen:
            self._acted.add(steering_share=1)


class HeatRule(Rule):
    """A temperature by the entropy of each token's distribution (``turnwise.heat``)."""

    def __init__(self, heat: Heat, acted: Acted) -> None:
        self._heat, self._acted = heat, acted

    def temperature(self, logits: Tensor, temperature: float) -> float:
        entropy = float(torch.special.entr(torch.softmax(logits / temperature, -1)).sum())
        factor = self._heat.factor(entropy)
        self._acted.add(heat_share=factor != 1, heat_change=abs(factor - 1))
        return temperature * factor


class Mirostat(Rule):
    """Leaves out tokens whose surprise is above a bound, which the surprise of each token moves.

    surprise = -ln p(token), of the whole distribution; bound = 2 target at first, then

        bound <- min(bound - rate (surprise - target), ceiling target)
    """

    def __init__(self, config: MirostatConfig, acted: Acted) -> None:
        self._config, self._acted = config, acted
        self._bound = 2 * config.target
        self._logprobs = torch.zeros(0)

    def dropped(self, logprobs: Tensor) -> Tensor | None:
        self._logprobs = logprobs
        found = below(logprobs, -self._bound)
        self._acted.add(mirostat_share=bool(found.any()), mirostat_mass=float(logprobs[found].exp().sum()))
        return found

    def after(self, token: int, *, chosen: bool) -> None:
        if not chosen:
            return
        config, surprise = self._config, -float(self._logprobs[token])
        self._bound = min(self._bound - config.rate * (surprise - config.target), config.ceiling * config.target)
        self._acted.add(mirostat_surprise=surprise)


class ActionFloor(Rule):
    """A least temperature, and a least probability, for the tokens of an action, of which ``part`` tells."""

    def __init__(self, part: ActionPart, temperature: float | None, probability: float, acted: Acted) -> None:
        self._part, self._least, self._probability, self._acted = part, temperature or 0.0, probability, acted

    def temperature(self, logits: Tensor, temperature: float) -> float:
        if not self._part.begun:
            return temperature
        raised = max(temperature, self._least)
        self._acted.add(action_share=1, floor_share=raised > temperature, floor_change=raised / temperature - 1)
        return raised

    def dropped(self, logprobs: Tensor) -> Tensor | None:
        if not self._part.begun or not self._probability:
            return None
        found = below(logprobs, math.log(self._probability))
        self._acted.add(floor_cut_share=bool(found.any()), floor_mass=float(logprobs[found].exp().sum()))
        return found

    def after(self, token: int, *, chosen: bool) -> None:
        self._part.read(token)


class ActionPart:
    """Whether the next token of a reply is of its action: ``begun``.

    ``read`` finds the tags in the reply (``guiding.TagReader``); None: the whole reply is an action. ``is_open``: the
    prompt opens a thought. ``tagged``: an action stands in ``<action>``.
    """

    def __init__(
        self, read: Callable[[int], tuple[str, str] | None] | None, *, is_open: bool = False, tagged: bool = False
    ) -> None:
        self._read, self._thinks, self._tagged = read, is_open, tagged
        self.begun = read is None or not (is_open or tagged)

    def read(self, token: int) -> None:
        tag = self._read(token) if self._read is not None else None
        if tag is None:
            return
        name = tag[0]
        if name.endswith("think"):
            self._thinks = name == "think"
            self.begun = not self._thinks and not self._tagged
        elif self._tagged and not self._thinks:
            self.begun = name == "action"


class Switch:
    """Which of two models draws the next token: the other one while the mean entropy of a window is above a threshold.

    A model draws ``least`` tokens at least. Tokens that are no choice count for neither.
    """

    def __init__(self, config: SecondConfig, draw: Draw, acted: Acted) -> None:
        self._config, self._acted, self.draw = config, acted, draw
        self._entropies: deque[float] = deque(maxlen=config.window)
        self._drawn = 0  # tokens since the last change
        self.is_on = False

    def after(self, entropy: float) -> None:
        """The entropy of the distribution that the last token was drawn from, nats."""
        self._entropies.append(entropy)
        self._drawn += 1
        self._acted.add(second_share=self.is_on)
        full = len(self._entropies) == self._config.window
        wanted = sum(self._entropies) / len(self._entropies) > self._config.threshold
        if full and wanted != self.is_on and self._drawn >= self._config.least:
            self.is_on, self._drawn = wanted, 0
            self._acted.add(second_switches=1)


class Decoded:
    """The processor of a reply: what ``held`` allows (None: every token), and how ``rules`` change it.

    ``temperature`` is the reply's; 0: greedy, where no rule applies.
    """

    def __init__(
        self, held: Processor | None, rules: Sequence[Rule], switch: Switch | None, temperature: float, acted: Acted
    ) -> None:
        self._held, self._rules, self._switch = held, rules, switch
        self._temperature, self._acted = temperature, acted
        self._said: list[int] = []
        self._step: Step | None = None  # of what holds the reply
        self._chosen = False
        self._entropy: float | None = None  # of the token that the second model has drawn

    @property
    def needs_logits(self) -> bool:
        if self._step is None and self._held is not None and self._held.needs_logits:
            return True
        second = self._switch is not None and self._switch.is_on
        return any(rule.reads for rule in self._rules) and not second and self._allowed(None).only is None

    def before(self, logits: Tensor | None) -> Step:
        step = self._allowed(logits)
        self._chosen, self._entropy = step.only is None, None
        if not self._chosen:
            return step
        self._acted.add(tokens=1)
        if self._switch is not None and self._switch.is_on:
            token, self._entropy = self._switch.draw(self._said, step)
            return Step(forced=token)
        return step if logits is None or not self._rules else self._changed(step, logits)

    def _allowed(self, logits: Tensor | None) -> Step:
        if self._step is None:
            self._step = FREE if self._held is None else self._held.before(logits)
        return self._step

    def _changed(self, step: Step, logits: Tensor) -> Step:
        left, temperature = inside(logits, step), self._temperature
        for rule in self._rules:
            temperature = rule.temperature(left, temperature)
        logprobs = torch.log_softmax(left / temperature, -1)
        dropped = [found for rule in self._rules if (found := rule.dropped(logprobs)) is not None and found.any()]
        own = None if temperature == self._temperature else temperature
        if not dropped:
            return Step(step.allowed, temperature=own, excluded=step.excluded)
        return Step.of(~torch.isneginf(left) & ~torch.stack(dropped).any(0), own)

    def after(self, token: int, logprob: float, entropy: float) -> None:
        self._step = None
        self._said.append(token)
        if self._held is not None:
            self._held.after(token, logprob, entropy)
        by_second = self._entropy is not None
        for rule in self._rules:
            rule.after(token, chosen=self._chosen and not by_second)
        if self._switch is not None and self._chosen:
            self._switch.after(entropy if self._entropy is None else self._entropy)


def below(logprobs: Tensor, least: float) -> Tensor:
    """The allowed tokens whose log-probability is below ``least``, [V] bool; the likeliest is none of them."""
    found = (logprobs < least) & ~torch.isneginf(logprobs)
    found[logprobs.argmax()] = False
    return found
