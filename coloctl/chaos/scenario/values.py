"""Define the tables of a scenario file; a run takes its scenario from these values as they are.

Made by `chaos.scenario.file` from a file, and by benches and tests in Python. Complaints are made
by `pairfile.values`. Editors show the docstring of a field for its key. A `FaultSpec` is a fault as
it was written. `chaos.scenario.schedule` makes a `ScheduledFault` of it, without any chance.

Invariant: every table is checked when it is made, and never changes afterwards. Fields that are
excluded from documents (``name``, ``params``, ``numbered_from``) are keys of Python alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from coloctl.chaos.scenario.complaints import refuse, refuse_twice, unlike
from coloctl.pairfile.values import complaint

#: Tables of a pair file that a scenario may lay over that of the lab.
PAIR_TABLES = ("guest", "replication", "checkpoint", "detection", "fencing", "policy")


class When(StrEnum):
    """The next moment at which a fault may be injected, once its time has come."""

    STEADY = "steady"  #: the pair is in COLO and has taken a few checkpoints since
    CHECKPOINT = "checkpoint"  #: the primary has just stopped for a checkpoint
    VMSTATE_LOAD = "vmstate-load"  #: the secondary has stopped to receive and load its state
    RESYNC = "resync"  #: the disks of a new secondary are being brought in sync
    MIGRATING = "migrating"  #: the memory of a new secondary is being sent
    FAILOVER = "failover"  #: a survivor is being promoted
    FAILED = "failed"  #: that came to nothing, and only an operator goes on


def _span(value: object) -> tuple[float, float]:
    """Return a number as a span, and check that the first of two is not the greater."""
    ends = value if isinstance(value, list | tuple) else [value] * 2
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


#: A number of seconds, or two between which the seed chooses.
Span = Annotated[
    tuple[float, float], BeforeValidator(_span, json_schema_input_type=float | list[float])
]
_When = Annotated[When, BeforeValidator(_when, json_schema_input_type=When)]


class Params(BaseModel):
    """The keys of one kind of fault, workload or check, besides those that all of them have."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def of(cls, given: Params) -> Self:
        """Return ``given`` as the keys of this kind; a bare `Params` stands for the defaults."""
        made = cls() if type(given) is Params else given
        assert isinstance(made, cls), f"{type(made).__name__} are the keys of another kind"
        return made


class _ScenarioTable(BaseModel):
    """A table: exact types, no key that is not listed."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        populate_by_name=True,
    )


class KindReader(Protocol):
    """The registered kinds: the context in which a file is read (`chaos.scenario.file`)."""

    def table(self, what: str, own: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
        """Return a table's own keys with its ``params``, made of the keys of its kind."""
        ...

    def checks(self, expect: dict[str, Any]) -> dict[str, Any]:
        """Return the ``params`` of each check."""
        ...


class _OfKind(_ScenarioTable):
    """A table that has the keys of its kind besides its own: they become its ``params``."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})
    what: ClassVar[str]

    params: SkipJsonSchema[SerializeAsAny[Params]] = Field(default_factory=Params, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any, info: ValidationInfo) -> Any:
        """Separate the keys of the kind, as a file has them, and let the reader check them."""
        reader: KindReader | None = info.context
        if reader is None or not isinstance(given, dict):
            return given
        keys = {name for name, one in cls.model_fields.items() if not one.exclude}
        own = {key: value for key, value in given.items() if key in keys}
        return reader.table(cls.what, own, {k: v for k, v in given.items() if k not in own})

    @model_serializer(mode="wrap")
    def _written(self, own: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write all keys side by side, as a file has them."""
        return {**own(self), **self.params.model_dump(mode="json", exclude_none=True)}


class _Aimed(_OfKind):
    """The keys that a fault and one choice of a random one have in common."""

    what = "fault"

    kind: str = ""
    """The kind of fault; `coloctl chaos list --kinds` lists them."""
    target: str = ""
    """Its target, resolved when it is injected; may be left out for a kind with one target only."""
    duration_s: Span | None = None
    """Healed after so long; at the end otherwise."""
    when: _When | None = None
    """It is injected at the next moment of this kind."""


class FaultChoice(_Aimed):
    """One of the faults of which a random one is drawn."""

    what = "choice"

    kind: str
    """The kind of fault."""
    weight: float = Field(default=1.0, gt=0)
    """How often it is drawn, against the others."""


class FaultSpec(_Aimed):
    """A fault. Numbers of seconds may be two, between which the seed chooses."""

    name: str = ""
    """For `after`; made of the kind and a number unless given."""
    at_s: Span = (0.0, 0.0)
    """Not before so many seconds after the steady state, or after the fault named by `after`."""
    after: str = ""
    """The name of a fault that comes first."""
    every_s: Span = (0.0, 0.0)
    """Between two of `times`."""
    times: int = Field(default=1, ge=1, le=10_000)
    """How often it is injected."""
    random: tuple[FaultChoice, ...] = Field(default=(), strict=False)
    """In place of kind and target: one of these, drawn each time."""

    @classmethod
    def of(cls, one: ScheduledFault) -> Self:
        """Return a fault in which nothing is left to chance."""
        return cls.model_validate(vars(one))

    @property
    def choices(self) -> tuple[FaultChoice, ...]:
        """The faults of which one is drawn each time; only one where it is not random."""
        alone = {name: getattr(self, name) for name in _Aimed.model_fields}
        return self.random or (FaultChoice(**alone),)


class Workload(_OfKind):
    """Clients that work from before protection begins until the end."""

    what = "workload"

    kind: str
    """Their work; `coloctl chaos list --kinds` lists the kinds."""
    name: str = ""
    """Distinguishes their histories; the kind unless given."""
    clients: int = Field(default=4, ge=1, le=64)
    """How many, each with a connection of its own."""
    begins: Literal["booted", "protected"] = "booted"
    """They come when the guest serves, or not before the pair is in COLO."""
    numbered_from: SkipJsonSchema[int] = Field(default=0, exclude=True)
    """The number of its first client: no two of a scenario have the same."""


class SteadyState(_ScenarioTable):
    """The conditions before the first fault; a run that never meets them is unknown."""

    protection: str = "colo"
    """State of the pair."""
    checkpoints_min: int = Field(default=3, ge=0)
    """Complete checkpoints since protection began."""
    acknowledged_min: int = Field(default=20, ge=0)
    """Operations acknowledged to the clients of each workload."""
    within_s: float = Field(default=120.0, gt=0)
    """How long that may take, seconds."""


class LabGuest(_ScenarioTable):
    """The lab's guest, where it differs from the usual one; `pair.guest` changes its machine."""

    loopback: bool = True
    """It has had a TCP connection, to itself, before any client comes."""
    syncookies: int = Field(default=2, ge=0, le=2)
    """Its net.ipv4.tcp_syncookies."""


class Scenario(_ScenarioTable):
    """A scenario."""

    name: SkipJsonSchema[str] = Field(default="scenario", exclude=True)
    """That of its file."""
    title: str = Field(min_length=1)
    """The scenario in one line."""
    why: str = Field(min_length=1)
    """The consequence for users if this went wrong."""
    seed: int = Field(default=1, ge=0)
    """Decides all that is left to chance."""
    promises: tuple[int, ...] = Field(default=(), strict=False)
    """The promises of the README that it attacks."""
    settle_s: float = Field(default=3.0, ge=0, le=600)
    """Load goes on for so long after the last fault was healed, seconds."""
    notice_s: float = Field(default=0.0, ge=0, le=600)
    """The last fault may stay unnoticed for so long before it is healed, seconds."""
    steady_state: SteadyState = SteadyState()
    """The conditions before the first fault."""
    pair: dict[str, dict[str, Any]] = {}
    """Tables laid over the lab's pair file."""
    guest: LabGuest = LabGuest()
    """The properties of the lab's guest."""
    workloads: tuple[Workload, ...] = Field(
        validation_alias="workload",
        serialization_alias="workload",
        strict=False,
        json_schema_extra={"minItems": 1},
    )
    """Clients."""
    faults: tuple[FaultSpec, ...] = Field(
        default=(), validation_alias="fault", serialization_alias="fault", strict=False
    )
    """The faults."""
    expect: dict[str, SerializeAsAny[Params]] = Field(min_length=1)
    """Checks by name, with their keys."""

    @field_validator("why")
    @classmethod
    def _one_line(cls, why: str) -> str:
        return " ".join(why.split())

    @field_validator("pair")
    @classmethod
    def _overlaid(cls, pair: dict[str, Any]) -> dict[str, Any]:
        """Refuse the tables that are the lab's."""
        hint = "a scenario may change " + ", ".join(PAIR_TABLES)
        refuse(
            ((table,), "This table is the lab's.", hint)
            for table in pair
            if table not in PAIR_TABLES
        )
        return pair

    @field_validator("workloads")
    @classmethod
    def _numbered(cls, works: tuple[Workload, ...]) -> tuple[Workload, ...]:
        """Complete the names and the numbers of the clients."""
        if not works:
            raise complaint("A scenario needs clients.", "add a [[workload]] table")
        made: list[Workload] = []
        first = 0
        for work in works:
            changed = {"name": work.name or work.kind, "numbered_from": first}
            made.append(work.model_copy(update=changed))
            first += work.clients
        refuse_twice(one.name for one in made)
        return tuple(made)

    @field_validator("faults")
    @classmethod
    def _named(cls, faults: tuple[FaultSpec, ...]) -> tuple[FaultSpec, ...]:
        """Complete the names; refuse two that are equal, and a predecessor that is not there."""
        names = [fault.name for fault in faults if fault.name]
        refuse_twice(names)
        for n, fault in enumerate(faults):
            if fault.after and fault.after == fault.name:
                refuse([((n, "after"), "A fault cannot come after itself.", None)])
            if fault.after and fault.after not in names:
                refuse([unlike((n, "after"), "There is no fault called", fault.after, names)])
        return tuple(
            one.model_copy(update={"name": one.name or f"{one.kind or 'random'}-{n}"})
            for n, one in enumerate(faults, start=1)
        )

    @field_validator("expect", mode="before")
    @classmethod
    def _checks(cls, expect: Any, info: ValidationInfo) -> Any:
        reader: KindReader | None = info.context
        return reader.checks(expect) if reader and isinstance(expect, dict) else expect

    def to_document(self) -> dict[str, Any]:
        """Return the document of a file that describes the same scenario; it has no name."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass(frozen=True)
class ScheduledFault:
    """One fault of one run, with every choice made that is left to chance in its `FaultSpec`."""

    name: str  #: its fault's, with a number where that is injected several times
    kind: str
    target: str
    at_s: float
    when: When | None = None
    after: str = ""
    duration_s: float | None = None
    params: Params = field(default_factory=Params)
