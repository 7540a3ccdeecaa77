"""The scenario file as written: its tables and keys.

What one kind of fault, work or check takes beyond these is its own (scenario_file.py). A field's
docstring is what editors show for the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from coloctl.chaos.scenario.values import Span, When
from coloctl.pairfile.values import complaint


def _span(value: object) -> Span:
    """A number, or two of which the first is not the greater, as two."""
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
    if value not in list(When):
        raise complaint(f'"{value}" is no moment.', "one of " + ", ".join(When))
    return When(str(value))


_Span = Annotated[Span, BeforeValidator(_span, json_schema_input_type=float | list[float])]
_When = Annotated[When, BeforeValidator(_when, json_schema_input_type=When)]


class Table(BaseModel):
    """A TOML table: exact types, no key that is not listed."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


class OpenTable(Table):
    """One that also has the keys of its kind."""

    model_config = ConfigDict(extra="allow")

    @property
    def rest(self) -> Mapping[str, Any]:
        return self.model_extra or {}


class SteadyTable(Table):
    """What must hold before the first fault; a run that never comes so far is unknown."""

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
    """What they do; `coloctl chaos list --kinds` tells what there is."""
    name: str = ""
    """Tells their histories apart; the kind unless given."""
    clients: int = Field(4, ge=1, le=64)
    """How many, each with a connection of its own."""
    begins: Literal["booted", "protected"] = "booted"
    """They come when the guest serves, or not before the pair is in COLO."""


class ChoiceTable(OpenTable):
    """One of the faults of which a random one is drawn."""

    kind: str
    """What goes wrong."""
    target: str = ""
    """What it hits, resolved when it falls; may be left out where a kind has one target only."""
    duration_s: _Span | None = None
    """Healed after so long; at the end otherwise."""
    when: _When | None = None
    """It falls at the next moment of this kind."""
    weight: float = Field(1.0, gt=0)
    """How often it is drawn, against the others."""


class FaultTable(OpenTable):
    """Something that goes wrong. Numbers of seconds may be two, between which the seed chooses."""

    name: str = ""
    """For `after`; made of the kind and a number unless given."""
    kind: str = ""
    """What goes wrong; `coloctl chaos list --kinds` tells what there is."""
    target: str = ""
    """What it hits, resolved when it falls; may be left out where a kind has one target only."""
    at_s: _Span = (0.0, 0.0)
    """Not before so many seconds after the steady state, or after the fault named by `after`."""
    when: _When | None = None
    """It falls at the next moment of this kind."""
    after: str = ""
    """The name of a fault that comes first."""
    every_s: _Span = (0.0, 0.0)
    """Between two of `times`."""
    times: int = Field(1, ge=1, le=10_000)
    """How often it falls."""
    duration_s: _Span | None = None
    """Healed after so long; at the end otherwise."""
    random: list[ChoiceTable] = []
    """In place of kind and target: one of these, drawn each time."""


class GuestTable(Table):
    """How the lab's guest differs from itself; `pair.guest` changes its machine."""

    loopback: bool = True
    """It has had a TCP connection, to itself, before any client comes."""
    syncookies: int = Field(2, ge=0, le=2)
    """Its net.ipv4.tcp_syncookies."""


class ScenarioFile(Table):
    """A scenario."""

    title: str = Field(min_length=1)
    """What happens, in one line."""
    why: str = Field(min_length=1)
    """What it would mean if this went wrong."""
    seed: int = Field(1, ge=0)
    """Decides whatever is left to chance."""
    promises: list[int] = []
    """Those of the README that it attacks."""
    settle_s: float = Field(3.0, ge=0, le=600)
    """Load goes on for so long after the last fault was healed, seconds."""
    steady_state: SteadyTable = Field(default_factory=lambda: SteadyTable.model_validate({}))
    """What must hold first."""
    pair: dict[str, dict[str, Any]] = {}
    """Tables laid over the lab's pair file."""
    guest: GuestTable = Field(default_factory=lambda: GuestTable.model_validate({}))
    """How the lab's guest is told to be."""
    workload: list[WorkloadTable] = Field(min_length=1)
    """Clients."""
    fault: list[FaultTable] = []
    """What goes wrong."""
    expect: dict[str, dict[str, Any]] = Field(min_length=1)
    """Checks by name, with their keys."""
