"""Faults of wires: which wire, which end, which ports, and which parameters make sense."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError
from support.views import pair_view

from coloctl.chaos.faults import FAULTS, links
from coloctl.lab import layout
from coloctl.lab.link import Link
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec, ReplicationSpec

pytestmark = pytest.mark.unit

LAB = Lab("demo")
VIEW = pair_view(a=("secondary", 1), b=("primary", 2))


@pytest.mark.parametrize(
    ("target", "wire", "node"),
    [
        ("replication", "replication", ""),
        ("client", "client", ""),
        ("lan-a", "lan-a", "a"),
        ("lan-b", "lan-b", "b"),
        ("lan-primary", "lan-b", "b"),
        ("lan-secondary", "lan-a", "a"),
    ],
)
def test_a_target_is_a_wire_when_the_fault_falls(target: str, wire: str, node: str) -> None:
    assert links.wire_of(target, VIEW) == (wire, node)


def test_the_wire_of_a_role_that_nobody_has_is_none() -> None:
    alone = pair_view(a=("primary", 1), b=("none", 0))
    assert links.wire_of("lan-secondary", alone) == ("", "")


@pytest.mark.parametrize(
    ("who", "wire", "end"),
    [
        ("a", "replication", "demo-host-a"),
        ("primary", "replication", "demo-host-b"),
        ("client", "replication", ""),
        ("b", "lan-b", "demo-host-b"),
        ("client", "lan-b", "demo-lan"),
        ("a", "lan-b", "demo-lan"),
        ("client", "client", "demo-client"),
        ("secondary", "client", "demo-lan"),
    ],
)
def test_a_senders_frames_enter_a_wire_at_its_own_end_or_come_through_the_switch(
    who: str, wire: str, end: str
) -> None:
    link = Link.of("demo", layout.TWO_HOSTS, layout.TWO_HOSTS.wire(wire))
    assert (links.sending_end(who, link, LAB, VIEW) or "") == end


def test_ports_follow_from_the_pair_and_no_service_shares_one() -> None:
    spec = SimpleNamespace(replication=ReplicationSpec(base_port=7000), nics=("x", "y"))
    pair = cast("PairSpec", spec)
    assert links.ports("compare", pair) == {"tcp": (7003, 7004, 7013, 7014)}
    assert links.ports("heartbeat", pair) == {"udp": (7097,)}
    assert links.ports("migration", pair) == {"tcp": (7098,)}
    assert links.ports("nbd", pair) == {"tcp": (7099,)}


def test_all_of_them_last_and_have_defaults() -> None:
    of_links = [kind for kind in FAULTS.values() if kind.__module__ == links.__name__]
    assert len(of_links) == 8
    for kind in of_links:
        assert kind.lasting
        kind.params().model_dump()
        assert set(kind.targets) <= set(links.TARGETS)


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("delay", {"jitter_ms": 30.0}),
        ("loss", {"loss_percent": 0.0}),
        ("loss", {"reorder_percent": 5.0}),
        ("cut-service", {"service": "ssh"}),
        ("cut-one-way", {"sender": "nobody"}),
        ("flap", {"up": 1}),
    ],
)
def test_parameters_that_make_no_sense_are_refused(kind: str, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FAULTS[kind].params.model_validate(params)


def test_one_wire_can_be_slow_and_lossy() -> None:
    both = links.DelayParams.model_validate({"delay_ms": 5, "loss_percent": 2}).impairment()
    assert (both.delay_ms, both.loss_percent) == (5, 2)
