"""Define a fault: its targets and parameters, how it is injected and healed, what it may touch.

Called by `chaos.run.engine` and `api.faults`, which inject faults and heal them in a `lab.network`.
Each kind is a subclass of `Fault` in a module beside this one, and the first sentence of its class
describes it.

Invariant: heal() undoes what inject() changed, however often it is called and also where the
target has changed since. A kill cannot be undone, so its heal() changes nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from coloctl import pairfile
from coloctl.chaos.evidence.records import FaultResult
from coloctl.chaos.run.site import Site
from coloctl.chaos.scenario.tables import Params
from coloctl.errors import NotProtected
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec
from coloctl.model.view import PairView, Presence

#: One QMP command of a fault, seconds.
QMP_S = 20.0
#: The targets that most faults share: a role, resolved when the fault is injected, or a node.
NODES = ("primary", "secondary", "a", "b")

P = TypeVar("P", bound=Params)


class NothingToHit(NotProtected):
    """There was nothing that this fault could change; the run proves nothing."""


class TargetNode(NamedTuple):
    """A node that a fault may hit: one with a QEMU."""

    name: str
    role: str
    pid: int  #: as this system numbers it


class Ask(Protocol):
    """One command to the supervisor; raises its `ColoctlError`."""

    def __call__(self, name: str, timeout_s: float, /, **arguments: Any) -> Any: ...


@dataclass(frozen=True)
class PairUnderTest:
    """The pair that faults act on, and its site.

    ``ask`` has a connection of its own, so that a fault which is a command of an operator may wait.
    """

    name: str
    site: Site
    home: Path  #: the folder with the pair file and its disks
    view: Callable[[], PairView]  #: asks for the pair as it is now
    ask: Ask
    #: By node and number in its machine, those outside of it that are known already.
    outer: Mapping[tuple[str, int], int | None] = field(default_factory=dict)

    @property
    def lab(self) -> Lab:
        """The lab of the site."""
        return self.site.lab

    def nodes(self, target: str) -> list[TargetNode]:
        """Return the nodes of ``target`` that have a QEMU.

        A node that died keeps its pid in the view until its failover is over, and is left out.
        """
        return [
            TargetNode(node.name, str(node.role), pid)
            for node in self.view().nodes.values()
            if node.pid
            and node.presence is not Presence.DEAD
            and (target == "both" or target in (node.name, node.role))
            and (pid := self._outer(node.name, node.pid))
        ]

    def numbers(self, view: PairView) -> dict[tuple[str, int], int | None]:
        """Return the numbers of the QEMUs in ``view`` outside of their machines, for `outer`."""
        found = ((node.name, node.pid) for node in view.nodes.values() if node.pid)
        return {(name, pid): self.site.outer(name, pid) for name, pid in found}

    def _outer(self, node: str, pid: int) -> int | None:
        known = self.outer.get((node, pid))
        return self.site.outer(node, pid) if known is None else known

    def node(self, target: str) -> TargetNode:
        """Return the first node of ``target``; raises `NothingToHit` where no QEMU is there."""
        return self.some(target)[0]

    def some(self, target: str) -> list[TargetNode]:
        """Return the nodes of ``target``, at least one; raises `NothingToHit`."""
        if not (found := self.nodes(target)):
            raise NothingToHit(f"there was no {target} to hit")
        return found

    def spec(self) -> PairSpec:
        """Read the file of the pair."""
        return pairfile.load(self.home / f"{self.name}.toml")

    def qmp(self, node: str, execute: str, **arguments: Any) -> Any:
        """Send one QMP command to a node; a QEMU in a checkpoint answers after it."""
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.ask("node-qmp", QMP_S, node=node, execute=execute, arguments=given)


@dataclass(frozen=True)
class Injected:
    """A fault that has taken effect."""

    at_s: float  #: monotonic; just before it took effect
    nodes: tuple[str, ...] = ()  #: the nodes that it hit
    role: str = ""  #: of the one node that it hit, just before
    note: str = ""


@dataclass
class Setup:
    """The setup of a run's pair, before its file is written; preparations change it.

    Note the difference: a `PairUnderTest` runs already.
    """

    name: str
    home: Path
    site: Site
    qemu: Path  #: the binary that the pair file names
    environment: dict[str, str] = field(default_factory=dict)  #: the supervisor's, added to ours
    images: dict[str, Path] = field(default_factory=dict)  #: per node, a folder for its images


@contextlib.contextmanager
def environment_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


#: Prepares a pair for a fault that needs it, and clears the preparation away after the run.
Prepare = Callable[[Setup], AbstractContextManager[None]]


class Fault(Generic[P]):
    """One fault of one run; a subclass for each kind."""

    kind: ClassVar[str]
    doc: ClassVar[str]  #: the first sentence of the class
    targets: ClassVar[tuple[str, ...]]
    params: ClassVar[type[Params]] = Params
    lasting: ClassVar[bool] = False  #: it lasts until it is healed, so a duration makes sense
    prepare: ClassVar[Prepare | None] = None
    sites: ClassVar[tuple[str, ...]] = ("lab", "machines")  #: where it can be injected

    def __init_subclass__(cls) -> None:
        """Take the description from the docstring, which is missing under ``python -OO``."""
        cls.doc = " ".join((cls.__doc__ or cls.__name__).split("\n\n")[0].split())

    def __init__(self, pair: PairUnderTest, target: str, given: P) -> None:
        self.pair = pair
        self.target = target
        self.given = given

    def inject(self) -> Injected:
        """Break something; raises `NothingToHit`, and undoes itself on any error."""
        try:
            return self.begin()
        except BaseException:
            self.heal()
            raise

    def begin(self) -> Injected:
        """Change the pair as this kind does; called by `inject` alone, once."""
        raise NotImplementedError

    def heal(self) -> None:
        """Undo what was changed, if anything was; may be called any number of times."""

    def result(self) -> FaultResult:
        """Return what came of the fault, known once it is healed; empty where there is nothing."""
        return ""

    def lived_on(self) -> bool | None:
        """Return whether the process that was hit still lives; None where that is not asked."""
        return None

    def close(self) -> None:
        """Release what watches the target; called once, at the end of the run."""


#: All kinds of faults by name; importing a module of this package registers its kinds.
FAULTS: dict[str, type[Fault[Any]]] = {}

F = TypeVar("F", bound=type[Fault[Any]])


def fault(kind: str) -> Callable[[F], F]:
    """Register a class as the fault of that kind."""

    def register(made: F) -> F:
        made.kind = kind
        FAULTS[kind] = made
        return made

    return register


def build(
    kinds: Mapping[str, type[Fault[Any]]],
    pair: PairUnderTest,
    kind: str,
    target: str,
    params: Params,
) -> Fault[Any]:
    """Build a fault that is not injected yet, from the checked keys of its kind."""
    return kinds[kind](pair, target, kinds[kind].params.of(params))
