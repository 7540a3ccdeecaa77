"""Bridges and addresses of a machine, as `host check` finds them in a namespace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from coloctl.check.finding import Severity
from coloctl.check.interfaces import examine_interfaces
from coloctl.host import NetnsHost
from coloctl.lab import netns

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"t-{os.getpid()}-faces"
    with netns.exclusive():
        netns.create(name, lambda: None)
    try:
        yield name
    finally:
        with netns.exclusive():
            netns.remove(name)


def ip(namespace: str, words: str) -> None:
    subprocess.run(["ip", "netns", "exec", namespace, "ip", *words.split()], check=True)


async def test_bridges_with_stp_are_warned_of_where_a_pair_uses_them(namespace: str) -> None:
    async with NetnsHost(namespace) as host:
        (none,) = await examine_interfaces(host, [], [])
        assert none.severity is Severity.INFO and "no bridge on" in none.sentence and none.hint
        ip(namespace, "link add br0 type bridge stp_state 0")
        ip(namespace, "link add br1 type bridge stp_state 1 forward_delay 400")
        (missing, quick, slow) = await examine_interfaces(host, [], ["br1", "br7"])
        assert missing.severity is Severity.ERROR and "There is no bridge br7" in missing.sentence
        assert quick.severity is Severity.OK and "br0" in quick.sentence
        assert slow.severity is Severity.WARNING and "for 8 s" in slow.sentence
        assert "ip link set br1 type bridge stp_state 0" in slow.hint
        (_, slow) = await examine_interfaces(host, [], [])
        assert slow.severity is Severity.INFO


async def test_a_replication_address_of_either_family_is_tried(namespace: str) -> None:
    ip(namespace, "link set lo up")
    ip(namespace, "link add link0 type veth peer name link1")
    ip(namespace, "link set link1 up")
    ip(namespace, "link set link0 up")
    ip(namespace, "addr add 10.66.0.1/24 dev link0")
    ip(namespace, "addr add fd00:66::1/64 dev link0 nodad")
    async with NetnsHost(namespace) as host:
        found = await examine_interfaces(host, ["10.66.0.1", "fd00:66::1", "fd00:66::2"], [])
    four, six, none = (one for one in found if one.name == "address")
    assert four.severity is Severity.OK and "IPv4, link0" in four.sentence
    assert six.severity is Severity.OK and "IPv6, link0" in six.sentence
    assert none.severity is Severity.ERROR and "does not have the address" in none.sentence
    assert "ip addr add fd00:66::2/64" in none.hint
