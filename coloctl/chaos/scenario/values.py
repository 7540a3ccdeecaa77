"""Define the tables of a scenario file; a run takes its scenario from these values as they are.

Made by `chaos.scenario.file` from a file, and by benches and tests in Python. Complaints are made
by `pairfile.values`. Editors show the docstring of a field for its key. A `FaultSpec` is a fault as
it was written. `chaos.scenario.schedule` makes a `ScheduledFault` of it, without any chance.

Invariant: every table is checked when it is made, and never changes afterwards. Fields that are
excluded from documents (``name``, ``params``, ``numbered_from``) are keys of Python alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from coloctl.chaos.scenario.tables import (
    Complaint,
    OfKind,
    Params,
    ScenarioTable,
    Span,
    read_params,
    refuse,
    refuse_twice,
    unlike,
)
from coloctl.pairfile.values import complaint

#: Tables of a pair file that a scenario may lay over that of the lab.
PAIR_TABLES = ("guest", "replication", "checkpoint", "detection", "fencing", "policy")


class When(StrEnum):
    """The next moment at which a fault may be injected, once its time has come."""

    ALONE = "unprotected"  #: the guest runs alone: before a first protection, or after a failover
    STEADY = "steady"  #: the pair is in COLO and has taken a few checkpoints since
    CHECKPOINT = "checkpoint"  #: the primary has just stopped for a checkpoint
    VMSTATE_LOAD = "vmstate-load"  #: the secondary has stopped to receive and load its state
    RESYNC = "resync"  #: the disks of a new secondary are being brought in sync
    MIGRATING = "migrating"  #: the memory of a new secondary is being sent
    FAILOVER = "failover"  #: a survivor is being promoted
    FAILED = "failed"  #: that came to nothing, and only an operator goes on


def _when(value: object) -> When:
    """Return the moment of that name."""
    if value not in list(When):
        raise complaint(f'"{value}" is no moment.', "one of " + ", ".join(When))
    return When(str(value))


_When = Annotated[When, BeforeValidator(_when, json_schema_input_type=When)]


class _Aimed(OfKind):
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

    @classmethod
    def complete(
        cls, own: dict[str, Any], rest: Mapping[str, Any], kinds: Mapping[str, Any]
    ) -> Iterator[Complaint]:
        """Add the target as well: it may be left out for a kind that has only one."""
        yield from super().complete(own, rest, kinds)
        if (kind := kinds.get(str(own.get("kind")))) is None or own.get("random"):
            return
        if not own.get("target") and len(kind.targets) == 1:
            (own["target"],) = kind.targets
        if (target := own.get("target", "")) not in kind.targets:
            unfit = f'"{target}" is nothing that {kind.kind} can hit.'
            sentence = unfit if target else f"{kind.kind} needs a target."
            yield ("target",), sentence, "one of " + ", ".join(kind.targets)
        if own.get("duration_s") is not None and not kind.lasting:
            yield ("duration_s",), f"{kind.kind} does not last, so nothing heals it.", None


class FaultChoice(_Aimed):
    """One of the faults of which a random one is drawn."""

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
    then_s: Span = (0.0, 0.0)
    """So long after the moment of `when`; the moment must last until then."""
    every_s: Span = (0.0, 0.0)
    """Between two of `times`."""
    times: int = Field(default=1, ge=1, le=10_000)
    """How often it is injected."""
    random: tuple[FaultChoice, ...] = Field(default=(), strict=False)
    """In place of kind and target: one of these, drawn each time."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """Require a kind or faults of which one is drawn, and a moment for a time after it."""
        if not self.kind and not self.random:
            raise complaint("This fault has neither a kind nor a list named random.")
        if self.random and (self.kind or self.target):
            raise complaint("A random fault has no kind of its own.", "leave it out")
        if self.then_s[1] and not all(self.when or one.when for one in self.choices):
            sentence = "This counts from a moment, and the fault names none."
            refuse([(("then_s",), sentence, 'add when = "steady"')])
        return self

    @classmethod
    def of(cls, one: ScheduledFault) -> Self:
        """Return a fault in which nothing is left to chance."""
        return cls.model_validate(vars(one))

    @property
    def choices(self) -> tuple[FaultChoice, ...]:
        """The faults of which one is drawn each time; only one where it is not random."""
        alone = {name: getattr(self, name) for name in _Aimed.model_fields}
        return self.random or (FaultChoice(**alone),)


#: Clients that come then are there before the first fault.
EARLY = ("booted", "protected")


class Workload(OfKind):
    """Clients that work until the end, most of them from before protection begins."""

    what = "workload"

    kind: str
    """Their work; `coloctl chaos list --kinds` lists the kinds."""
    name: str = ""
    """Distinguishes their histories; the kind unless given."""
    clients: int = Field(default=4, ge=1, le=64)
    """How many, each with a connection of its own."""
    begins: Literal["booted", "protected", "unprotected", "steady", "resync", "migrating"] = (
        "booted"
    )
    """They come when the guest serves, when the pair is in COLO, or at such a moment later on."""
    after: str = ""
    """The name of a fault that comes before that moment; of the first such moment unless given."""
    numbered_from: SkipJsonSchema[int] = Field(default=0, exclude=True)
    """The number of its first client: no two of a scenario have the same."""


class SteadyState(ScenarioTable):
    """The conditions before the first fault; a run that never meets them is unknown."""

    protection: str = "colo"
    """State of the pair."""
    checkpoints_min: int = Field(default=3, ge=0)
    """Complete checkpoints since protection began."""
    acknowledged_min: int = Field(default=20, ge=0)
    """Operations acknowledged to the clients of each workload."""
    within_s: float = Field(default=120.0, gt=0)
    """How long that may take, seconds."""


class LabGuest(ScenarioTable):
    """The lab's guest, where it differs from the usual one; `pair.guest` changes its machine."""

    loopback: bool = True
    """It has had a TCP connection, to itself, before any client comes."""
    syncookies: int = Field(default=2, ge=0, le=2)
    """Its net.ipv4.tcp_syncookies."""


class Scenario(ScenarioTable):
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
    settle_s: float = Field(default=3.0, ge=0, le=86_400)
    """Load goes on for so long after the last fault was healed, seconds."""
    notice_s: float = Field(default=0.0, ge=0, le=600)
    """The last fault may stay unnoticed for so long before it is healed, seconds."""
    steady_state: SteadyState = SteadyState()
    """The conditions before the first fault."""
    pair: dict[str, dict[str, Any]] = Field(default_factory=dict)
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
        """Read the keys of each check, in the context of a file."""
        if info.context is None or not isinstance(expect, dict):
            return expect
        kinds, found = info.context["check"], dict(expect)

        def complaints() -> Iterator[Complaint]:
            for name, given in expect.items():
                if name not in kinds:
                    yield unlike((name,), "There is no check called", name, kinds)
                elif isinstance(given, dict):
                    what, keys = f"check {name}", kinds[name].params
                    found[name] = yield from read_params(keys, what, given, (name,))

        refuse(complaints())
        return found

    @model_validator(mode="after")
    def _preceded(self) -> Self:
        """Refuse clients that wait for a fault that is not there, or come before the first."""
        names = [fault.name for fault in self.faults]
        for n, work in enumerate(self.workloads):
            place = ("workload", n, "after")
            if work.after and work.begins in EARLY:
                sentence = "Clients that come before the first fault wait for none."
                refuse([(place, sentence, 'add begins = "unprotected"')])
            if work.after and work.after not in names:
                refuse([unlike(place, "There is no fault called", work.after, names)])
        return self

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
    then_s: float = 0.0
