"""Define the tables and keys of a scenario file, as it is written.

Called by `chaos.scenario.file`, which adds the keys that one kind of fault, workload or check takes
besides these; complains by `pairfile.values`. Editors show the docstring of a field for its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from coloctl.chaos.scenario.values import Span, When
from coloctl.pairfile.values import complaint


def _span(value: object) -> Span:
    """Return a number as a span, and check that the first of two is not the greater."""
    ends = value if isinstance(value, list) else [value, value]
    match [float(n) for n in ends if isinstance(n, int | float) and not isinstance(n, bool)]:
        case [low, high] if len(ends) == 2:
            pass
        case _:
            raise complaint("This must be a number of seconds, or two: [2.0, 5.0].")
    if not 0 <= low <= high:
        raise complaint(
            f"[{low:g}, {high:g}] is no span of time.", "the smaller number comes first"
        )
    return low, high


def _when(value: object) -> When:
    """Return the moment of that name."""
    if value not in list(When):
        raise complaint(f'"{value}" is no moment.', "one of " + ", ".join(When))
    return When(str(value))


_Span = Annotated[Span, BeforeValidator(_span, json_schema_input_type=float | list[float])]
_When = Annotated[When, BeforeValidator(_when, json_schema_input_type=When)]


class ScenarioTable(BaseModel):
    """A TOML table: exact types, no key that is not listed."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


class OpenTable(ScenarioTable):
    """A table that also has the keys of its kind."""

    model_config = ConfigDict(extra="allow")

    @property
    def rest(self) -> Mapping[str, Any]:
        """The keys of its kind."""
        return self.model_extra or {}


class SteadyTable(ScenarioTable):
    """The conditions before the first fault; a run that never meets them is unknown."""

    protection: str = "colo"
    """State of the pair."""
    checkpoints_min: int = Field(3, ge=0)
    """Complete checkpoints since protection began."""
    acknowledged_min: int = Field(20, ge=0)
    """Operations acknowledged to the clients of each workload."""
    within_s: float = Field(120.0, gt=0)
    """How long that may take, seconds."""


class WorkloadTable(OpenTable):
    """Clients that work from before protection begins until the end."""

    kind: str
    """Their work; `coloctl chaos list --kinds` lists the kinds."""
    name: str = ""
    """Distinguishes their histories; the kind unless given."""
    clients: int = Field(4, ge=1, le=64)
    """How many, each with a connection of its own."""
    begins: Literal["booted", "protected"] = "booted"
    """They come when the guest serves, or not before the pair is in COLO."""


class ChoiceTable(OpenTable):
    """One of the faults of which a random one is drawn."""

    kind: str
    """The kind of fault."""
    target: str = ""
    """Its target, resolved when it is injected; may be left out for a kind with one target only."""
    duration_s: _Span | None = None
    """Healed after so long; at the end otherwise."""
    when: _When | None = None
    """It is injected at the next moment of this kind."""
    weight: float = Field(1.0, gt=0)
    """How often it is drawn, against the others."""


class FaultTable(OpenTable):
    """A fault. Numbers of seconds may be two, between which the seed chooses."""

    name: str = ""
    """For `after`; made of the kind and a number unless given."""
    kind: str = ""
    """The kind of fault; `coloctl chaos list --kinds` lists them."""
    target: str = ""
    """Its target, resolved when it is injected; may be left out for a kind with one target only."""
    at_s: _Span = (0.0, 0.0)
    """Not before so many seconds after the steady state, or after the fault named by `after`."""
    when: _When | None = None
    """It is injected at the next moment of this kind."""
    after: str = ""
    """The name of a fault that comes first."""
    every_s: _Span = (0.0, 0.0)
    """Between two of `times`."""
    times: int = Field(1, ge=1, le=10_000)
    """How often it is injected."""
    duration_s: _Span | None = None
    """Healed after so long; at the end otherwise."""
    random: list[ChoiceTable] = []
    """In place of kind and target: one of these, drawn each time."""


class LabGuestTable(ScenarioTable):
    """The lab's guest, where it differs from the usual one; `pair.guest` changes its machine."""

    loopback: bool = True
    """It has had a TCP connection, to itself, before any client comes."""
    syncookies: int = Field(2, ge=0, le=2)
    """Its net.ipv4.tcp_syncookies."""


class ScenarioFile(ScenarioTable):
    """A scenario."""

    title: str = Field(min_length=1)
    """The scenario in one line."""
    why: str = Field(min_length=1)
    """The consequence for users if this went wrong."""
    seed: int = Field(1, ge=0)
    """Decides all that is left to chance."""
    promises: list[int] = []
    """The promises of the README that it attacks."""
    settle_s: float = Field(3.0, ge=0, le=600)
    """Load goes on for so long after the last fault was healed, seconds."""
    steady_state: SteadyTable = Field(default_factory=lambda: SteadyTable.model_validate({}))
    """The conditions before the first fault."""
    pair: dict[str, dict[str, Any]] = {}
    """Tables laid over the lab's pair file."""
    guest: LabGuestTable = Field(default_factory=lambda: LabGuestTable.model_validate({}))
    """The properties of the lab's guest."""
    workload: list[WorkloadTable] = Field(min_length=1)
    """Clients."""
    fault: list[FaultTable] = []
    """The faults."""
    expect: dict[str, dict[str, Any]] = Field(min_length=1)
    """Checks by name, with their keys."""
