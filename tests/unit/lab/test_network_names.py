"""The lab on paper: names, wires, the drawing, and the reading of /proc/net/snmp."""

from __future__ import annotations

import itertools

import pytest

from coloctl.errors import LabError, UsageError
from coloctl.lab import layout
from coloctl.lab.network import Lab, tcp_checksum_errors

pytestmark = pytest.mark.unit


def test_the_default_lab_has_plain_names() -> None:
    assert [layout.namespace("lab", role) for role in layout.ROLES] == list(layout.ROLES)


def test_another_lab_is_prefixed_and_shares_no_name_with_the_default() -> None:
    plain = {layout.namespace("lab", role) for role in layout.ROLES}
    other = {layout.namespace("demo", role) for role in layout.ROLES}
    assert other == {"demo-host-a", "demo-host-b", "demo-client", "demo-lan"}
    assert not plain & other


@pytest.mark.parametrize("name", ["a", "lab", "demo-2", "x" * 32])
def test_good_lab_names_are_taken(name: str) -> None:
    assert layout.check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "../x", "a/b", "a b", "ä", "x" * 33])
def test_bad_lab_names_are_refused_with_a_hint(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        Lab.open(name)
    assert refused.value.hint


def test_unknown_roles_and_links_are_refused_and_the_known_ones_named() -> None:
    with pytest.raises(LabError, match="host-c") as role:
        layout.namespace("lab", "host-c")
    assert role.value.hint is not None and "host-a" in role.value.hint
    with pytest.raises(LabError, match="wan") as link:
        layout.TWO_HOSTS.wire("wan")
    assert link.value.hint is not None and "replication" in link.value.hint


def test_device_names_fit_the_kernel_and_are_unique_in_their_namespace() -> None:
    ends = [end for wire in layout.WIRES.values() for end in wire.ends]
    places = [(end.role, end.device) for end in ends]
    places += [(role, layout.BRIDGE) for role in layout.BRIDGE_MACS]
    places += [*layout.TAPS.items(), *layout.SECOND_TAPS.items()]
    assert len(set(places)) == len(places)
    assert all(len(device) < 16 for _, device in places)


def test_addresses_are_local_unicast_and_unique() -> None:
    macs = [end.mac for wire in layout.WIRES.values() for end in wire.ends]
    macs += layout.BRIDGE_MACS.values()
    assert len(set(macs)) == len(macs)
    assert all(int(mac[:2], 16) & 0b11 == 0b10 for mac in macs)


def test_every_hop_between_guest_and_client_is_strict() -> None:
    assert {name for name, wire in layout.WIRES.items() if wire.strict} == {
        "lan-a",
        "lan-b",
        "client",
    }


def test_the_drawing_shows_every_machine_and_which_link_is_cut() -> None:
    whole = layout.draw("demo", dict.fromkeys(layout.WIRES, "up"))
    for role in layout.ROLES:
        assert f"demo-{role}" in whole
    assert "╳" not in whole
    for name in layout.WIRES:
        drawn = layout.draw("demo", {name: "cut"})
        assert "╳" in drawn
        assert f"{name} is cut." in drawn


def test_the_drawing_keeps_its_width_in_every_state() -> None:
    for states in itertools.product(("up", "cut", "unplugged", "mixed"), repeat=4):
        lines = layout.draw("lab", dict(zip(layout.WIRES, states, strict=True))).splitlines()
        assert {len(line.rstrip()) for line in (lines[0], lines[1], lines[4])} == {63}


def test_checksum_errors_are_read_by_their_heading() -> None:
    snmp = (
        "Ip: Forwarding DefaultTTL\nIp: 1 64\n"
        "Tcp: RtoAlgorithm InErrs OutRsts InCsumErrors\nTcp: 1 9 8 7\n"
        "Udp: InCsumErrors\nUdp: 3\n"
    )
    assert tcp_checksum_errors(snmp) == 7
