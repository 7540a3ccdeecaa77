"""Impair the lab's wires: cut, lossy, slow, out of order, narrow, flapping.

Registered in `chaos.faults`; calls `lab.link` and `lab.impairment`. A cut is of both ways, of one
way, or of one service of the pair.

Invariant: an impairment takes the place of every fault of the wire before it, a cut is added to
them, and healing any of them heals the wire. Cuts of services are apart from that, and from each
other.
"""

from __future__ import annotations

import time
from typing import Literal, Self

from pydantic import Field, model_validator

from coloctl.chaos.faults.fault import Fault, Injected, NothingToHit, P, fault
from coloctl.chaos.scenario.tables import Params
from coloctl.errors import LabError
from coloctl.lab.impairment import Impairment
from coloctl.lab.link import Link
from coloctl.lab.network import Lab
from coloctl.model.pair import NODES, PairSpec
from coloctl.model.view import PairView

TARGETS = ("replication", "client", "lan-a", "lan-b", "lan-primary", "lan-secondary")

Service = Literal["nbd", "compare", "migration", "heartbeat"]
#: The end that sends: a node, by its role or its name, or the machine of the clients.
Sender = Literal["primary", "secondary", "a", "b", "client"]


class CutParams(Params):
    """The way in which the wire is cut."""

    carrier: bool = False  #: the plug is pulled: both ends see at once that the wire is gone


class CutOneWayParams(Params):
    """The end whose frames vanish."""

    sender: Sender = "primary"


class CutServiceParams(Params):
    """The service of the pair that is cut."""

    service: Service = "nbd"


class Impaired(Params):
    """Damage to a wire, both ways or only to the frames that ``sender`` sends over it.

    Every kind takes all the keys, so that a wire can be slow and lossy; they differ in defaults.
    """

    loss_percent: float = Field(default=0.0, ge=0, le=100)
    delay_ms: float = Field(default=0.0, ge=0)
    jitter_ms: float = Field(default=0.0, ge=0)
    reorder_percent: float = Field(default=0.0, ge=0, le=100)
    rate_kbit: float = Field(default=0.0, ge=0)
    up_s: float = Field(default=0.0, ge=0)
    down_s: float = Field(default=0.0, ge=0)
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
        """Return the keys as the lab takes them; raises `LabError` where they do not fit.

        The keys of a scenario are refused when it is read.
        """
        return Impairment(**self.model_dump(exclude={"sender"}))


class LossParams(Impaired):
    loss_percent: float = Field(default=1.0, gt=0, le=100)


class DelayParams(Impaired):
    delay_ms: float = Field(default=20.0, gt=0)


class ReorderParams(Impaired):
    reorder_percent: float = Field(default=25.0, gt=0, le=100)
    delay_ms: float = Field(default=10.0, gt=0)


class BandwidthParams(Impaired):
    rate_kbit: float = Field(default=10_000.0, gt=0)


class FlapParams(Impaired):
    up_s: float = Field(default=1.0, gt=0)
    down_s: float = Field(default=1.0, gt=0)


def ports(service: Service, pair: PairSpec) -> dict[str, tuple[int, ...]]:
    """Return the ``tcp`` and ``udp`` ports that the service has on the replication wire."""
    replication = pair.replication
    # Frames to compare come in over the one, and are mirrored out over the other.
    kinds = (replication.mirror_port, replication.compare_port)
    match service:
        case "heartbeat":
            return {"udp": (replication.heartbeat_port(),)}
        case "nbd":
            return {"tcp": (replication.nbd_port(),)}
        case "migration":
            return {"tcp": (replication.migration_port(),)}
        case "compare":
            cards = range(len(pair.nics))
            return {"tcp": tuple(port(card) for card in cards for port in kinds)}


def wire_of(target: str, view: PairView) -> tuple[str, str]:
    """Return the wire of ``target`` and the node that it leads to now; either may be empty."""
    if target in ("replication", "client"):
        return target, ""
    which = target.removeprefix("lan-")
    node = which if which in NODES else _node_of(which, view)
    return (f"lan-{node}" if node else ""), node


def _node_of(role: str, view: PairView) -> str:
    return next((str(node.name) for node in view.nodes.values() if node.role == role), "")


def sending_end(who: str, link: Link, lab: Lab, view: PairView) -> str:
    """Return the namespace at whose end the frames of ``who`` enter the link, or nothing.

    Of a sender at neither end the frames enter at the switch: its namespace, on a wire that ends
    there.
    """
    node = who if who in NODES else _node_of(who, view)
    homes = {"a": lab.host_a, "b": lab.host_b}
    home = lab.client if who == "client" else homes.get(node, "")
    ends = [end.namespace for end in link.ends]
    if not home or home in ends:
        return home
    return lab.lan if lab.lan in ends else ""


class WireFault(Fault[P]):
    """A fault of a whole wire; the base of several kinds."""

    targets = TARGETS
    lasting = True
    _link: Link | None = None

    def sender(self) -> Sender | None:
        """Return the end whose frames alone are affected; None for both."""
        return None

    def impair(self, link: Link, end: str | None) -> None:
        """Change the link as this kind does; ``end`` is the namespace of the sender."""
        raise NotImplementedError

    def begin(self) -> Injected:
        """Find the wire of the target as roles are now, and impair it.

        Raises `NothingToHit` when no node has the role, or the sender sends nothing over the wire.
        """
        view, lab, sender = self.pair.view(), self.pair.lab, self.sender()
        wire, node = wire_of(self.target, view)
        if not wire:
            raise NothingToHit(f"no node was {self.target.removeprefix('lan-')}")
        link = lab.link(wire)
        end = sending_end(sender, link, lab, view) if sender else None
        if end == "":
            raise NothingToHit(f"nothing of {sender} goes over {wire}")
        at_s = time.monotonic()
        self._link = link
        self.impair(link, end)
        roles = {str(one.name): str(one.role) for one in view.nodes.values()}
        return Injected(at_s, (node,) if node else (), roles.get(node, ""), f"wire {wire}")

    def heal(self) -> None:
        """Undo the cut or the impairment of the wire."""
        if self._link is not None:
            self._link.clear()


@fault("cut")
class Cut(WireFault[CutParams]):
    """A wire that no frame passes.

    In silence, unless the plug is pulled.
    """

    params = CutParams

    def impair(self, link: Link, end: str | None) -> None:
        """Cut both ends, with the plug where the scenario asks for it."""
        link.cut(carrier=self.given.carrier)


@fault("cut-one-way")
class CutOneWay(WireFault[CutOneWayParams]):
    """A wire on which the frames that one side sends vanish.

    Frames that are sent to it arrive.
    """

    params = CutOneWayParams

    def sender(self) -> Sender | None:
        """Return the sender of the scenario; None for both ends."""
        return self.given.sender

    def impair(self, link: Link, end: str | None) -> None:
        """Cut the end of the sender."""
        link.cut(sender=end)


@fault("cut-service")
class CutService(Fault[CutServiceParams]):
    """A service of the pair that is cut on the replication wire.

    Its packets vanish at both hosts, also in connections that stand already.
    """

    targets = ("replication",)
    params = CutServiceParams
    lasting = True
    _link: Link | None = None

    def begin(self) -> Injected:
        """Cut the ports of the service, at both hosts."""
        service = self.given.service
        at_s, self._link = time.monotonic(), self.pair.lab.link("replication")
        self._link.cut_ports(service, **ports(service, self.pair.spec()))
        return Injected(at_s, note=f"service {service}")

    def heal(self) -> None:
        """End the cut of this service; other cuts stay."""
        if self._link is not None:
            self._link.pass_ports(self.given.service)


class _Impair(WireFault[Impaired]):
    def sender(self) -> Sender | None:
        """Return the sender of the scenario; None for both ends."""
        return self.given.sender

    def impair(self, link: Link, end: str | None) -> None:
        """Impair the frames of one end, or of both."""
        link.impair(self.given.impairment(), sender=end)


@fault("loss")
class Loss(_Impair):
    """Frames that are lost by chance."""

    params = LossParams


@fault("delay")
class Delay(_Impair):
    """Frames that come later."""

    params = DelayParams


@fault("reorder")
class Reorder(_Impair):
    """Some frames that overtake others."""

    params = ReorderParams


@fault("bandwidth")
class Bandwidth(_Impair):
    """A wire that carries so many kbit a second."""

    params = BandwidthParams


@fault("flap")
class Flap(_Impair):
    """A wire that carries, then does not, in turns."""

    params = FlapParams
