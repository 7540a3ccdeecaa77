"""Disks that fail, are full or are slow, below a running QEMU that knows nothing of it.

A filter node is put between a format node and the file below it (``blockdev-reopen``), and taken
out again. Invariant: the graph above the format node is never touched, so quorum, replication and
NBD export stay as coloctl made them.
"""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from coloctl.chaos.faults.fault import NODES, Ask, Blow, FaultKind, Ground, Params
from coloctl.chaos.faults.processes import victims
from coloctl.chaos.scenario.values import Planned
from coloctl.errors import ColoctlError, NoSuchPair

#: One QMP command; a QEMU in a checkpoint answers after it.
ASK_S = 20.0
#: How long healing tries again while no supervisor answers: one that was killed is back before.
HEAL_S = 30.0
#: The format node of each layer, by the number of its disk.
LAYERS = {"image": "parent", "active": "active", "hidden": "hidden"}
#: What blkdebug calls the requests that "on" means. Flushes are left alone: a node whose flush
#: fails is never reopened, so that could not be healed.
IO_TYPES = {
    "read": ("read",),
    "write": ("write", "write-zeroes", "discard"),
}
IO_TYPES["all"] = tuple(itertools.chain(*IO_TYPES.values()))

_numbers = itertools.count(1)

Arguments = dict[str, Any]


class Layer(Params):
    """Which file of which disk."""

    #: ``diskN`` is the N-th disk of the pair file, from 0.
    disk: str = Field("disk0", pattern=r"^disk\d+$")
    #: The overlays are a secondary's.
    layer: Literal["image", "active", "hidden"] = "image"


class DiskError(Layer):
    """Every request of a kind fails."""

    errno: Literal["EIO", "ENOSPC"] = "EIO"
    on: Literal["read", "write", "all"] = "write"


class DiskSlow(Layer):
    """Requests of all kinds together; 0 means no limit of that sort."""

    bytes_per_s: int = Field(0, ge=0)
    iops: int = Field(20, ge=0)


@dataclass(frozen=True)
class Place:
    """A format node and what it stands on, as one QEMU has them."""

    format_node: str
    driver: str
    file: str
    backing: str

    def reopened_on(self, file: str) -> Arguments:
        """What `blockdev-reopen` takes to move it; all that is not said falls back to a default."""
        options: Arguments = {"driver": self.driver, "node-name": self.format_node, "file": file}
        if self.backing:
            options["backing"] = self.backing
        return {"options": [options]}


def place_of(
    format_node: str, graph: Mapping[str, Any], nodes: list[Mapping[str, Any]]
) -> Place | None:
    """Where a filter goes, from the answers of x-debug-query-block-graph and
    query-named-block-nodes; None where there is no such node.
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
    return Place(format_node, drivers[format_node], children["file"], children.get("backing", ""))


class _Node:
    """The QEMU of one node, asked through the supervisor."""

    def __init__(self, name: str, pid: int, ground: Ground, ask: Ask) -> None:
        self.name = name
        self._pid = pid
        self._ground = ground
        self._ask = ask

    def qmp(self, execute: str, arguments: Arguments | None = None) -> Any:
        return self._ask(
            "node-qmp", ASK_S, node=self.name, execute=execute, arguments=arguments or {}
        )

    def place(self, format_node: str) -> Place | None:
        graph = self.qmp("x-debug-query-block-graph")
        return place_of(format_node, graph, self.qmp("query-named-block-nodes"))

    def has(self, node_name: str) -> bool:
        return any(n["node-name"] == node_name for n in self.qmp("query-named-block-nodes"))

    def there(self) -> bool:
        """The QEMU that was struck is still the one of its node."""
        return any(
            node["name"] == self.name and node["pid"] == self._pid
            for node in victims("both", self._ground.view())
        )


@dataclass(frozen=True)
class Filter:
    """A block node to insert, and the object that it needs, if any."""

    name: str
    node: Callable[[str], Arguments]  #: by the node below it
    helper: Arguments | None = None  #: its object


def error_filter(name: str, params: Mapping[str, Any]) -> Filter:
    """Requests of that kind end with that errno."""
    number = getattr(errno, params["errno"])
    # The event "none" is every request; an error that is not "once" comes each time.
    rules = [
        {"event": "none", "iotype": kind, "errno": number, "once": False}
        for kind in IO_TYPES[params["on"]]
    ]
    return Filter(
        name,
        lambda below: {
            "driver": "blkdebug", "node-name": name, "image": below, "inject-error": rules
        },
    )  # fmt: skip


def slow_filter(name: str, params: Mapping[str, Any]) -> Filter:
    """No more than so many bytes and requests per second."""
    limits = {"bps-total": params["bytes_per_s"], "iops-total": params["iops"]}
    group = f"{name}-group"
    return Filter(
        name,
        lambda below: {
            "driver": "throttle", "node-name": name, "throttle-group": group, "file": below
        },
        {
            "qom-type": "throttle-group",
            "id": group,
            "limits": {key: value for key, value in limits.items() if value},
        },
    )  # fmt: skip


def _insert(
    ground: Ground, fault: Planned, ask: Ask, make: Callable[[str, Mapping[str, Any]], Filter]
) -> Blow:
    found = victims(fault.target, ground.view())
    if not found:
        return Blow(time.monotonic(), missed=f"there was no {fault.target} to hit")
    victim = found[0]
    node = _Node(victim["name"], victim["pid"], ground, ask)
    format_node = LAYERS[fault.params["layer"]] + fault.params["disk"].removeprefix("disk")
    place = node.place(format_node)
    if place is None:
        return Blow(time.monotonic(), missed=f"node {node.name} has no {format_node}")
    if place.file.startswith("chaos"):
        return Blow(time.monotonic(), missed=f"{format_node} of node {node.name} is hurt already")
    filtered = make(f"chaos{next(_numbers)}", fault.params)

    def heal() -> None:
        _patiently(node, lambda: _take_out(node, format_node, filtered, place.file))

    try:
        if filtered.helper:
            node.qmp("object-add", filtered.helper)
        node.qmp("blockdev-add", filtered.node(place.file))
        node.qmp("blockdev-add", _door(filtered, filtered.name))
        at_s = time.monotonic()
        node.qmp("blockdev-reopen", place.reopened_on(f"{filtered.name}-door"))
    except ColoctlError:
        heal()
        raise
    return Blow(at_s, heal, (node.name,), victim["role"], f"below {format_node}")


def _door(filtered: Filter, below: str) -> Arguments:
    """A node that changes nothing, between the format node and the filter.

    Reopening flushes first. A format node that could not write its metadata would not be reopened
    while the filter is below it; the door has nothing to write, so it turns away from it first.
    """
    return {"driver": "raw", "node-name": f"{filtered.name}-door", "file": below}


def _take_out(node: _Node, format_node: str, filtered: Filter, below: str) -> None:
    """The filter is gone, with its object; what stood above it may be gone before it."""
    if not node.there():
        return
    door, now = f"{filtered.name}-door", node.place(format_node)
    if now is not None and now.file == door:
        node.qmp("blockdev-reopen", {"options": [_door(filtered, below)]})
        node.qmp("blockdev-reopen", now.reopened_on(below))
    # One whose format node was deleted above it is a node of the monitor's own, and still here.
    for name in (door, filtered.name):
        if node.has(name):
            node.qmp("blockdev-del", {"node-name": name})
    if filtered.helper and filtered.helper["id"] in {
        one["name"] for one in node.qmp("qom-list", {"path": "/objects"})
    }:
        node.qmp("object-del", {"id": filtered.helper["id"]})


def _patiently(node: _Node, deed: Callable[[], None]) -> None:
    """Done, or there is nothing left to do it to; tried again while the answer may change."""
    give_up = time.monotonic() + HEAL_S
    while True:
        try:
            deed()
        except NoSuchPair:
            return
        except ColoctlError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.3)
        else:
            return


def disk_error(ground: Ground, fault: Planned, ask: Ask) -> Blow:
    """Requests to one file of one disk fail from now on."""
    return _insert(ground, fault, ask, error_filter)


def disk_slow(ground: Ground, fault: Planned, ask: Ask) -> Blow:
    """One file of one disk takes its time from now on."""
    return _insert(ground, fault, ask, slow_filter)


FAULTS: Mapping[str, FaultKind] = {
    "disk-error": FaultKind(
        "Requests to one file of a disk fail, until it is healed.",
        disk_error,
        NODES,
        DiskError,
        lasting=True,
    ),
    "disk-slow": FaultKind(
        "One file of a disk serves few requests or bytes per second, until it is healed.",
        disk_slow,
        NODES,
        DiskSlow,
        lasting=True,
    ),
}
