"""The settings of decoding: what an agent's tokens are drawn from, beyond a fixed temperature (docs/decoding.md).

Each section is a method, off by default. They work in training and in evaluation, one after another in this order:
``steering`` changes the policy's own states, ``second`` decides which model draws a token, ``heat`` and ``floor`` its
temperature, ``floor`` and ``mirostat`` which tokens are left out. Greedy replies are changed by ``steering`` and
``second`` alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from turnwise.heat import Heat, Sign, Spread

STEERING_FILE = "steering.safetensors"
"""In the folder of a steered run, and of a model that was exported from one: its own copy of the vector."""


class Section(BaseModel):
    """The settings of one method. ``PAPER`` is where it comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    PAPER: ClassVar[str] = ""

    @classmethod
    def summary(cls) -> str:
        """What the method is, in a sentence, and where it comes from."""
        said = " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())
        return f"{said.removesuffix('.')} ({cls.PAPER})."


class HeatConfig(Section):
    """A temperature by the entropy of each token's distribution: HAPO's, with numbers that stay as they are.

    ``algorithm=hapo`` takes them from the last update, and reports them as mechanisms/EntropyHeat/pivot, above, below.
    """

    PAPER: ClassVar[str] = "Liu et al. 2025, arXiv 2509.16591"

    strength: float = Field(0.05, ge=0, lt=1, description="how far it moves at most, as a share of the temperature")
    pivot: float = Field(description="log-entropy that divides sure from unsure tokens, ln nats")
    above: float = Field(ge=0, description="distance from the pivot to where it has risen all the way")
    below: float = Field(ge=0, description="distance from the pivot to where it has fallen all the way")
    sign: Sign = Field("intended", description="released: sure tokens are heated too, as in HAPO's code")

    @property
    def heat(self) -> Heat:
        return Heat(Spread(self.pivot, self.above, self.below), self.strength, self.sign)


class MirostatConfig(Section):
    """Tokens whose surprise is above a moving bound are left out, so that the mean surprise comes to a target.

    The second version of its authors, which needs no estimate of Zipf's exponent.
    """

    PAPER: ClassVar[str] = "Basu et al. 2021, arXiv 2007.14966"

    target: float = Field(2.0, gt=0, description="surprise that a token is to have in the mean, nats (tau)")
    rate: float = Field(0.1, gt=0, le=1, description="how fast the bound follows (eta)")
    ceiling: float = Field(4.0, ge=2, description="largest bound, as a multiple of the target")


class SecondConfig(Section):
    """Entropy-adaptive decoding: another model draws tokens while the last ones were unsure.

    Its tokens are stored as forced ones: nobody learns them.
    """

    PAPER: ClassVar[str] = "Simonds 2025, arXiv 2502.06833"

    model: str = Field(description="a run, or a model's folder or hub name, with the same tokenizer")
    threshold: float = Field(
        0.5, ge=0, description="mean entropy of the window above which the other model draws, nats"
    )
    window: int = Field(5, ge=1, description="tokens of the window (w)")
    least: int = Field(5, ge=1, description="tokens that a model draws before the other one may")


class FloorConfig(Section):
    """A least temperature, and a least probability, for the tokens of an action.

    An action begins after a thought, with agent.action_format=tags after <action>.
    """

    PAPER: ClassVar[str] = "of probabilities: Hewitt et al. 2022, arXiv 2210.15191"

    temperature: float | None = Field(
        None, gt=0, description="least temperature of the tokens of an action; null: no floor"
    )
    probability: float = Field(
        0.0, ge=0, lt=1, description="tokens of an action that are less probable are left out; the likeliest never is"
    )

    @model_validator(mode="after")
    def _does_something(self) -> FloorConfig:
        if self.temperature is None and not self.probability:
            raise ValueError("agent.decoding.floor has no floor: give temperature or probability, or leave it out")
        return self


class SteeringConfig(Section):
    """A vector is added to the model's states after one layer, so that its actions are less sure, or surer.

    ``turnwise steering RUN --to FILE`` fits one to stored episodes.
    """

    PAPER: ClassVar[str] = "EAST: Rahn et al. 2024, arXiv 2406.00244"

    file: str = Field(description="the vector, a file of `turnwise steering`")
    strength: float = Field(
        0.1,
        allow_inf_nan=False,
        description="length of what is added, as a share of the states' mean norm; below 0: surer actions",
    )

    @field_validator("strength")
    @classmethod
    def _does_something(cls, strength: float) -> float:
        if strength == 0:
            raise ValueError(
                "0 adds nothing: leave agent.decoding.steering out, or set it to null where a run or a model has it"
            )
        return strength


METHODS: Mapping[str, type[Section]] = {
    "heat": HeatConfig,
    "mirostat": MirostatConfig,
    "second": SecondConfig,
    "floor": FloorConfig,
    "steering": SteeringConfig,
}
"""By the name of its section."""


class DecodingConfig(BaseModel):
    """Methods of decoding; null: off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heat: HeatConfig | None = Field(None, description="a temperature by each token's entropy (HAPO)")
    mirostat: MirostatConfig | None = Field(None, description="surprise that is held at a target (Mirostat)")
    second: SecondConfig | None = Field(None, description="another model where this one is unsure (EAD)")
    floor: FloorConfig | None = Field(None, description="floors for the tokens of an action")
    steering: SteeringConfig | None = Field(None, description="states moved towards less sure actions (EAST)")

    def kept_in(self, folder: str | Path) -> DecodingConfig:
        """The same with the vector that a run's or a model's folder holds, if it does: the one that was named may since
        have changed, or have another place.
        """
        vector = Path(folder) / STEERING_FILE
        if self.steering is None or not vector.is_file():
            return self
        kept = self.steering.model_copy(update={"file": str(vector.absolute())})
        return self.model_copy(update={"steering": kept})

    @property
    def names(self) -> list[str]:
        """The methods that are on, by their settings."""
        return [f"agent.decoding.{name}" for name, found in self if found is not None]

    @property
    def only_own(self) -> str:
        """The first method that works in our own engine alone; "": none does."""
        return next((name for name in self.names if name.rpartition(".")[2] in ("second", "steering")), "")
