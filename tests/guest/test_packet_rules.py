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
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute
from pyroute2.nftables.main import NFTables

from coloctl.host import guard, netdevice, nft
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


def table(guarded: GuardedPorts) -> str:
    """The name of its table: both addresses of IPv4 are on the loopback device, of IPv6 nowhere."""
    return guard.table_of(guarded, None if ":" in guarded.at else "lo")


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
    assert list(tables) == [table(guarded)]
    rules = tables[table(guarded)]
    # For each of three ports: one rule for what comes in, two for what is sent to either host, and
    # one for the device by which it comes, where both addresses are known to this kernel.
    received = 3 if guarded is V6 else 6
    assert sorted(chain for chain, _ in rules) == ["received"] * received + ["sent"] * 6
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
    assert list(read_back(namespace, 2)) == [table(more)]
    netns.inside(namespace, lambda: guard.install(V6))  # the pair's address is another one now
    assert not read_back(namespace, 2)
    assert list(read_back(namespace, 10)) == [table(V6)]


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
            nft.change(2, {table(V4)}, broken)

    netns.inside(namespace, spoil)
    assert len(read_back(namespace, 2)[table(V4)]) == 12


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


#: Sends a datagram to the port once a line comes, as often as lines come.
CALLS_AGAIN = """
import socket, sys
sock = socket.socket(type=socket.SOCK_DGRAM)
for line in sys.stdin:
    sock.sendto(line.encode(), ("10.1.0.1", 9002))
"""


def test_the_peers_address_passes_by_the_peers_device_alone(namespace: str) -> None:
    """Two machines have the peer's address: the peer, and one on the network of the guests."""
    names = {"repl": f"{namespace}-peer", "guest": f"{namespace}-lan"}

    def furnish(device: str) -> None:
        with IPRoute() as routes:
            for name in (device, "lo"):
                routes.link("set", index=routes.link_lookup(ifname=name)[0], state="up")

    def address(device: str, own: str) -> None:
        with IPRoute() as routes:
            index = routes.link_lookup(ifname=device)[0]
            routes.addr("add", index=index, address=own, prefixlen=24)

    def lay(device: str) -> None:
        with IPRoute() as routes, netns.path(names[device]).open("rb") as far:
            peer = {"ifname": device, "net_ns_fd": far.fileno()}
            routes.link("add", ifname=device, kind="veth", peer=peer)

    def forget() -> None:
        with IPRoute() as routes:
            routes.flush_addr(index=1)
            routes.link("set", index=1, state="up")

    with netns.exclusive():
        for other in names.values():
            netns.create(other, lambda: None)
    try:
        netns.inside(namespace, forget)
        for device, other in names.items():
            netns.inside(namespace, lambda device=device: lay(device))  # type: ignore[misc]
            for one in (namespace, other):
                netns.inside(one, lambda device=device: furnish(device))  # type: ignore[misc]
            netns.inside(other, lambda device=device: address(device, "10.1.0.2"))  # type: ignore[misc]
        netns.inside(namespace, lambda: address("repl", "10.1.0.1"))
        netns.inside(namespace, trust_every_source)
        assert netns.inside(namespace, lambda: netdevice.arrives_at(V4.at, V4.peer)) == "repl"
        heard = netns.inside(namespace, bound)
        with heard, ExitStack() as stack:
            callers = {
                device: stack.enter_context(
                    subprocess.Popen(
                        ["ip", "netns", "exec", other, sys.executable, "-uc", CALLS_AGAIN],
                        stdin=subprocess.PIPE, text=True, bufsize=1,
                    )
                )
                for device, other in names.items()
            }  # fmt: skip
            for rounds in (["repl", "guest"], *[["repl"]] * 3):
                for device in ("guest", "repl"):
                    caller = callers[device].stdin
                    assert caller is not None
                    caller.write(f"{device}\n")
                assert sorted(heard.recv(99).decode().strip() for _ in rounds) == sorted(rounds)
                netns.inside(namespace, lambda: guard.install(V4))
            for one in callers.values():
                assert one.stdin is not None
                one.stdin.close()
    finally:
        with netns.exclusive():
            for other in names.values():
                netns.remove(other)


def trust_every_source() -> None:
    """Switch off the kernel's own check of the way that a source address came."""
    for device in ("all", "repl", "guest"):
        Path(f"/proc/sys/net/ipv4/conf/{device}/rp_filter").write_text("0")


def bound() -> socket.socket:
    """A socket at the heartbeat's port that gives up after a minute."""
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind((V4.at, 9002))
    sock.settimeout(60)
    return sock


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
    assert table(with_user) != table(V4)
    netns.inside(namespace, lambda: guard.install(with_user))
    assert netns.inside(namespace, all_try) == [True, True, False]
    # The beacon is sent by coloctl and never by a QEMU.
    assert netns.inside(namespace, lambda: (beats(0), beats(NOBODY))) == (True, False)
    netns.inside(namespace, lambda: guard.install(V4))
    assert netns.inside(namespace, all_try) == [True, False, False]
