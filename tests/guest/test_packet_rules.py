"""Packet rules as the kernel has them: read back by another library, tried with real packets.

Goal: the peer and this user reach a pair's ports, and no one else; other tables stay untouched.
Method: a namespace of its own for each test, rules read by pyroute2, sockets of two users.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pyroute2 import IPRoute
from pyroute2.nftables.main import NFTables

from coloctl.host import guard, nft
from coloctl.host.guard import GuardedPorts
from coloctl.lab import netns

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

V4 = GuardedPorts("coloctl-web-1", at="10.1.0.1", peer="10.1.0.2", tcp=(9000, 9001), udp=(9002,))
V6 = replace(V4, at="fd00::1", peer="fd00::2")
NOBODY = 65534

#: Connects as another user; its exit code is 0 if it could.
CALLS = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
sock = socket.socket()
sock.settimeout(0.5)
try:
    sock.connect((sys.argv[2], int(sys.argv[3])))
except OSError:
    sys.exit(1)
"""

#: Sends a datagram as another user; its exit code is 0 if it could.
SENDS = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
try:
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"beat", (sys.argv[2], int(sys.argv[3])))
except PermissionError:
    sys.exit(1)
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"t-{os.getpid()}-rules"

    def furnish() -> None:
        with IPRoute() as routes:
            routes.link("set", index=1, state="up")
            for address, bits in (("10.1.0.1", 24), ("10.1.0.2", 24)):
                routes.addr("add", index=1, address=address, prefixlen=bits)

    with netns.exclusive():
        netns.create(name, furnish)
    try:
        yield name
    finally:
        with netns.exclusive():
            netns.remove(name)


def read_back(namespace: str, family: int) -> dict[str, list[tuple[str, list[Any]]]]:
    """Each table with its rules: their chain and their expressions, as pyroute2 reads them."""

    def look() -> dict[str, list[tuple[str, list[Any]]]]:
        with NFTables(nfgen_family=family) as tables:
            found: dict[str, list[tuple[str, list[Any]]]] = {
                str(one.get_attr("NFTA_TABLE_NAME")): [] for one in tables.get_tables()
            }
            for rule in tables.get_rules():
                expressions = [
                    (one.get_attr("NFTA_EXPR_NAME"), one.get_attr("NFTA_EXPR_DATA"))
                    for one in rule.get_attr("NFTA_RULE_EXPRESSIONS")
                ]
                found[str(rule.get_attr("NFTA_RULE_TABLE"))].append(
                    (str(rule.get_attr("NFTA_RULE_CHAIN")), expressions)
                )
        return found

    return netns.inside(namespace, look)


@pytest.mark.parametrize("guarded", [V4, V6], ids=["ipv4", "ipv6"])
def test_the_kernel_has_what_was_asked_for(namespace: str, guarded: GuardedPorts) -> None:
    family = nft.FAMILIES[6 if guarded is V6 else 4]
    netns.inside(namespace, lambda: guard.install(guarded))
    tables = read_back(namespace, family)
    assert list(tables) == [guard.table_of(guarded)]
    rules = tables[guard.table_of(guarded)]
    # For each of three ports: one rule for what comes in, two for what is sent to either host.
    assert sorted(chain for chain, _ in rules) == ["received"] * 3 + ["sent"] * 6
    for _, expressions in rules:
        assert expressions[-1][0] == "immediate"
        assert all(name in ("meta", "payload", "cmp") for name, _ in expressions[:-1])
        verdict = expressions[-1][1].get_attr("NFTA_IMMEDIATE_DATA").get_attr("NFTA_DATA_VERDICT")
        assert verdict.get_attr("NFTA_VERDICT_CODE") == "NF_DROP"


def test_an_equal_table_stays_and_another_is_replaced(namespace: str) -> None:
    def handle() -> int:
        with NFTables(nfgen_family=2) as tables:
            return int(next(iter(tables.get_tables())).get_attr("NFTA_TABLE_HANDLE"))

    netns.inside(namespace, lambda: guard.install(V4))
    first = netns.inside(namespace, handle)
    netns.inside(namespace, lambda: guard.install(V4))
    assert netns.inside(namespace, handle) == first
    more = replace(V4, tcp=(9000,))
    netns.inside(namespace, lambda: guard.install(more))
    assert list(read_back(namespace, 2)) == [guard.table_of(more)]
    netns.inside(namespace, lambda: guard.install(V6))  # the pair's address is another one now
    assert not read_back(namespace, 2)
    assert list(read_back(namespace, 10)) == [guard.table_of(V6)]


def test_no_other_table_is_touched(namespace: str) -> None:
    others = ("firewall", "coloctl-web-10-aa", "coloctl-webb-1")

    def make() -> None:
        for name in others:
            nft.change(2, (), nft.RuleTable(name, (), ()))
        guard.install(V4)
        guard.remove(V4.name)

    netns.inside(namespace, make)
    assert set(read_back(namespace, 2)) == set(others)


def test_a_change_happens_as_a_whole_or_not_at_all(namespace: str) -> None:
    def spoil() -> None:
        guard.install(V4)
        broken = nft.RuleTable("broken", (("in", nft.Hook.RECEIVED),), [nft.Rule("no-such", ())])
        with pytest.raises(FileNotFoundError):
            nft.change(2, {guard.table_of(V4)}, broken)

    netns.inside(namespace, spoil)
    assert len(read_back(namespace, 2)[guard.table_of(V4)]) == 9


def test_a_user_without_the_right_is_refused(namespace: str) -> None:
    code = f"""
import os
from coloctl.host import guard
os.setuid({NOBODY})
try:
    guard.install(guard.GuardedPorts("coloctl-x", "10.1.0.1", "10.1.0.2", (9000,), ()))
except PermissionError:
    print("refused")
"""
    done = netns.inside(
        namespace,
        lambda: subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        ),
    )
    assert done.stdout == "refused\n", done.stderr
    assert not read_back(namespace, 2)


def test_another_user_of_this_host_does_not_get_through(namespace: str) -> None:
    def attempt(user: int, port: int) -> bool:
        argv = [sys.executable, "-c", CALLS, str(user), "10.1.0.1", str(port)]
        return subprocess.run(argv, check=False).returncode == 0

    def both_try() -> list[tuple[bool, bool]]:
        tried = []
        with socket.create_server(("10.1.0.1", 9000)), socket.create_server(("10.1.0.1", 9100)):
            for port in (9000, 9100):
                tried.append((attempt(0, port), attempt(NOBODY, port)))
        return tried

    assert netns.inside(namespace, both_try) == [(True, True), (True, True)]
    netns.inside(namespace, lambda: guard.install(V4))
    assert netns.inside(namespace, both_try) == [(True, False), (True, True)]


def test_the_user_as_which_a_qemu_runs_gets_through_to_its_tcp_ports(namespace: str) -> None:
    def attempt(user: int) -> bool:
        argv = [sys.executable, "-c", CALLS, str(user), "10.1.0.1", "9000"]
        return subprocess.run(argv, check=False).returncode == 0

    def all_try() -> list[bool]:
        with socket.create_server(("10.1.0.1", 9000)):
            return [attempt(user) for user in (0, NOBODY, NOBODY - 1)]

    def beats(user: int) -> bool:
        argv = [sys.executable, "-c", SENDS, str(user), "10.1.0.1", "9002"]
        return subprocess.run(argv, check=False).returncode == 0

    with_user = replace(V4, user=NOBODY)
    assert guard.table_of(with_user) != guard.table_of(V4)
    netns.inside(namespace, lambda: guard.install(with_user))
    assert netns.inside(namespace, all_try) == [True, True, False]
    # The beacon is sent by coloctl and never by a QEMU.
    assert netns.inside(namespace, lambda: (beats(0), beats(NOBODY))) == (True, False)
    netns.inside(namespace, lambda: guard.install(V4))
    assert netns.inside(namespace, all_try) == [True, False, False]
