"""Make disks fail, fill or slow down, below a running QEMU that is not aware of it.

Registered in `chaos.faults`. A filter node is put between a format node and the file below it
(``blockdev-reopen``), and taken out again.

Invariant: the graph above the format node is never touched, so quorum, replication and NBD export
stay as coloctl made them.
"""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from pydantic import Field

from coloctl.chaos.faults.fault import NODES, Fault, Injected, NothingToHit, TargetNode, fault
from coloctl.chaos.scenario.tables import Params
from coloctl.errors import ColoctlError, NoSuchPair

#: How long healing tries again while no supervisor answers: one that was killed is back before.
HEAL_DEADLINE_S = 30.0
#: The format node of each layer, by the number of its disk.
LAYERS = {"image": "parent", "active": "active", "hidden": "hidden"}
#: The requests of blkdebug that "on" stands for. Flushes are left alone: a node whose flush
#: fails is never reopened, so that could not be healed.
IO_TYPES = {"read": ("read",), "write": ("write", "write-zeroes", "discard")}
IO_TYPES["all"] = IO_TYPES["read"] + IO_TYPES["write"]

_numbers = itertools.count(1)

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Filter:
    """A block node to insert: its name, its options, and the object that it needs, if any."""

    name: str
    node: Callable[[str], Arguments]  #: by the node below it
    helper: Arguments | None = None  #: its object


class Layer(Params):
    """The file that is affected: which disk (``disk``), and which file of it (``layer``)."""

    #: ``diskN`` is the N-th disk of the pair file, from 0.
    disk: str = Field(default="disk0", pattern=r"^disk\d+$")
    #: The overlays are a secondary's.
    layer: Literal["image", "active", "hidden"] = "image"

    def filter(self, name: str) -> Filter:
        """Return the filter to insert, under that name."""
        raise NotImplementedError


class DiskErrorParams(Layer):
    """Requests of the kind ``on`` fail with ``errno``."""

    errno: Literal["EIO", "ENOSPC"] = "EIO"
    on: Literal["read", "write", "all"] = "write"

    def filter(self, name: str) -> Filter:
        """Build a filter that ends requests of that kind with that errno."""
        number = getattr(errno, self.errno)
        # The event "none" is every request; an error that is not "once" comes each time.
        rules = [
            {"event": "none", "iotype": kind, "errno": number, "once": False}
            for kind in IO_TYPES[self.on]
        ]
        node: Arguments = {"driver": "blkdebug", "node-name": name, "inject-error": rules}
        return Filter(name, lambda below: {**node, "image": below})


class DiskSlowParams(Layer):
    """Limits of bytes and of requests per second, all kinds together; 0 means no such limit."""

    bytes_per_s: int = Field(default=0, ge=0)
    iops: int = Field(default=20, ge=0)

    def filter(self, name: str) -> Filter:
        """Build a filter that lets so many bytes and requests pass per second."""
        limits = {"bps-total": self.bytes_per_s, "iops-total": self.iops}
        group: Arguments = {
            "qom-type": "throttle-group",
            "id": f"{name}-group",
            "limits": {key: value for key, value in limits.items() if value},
        }
        node = {"driver": "throttle", "node-name": name, "throttle-group": group["id"]}
        return Filter(name, lambda below: {**node, "file": below}, group)


@dataclass(frozen=True)
class FilterPosition:
    """A format node and the file below it, as one QEMU has them."""

    format_node: str
    driver: str
    file: str
    backing: str

    def reopened_on(self, file: str) -> Arguments:
        """Return the options of `blockdev-reopen`; each one left out becomes its default."""
        options: Arguments = {"driver": self.driver, "node-name": self.format_node, "file": file}
        if self.backing:
            options["backing"] = self.backing
        return options


def position_of(
    format_node: str, graph: Mapping[str, Any], nodes: list[Mapping[str, Any]]
) -> FilterPosition | None:
    """Return where a filter goes; None where there is no such node, or no file below it.

    ``graph`` and ``nodes`` are the answers of x-debug-query-block-graph and
    query-named-block-nodes.
    """
    drivers = {node["node-name"]: str(node["drv"]) for node in nodes}
    names = {node["id"]: str(node["name"]) for node in graph["nodes"]}
    children = {
        edge["name"]: names[edge["child"]]
        for edge in graph["edges"]
        if names[edge["parent"]] == format_node
    }
    if format_node not in drivers or "file" not in children:
        return None
    return FilterPosition(
        format_node, drivers[format_node], children["file"], children.get("backing", "")
    )


def _door(filtered: Filter, below: str) -> Arguments:
    """Return the options of the door: a node between the format node and the filter.

    It changes nothing, and is there for healing. A reopened node flushes first, and a format node
    that cannot write its metadata through the filter would not be reopened. The door has nothing to
    write: it is moved from the filter to the file, and then the format node can flush.
    """
    return {"driver": "raw", "node-name": f"{filtered.name}-door", "file": below}


def _patiently(attempt: Callable[[], None]) -> None:
    """Try until it succeeds or the pair is gone (`NoSuchPair`).

    Tries again 0.3 s after any other `ColoctlError`; raises the last after `HEAL_DEADLINE_S`, 30 s.
    """
    give_up = time.monotonic() + HEAL_DEADLINE_S
    while True:
        try:
            attempt()
        except NoSuchPair:
            return
        except ColoctlError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.3)
        else:
            return


L = TypeVar("L", bound=Layer)


class DiskFilter(Fault[L]):
    """A filter below a format node; the base of several kinds."""

    targets = NODES
    lasting = True
    _inserted: tuple[TargetNode, Filter, str] | None = None  #: the last is the file below it

    def begin(self) -> Injected:
        """Insert the filter with all options that its format node had.

        Raises `NothingToHit` when the node has no such format node, or has a filter there already.
        """
        node = self.pair.node(self.target)
        if (position := self._position(node)) is None:
            raise NothingToHit(f"node {node.name} has no {self._format_node}")
        if position.file.startswith("chaos"):
            raise NothingToHit(f"{self._format_node} of node {node.name} is hurt already")
        qmp, made = partial(self.pair.qmp, node.name), self.given.filter(f"chaos{next(_numbers)}")
        self._inserted = node, made, position.file
        if made.helper:
            qmp("object-add", **made.helper)
        qmp("blockdev-add", **made.node(position.file))
        qmp("blockdev-add", **_door(made, made.name))
        at_s = time.monotonic()
        qmp("blockdev-reopen", options=[position.reopened_on(f"{made.name}-door")])
        return Injected(at_s, (node.name,), node.role, f"below {self._format_node}")

    def heal(self) -> None:
        """Take the filter out, if the QEMU that got it still runs; raises as `_patiently` does."""
        if self._inserted is not None:
            _patiently(partial(self._take_out, *self._inserted))

    @property
    def _format_node(self) -> str:
        return LAYERS[self.given.layer] + self.given.disk.removeprefix("disk")

    def _position(self, node: TargetNode) -> FilterPosition | None:
        asked = ("x-debug-query-block-graph", "query-named-block-nodes")
        graph, nodes = (self.pair.qmp(node.name, execute) for execute in asked)
        return position_of(self._format_node, graph, nodes)

    def _take_out(self, node: TargetNode, made: Filter, below: str) -> None:
        """Remove the filter, its door and its object; the format node may be gone already.

        Does nothing when the node has another QEMU by now.
        """
        if (node.name, node.pid) not in [(one.name, one.pid) for one in self.pair.nodes("both")]:
            return
        qmp, door, now = (
            partial(self.pair.qmp, node.name),
            f"{made.name}-door",
            self._position(node),
        )
        if now is not None and now.file == door:
            qmp("blockdev-reopen", options=[_door(made, below)])
            qmp("blockdev-reopen", options=[now.reopened_on(below)])
        # One whose format node was deleted above it is a node of the monitor's own, still here.
        for name in (door, made.name):
            if name in [one["node-name"] for one in qmp("query-named-block-nodes")]:
                qmp("blockdev-del", node_name=name)
        objects = {one["name"] for one in qmp("qom-list", path="/objects")}
        if made.helper and made.helper["id"] in objects:
            qmp("object-del", id=made.helper["id"])


@fault("disk-error")
class DiskError(DiskFilter[DiskErrorParams]):
    """Requests to one file of a disk that fail, until it is healed."""

    params = DiskErrorParams


@fault("disk-slow")
class DiskSlow(DiskFilter[DiskSlowParams]):
    """A file of a disk that serves few requests or bytes per second, until it is healed."""

    params = DiskSlowParams
