"""The lab's wires: cut, one way or of one service, lossy, slow, out of order, narrow, flapping.

A wire has one fault at a time: the next one takes its place, and healing any heals the wire. Cuts
of services are apart from that, and from each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from coloctl import pairfile
from coloctl.chaos.faults.fault import Ask, Blow, FaultKind, Ground, Params, Strike
from coloctl.chaos.scenario.values import Planned
from coloctl.errors import LabError
from coloctl.lab.impairment import Impairment
from coloctl.lab.link import Link
from coloctl.lab.network import Lab
from coloctl.model.pair import NODES, PairSpec

TARGETS = ("replication", "client", "lan-a", "lan-b", "lan-primary", "lan-secondary")

Service = Literal["nbd", "compare", "migration", "heartbeat"]
#: Who sends: a node, by its role or its name, or the machine of the clients.
Sender = Literal["primary", "secondary", "a", "b", "client"]


class Cut(Params):
    """Nothing passes."""

    carrier: bool = False  #: the plug is pulled: both ends see at once that the wire is gone


class CutOneWay(Params):
    """Only what the sender sends over that wire vanishes."""

    sender: Sender = "primary"


class CutService(Params):
    """Only that service of the pair is cut."""

    service: Service = "nbd"


class Impaired(Params):
    """What is wrong with the wire, both ways or only with what ``sender`` sends over it.

    Every kind takes all the keys, so that a wire can be slow and lossy; they differ in defaults.
    """

    loss_percent: float = Field(0.0, ge=0, le=100)
    delay_ms: float = Field(0.0, ge=0)
    jitter_ms: float = Field(0.0, ge=0)
    reorder_percent: float = Field(0.0, ge=0, le=100)
    rate_kbit: float = Field(0.0, ge=0)
    up_s: float = Field(0.0, ge=0)
    down_s: float = Field(0.0, ge=0)
    seed: int = 0
    sender: Sender | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        try:
            self.impairment()
        except LabError as error:
            raise ValueError(str(error)) from None
        return self

    def impairment(self) -> Impairment:
        return Impairment(**self.model_dump(exclude={"sender"}))


class Loss(Impaired):
    loss_percent: float = Field(1.0, gt=0, le=100)


class Delay(Impaired):
    delay_ms: float = Field(20.0, gt=0)


class Reorder(Impaired):
    reorder_percent: float = Field(25.0, gt=0, le=100)
    delay_ms: float = Field(10.0, gt=0)


class Bandwidth(Impaired):
    rate_kbit: float = Field(10_000.0, gt=0)


class Flap(Impaired):
    up_s: float = Field(1.0, gt=0)
    down_s: float = Field(1.0, gt=0)


def ports(service: Service, pair: PairSpec) -> dict[str, tuple[int, ...]]:
    """The ``tcp`` and ``udp`` ports that the service has on the replication wire."""
    replication = pair.replication
    if service == "heartbeat":
        return {"udp": (replication.heartbeat_port(),)}
    if service == "nbd":
        return {"tcp": (replication.nbd_port(),)}
    if service == "migration":
        return {"tcp": (replication.migration_port(),)}
    cards = range(len(pair.nics))
    # What is compared comes in over the one and is mirrored out over the other.
    kinds = (replication.mirror_port, replication.compare_port)
    return {"tcp": tuple(port(card) for card in cards for port in kinds)}


def wire_of(target: str, view: Mapping[str, Any]) -> tuple[str, str]:
    """The wire that ``target`` means now, and the node that it leads to; either may be empty."""
    if target in ("replication", "client"):
        return target, ""
    which = target.removeprefix("lan-")
    node = which if which in NODES else _node_of(which, view)
    return (f"lan-{node}" if node else ""), node


def _node_of(role: str, view: Mapping[str, Any]) -> str:
    return next((str(node["name"]) for node in view["nodes"] if node["role"] == role), "")


def sending_end(who: str, link: Link, lab: Lab, view: Mapping[str, Any]) -> str:
    """The namespace at whose end of the link the frames of ``who`` enter it, or nothing.

    On a wire that does not end at the sender they come through the switch.
    """
    node = who if who in NODES else _node_of(who, view)
    homes = {"a": lab.host_a, "b": lab.host_b}
    home = lab.client if who == "client" else homes.get(node, "")
    ends = [end.namespace for end in link.ends]
    if not home or home in ends:
        return home
    return lab.lan if lab.lan in ends else ""


def _strike(
    ground: Ground,
    fault: Planned,
    sender: Sender | None,
    deal: Callable[[Link, str | None], None],
) -> Blow:
    view = ground.view()
    wire, node = wire_of(fault.target, view)
    if not wire:
        return Blow(time.monotonic(), missed=f"no node was {fault.target.removeprefix('lan-')}")
    link = ground.lab.link(wire)
    end = sending_end(sender, link, ground.lab, view) if sender else None
    if end == "":
        return Blow(time.monotonic(), missed=f"nothing of {sender} goes over {wire}")
    at_s = time.monotonic()
    deal(link, end)
    hit = (node,) if node else ()
    roles = {str(one["name"]): str(one["role"]) for one in view["nodes"]}
    return Blow(at_s, link.clear, hit, roles.get(node, ""), note=f"wire {wire}")


def cut(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """Nothing passes; in silence unless the plug is pulled."""
    params = Cut.model_validate(dict(fault.params))
    return _strike(ground, fault, None, lambda link, _: link.cut(carrier=params.carrier))


def cut_one_way(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """What the sender sends vanishes; what is sent to it arrives."""
    params = CutOneWay.model_validate(dict(fault.params))
    return _strike(ground, fault, params.sender, lambda link, end: link.cut(sender=end))


def cut_service(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """Packets of one service vanish at both hosts, in connections that stand already too."""
    params = CutService.model_validate(dict(fault.params))
    pair = pairfile.load(ground.home / f"{ground.name}.toml")
    link = ground.lab.link("replication")
    at_s = time.monotonic()
    link.cut_ports(params.service, **ports(params.service, pair))
    return Blow(at_s, lambda: link.pass_ports(params.service), note=f"service {params.service}")


def impair(kind: type[Impaired]) -> Strike:
    """The wire does to each frame what the parameters say."""

    def strike(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
        params = kind.model_validate(dict(fault.params))
        impairment = params.impairment()
        return _strike(
            ground, fault, params.sender, lambda link, end: link.impair(impairment, sender=end)
        )

    return strike


def _impaired(doc: str, kind: type[Impaired]) -> FaultKind:
    return FaultKind(doc, impair(kind), TARGETS, kind, lasting=True)


FAULTS: Mapping[str, FaultKind] = {
    "cut": FaultKind("Nothing passes the wire.", cut, TARGETS, Cut, lasting=True),
    "cut-one-way": FaultKind(
        "What one side sends over the wire vanishes.", cut_one_way, TARGETS, CutOneWay, lasting=True
    ),
    "cut-service": FaultKind(
        "One service of the pair is cut on the replication wire.",
        cut_service,
        ("replication",),
        CutService,
        lasting=True,
    ),
    "loss": _impaired("Frames are lost by chance.", Loss),
    "delay": _impaired("Frames come later.", Delay),
    "reorder": _impaired("Some frames overtake others.", Reorder),
    "bandwidth": _impaired("The wire carries so many kbit a second.", Bandwidth),
    "flap": _impaired("The wire carries, then does not, in turns.", Flap),
}
