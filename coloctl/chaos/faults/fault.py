"""What a fault is: a function that strikes and answers how to heal, and what it may be aimed at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from coloctl.chaos.scenario.values import Planned
from coloctl.lab.network import Lab

#: The targets that most faults share: a role, resolved when the fault falls, or a node by name.
NODES = ("primary", "secondary", "a", "b")


class Params(BaseModel):
    """The keys that a fault takes besides its target and its times; each has a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Ground:
    """What faults act on: one pair in one lab."""

    name: str  #: the pair's
    lab: Lab
    home: Path  #: the folder with the pair file and its disks
    view: Callable[[], Mapping[str, Any]]  #: the pair now, the answer of query-pair


class Ask(Protocol):
    """One command to the supervisor; raises its `ColoctlError`."""

    def __call__(self, name: str, timeout_s: float, /, **arguments: Any) -> Any: ...


@dataclass(frozen=True)
class Blow:
    """A fault has been dealt. ``heal`` takes it back, however often it is called, and whatever has
    become of the target since; what cannot be taken back (a kill) is healed by doing nothing.
    """

    at_s: float  #: monotonic; just before it took effect
    heal: Callable[[], None] = lambda: None
    nodes: tuple[str, ...] = ()
    role: str = ""
    note: str = ""
    missed: str = ""  #: a sentence when there was nothing to hurt
    #: What became of it, known once it is healed: an operator was refused, say.
    outcome: Callable[[], str] = lambda: ""


#: ``ask`` has a connection of its own: a fault that is an act of an operator may wait for it.
Strike = Callable[[Ground, Planned, Ask], Blow]


@dataclass
class Staging:
    """How the pair of a run is set up, before its file is written; preparations change it."""

    name: str
    home: Path
    lab: Lab
    qemu: Path  #: the binary that the pair file names
    environment: dict[str, str] = field(default_factory=dict)  #: the supervisor's, added to ours
    images: dict[str, Path] = field(default_factory=dict)  #: per node, a folder for its images


#: Sets the stage for a fault that needs it, and clears it away when the run is over.
Prepare = Callable[[Staging], AbstractContextManager[None]]


@dataclass(frozen=True)
class FaultKind:
    """One kind of fault."""

    doc: str  #: one line: what is true from then on
    strike: Strike
    targets: tuple[str, ...]
    params: type[Params] = Params
    lasting: bool = False  #: it lasts until it is healed, so a duration makes sense
    prepare: Prepare | None = None
