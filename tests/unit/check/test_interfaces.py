"""The verdicts on bonds, by devices as `ip -j -d addr` lists them: not every kernel has bonds."""

from __future__ import annotations

from typing import Any

import pytest

from coloctl.certs import store
from coloctl.check.finding import Severity
from coloctl.check.interfaces import bond_findings, bridge_findings
from coloctl.errors import UsageError

ADDRESS = "10.66.0.1"


def bond(mode: str, **more: Any) -> dict[str, Any]:
    data = {"mode": mode, "miimon": 100, **more}
    return {"ifname": "bond0", "linkinfo": {"info_kind": "bond", "info_data": data}}


def owner(name: str, **more: Any) -> dict[str, Any]:
    return {"ifname": name, "addr_info": [{"family": "inet", "local": ADDRESS}], **more}


@pytest.mark.parametrize(
    ("mode", "word"),
    [
        ("balance-rr", "overtake"),
        ("broadcast", "more than once"),
        ("balance-tlb", "one of them alone"),
        ("balance-alb", "link that breaks"),
        ("active-backup", ""),
        ("802.3ad", ""),
        ("balance-xor", ""),
    ],
)
def test_a_mode_of_a_bond_that_harms_the_replication_link_is_warned_of(
    mode: str, word: str
) -> None:
    (found,) = bond_findings("hv1", [bond(mode) | owner("bond0")], [ADDRESS])
    assert found.severity is (Severity.WARNING if word else Severity.OK)
    assert word in found.sentence and "hv1" in found.sentence
    assert bool(found.hint) is bool(word)


def test_the_bond_below_a_vlan_and_a_bridge_is_found() -> None:
    vlan = {"ifname": "bond0.7", "link": "bond0", "master": "br7"}
    bridge = owner("br7", linkinfo={"info_kind": "bridge"})
    (found,) = bond_findings("hv1", [bond("broadcast"), vlan, bridge], [ADDRESS])
    assert found.severity is Severity.WARNING and "broadcast" in found.sentence
    assert not list(bond_findings("hv1", [bond("broadcast"), owner("eth0")], [ADDRESS]))


def test_a_bond_that_watches_no_link_is_warned_of() -> None:
    (found,) = bond_findings("hv1", [bond("active-backup", miimon=0) | owner("bond0")], [ADDRESS])
    assert found.severity is Severity.WARNING and "miimon 100" in found.hint
    watched = bond("active-backup", miimon=0, arp_interval=200) | owner("bond0")
    (found,) = bond_findings("hv1", [watched], [ADDRESS])
    assert found.severity is Severity.OK


def test_a_bond_below_the_guests_bridge_keeps_an_address_on_one_port() -> None:
    bridge = {"ifname": "br0", "linkinfo": {"info_kind": "bridge", "info_data": {"stp_state": 0}}}
    for mode, severity in (("balance-xor", Severity.WARNING), ("active-backup", Severity.OK)):
        port = bond(mode) | {"master": "br0"}
        (found,) = bridge_findings("hv1", [bridge, port], ["br0"])
        assert found.severity is severity
        (unused,) = bridge_findings("hv1", [bridge, port], [])
        assert unused.severity in (Severity.INFO, Severity.OK)


@pytest.mark.parametrize("address", ["fe80::1", "fe80::1%eth0"])
def test_a_machine_is_not_added_with_a_link_local_address(address: str) -> None:
    with pytest.raises(UsageError, match="is a link-local address") as caught:
        store.parse_machine(f"hv1={address}")
    assert caught.value.hint
    assert store.parse_machine("hv1=fd00::1,10.66.0.1") == ("hv1", ("fd00::1", "10.66.0.1"))
