"""Goal: the doctor compares what each node's own machine has, and names both.

Method: hosts of two machines that answer what a test gives them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.fakes import FakeHost, make_spec

from coloctl.check import connection, disks, doctor, room
from coloctl.check.command import startable
from coloctl.check.finding import Precondition, Severity, guarded
from coloctl.host.base import Host
from coloctl.host.machine import this_machine
from coloctl.host.records import Completed, Contact, Machine, Reach
from coloctl.model.pair import NODES, NodeName, PairSpec

pytestmark = pytest.mark.unit

QEMU: dict[NodeName, Path] = {"a": Path("/usr/bin/qemu"), "b": Path("/opt/qemu")}


class Node(FakeHost):
    """A host that prints ``says``, on a machine of that name; files there are usable but some."""

    def __init__(self, node: NodeName, says: str, machine: str = "hv1", *, bad: str = "") -> None:
        super().__init__(node, [])
        self.says, self.bad = says, bad
        ids = {"machine_id": machine, "boot_id": f"boot of {machine}"}
        self._machine = replace(this_machine(), name=machine, **ids)

    @property
    def machine(self) -> Machine:
        return self._machine

    async def run(self, argv: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Completed:
        return Completed(0, self.says, "")

    async def usable(self, path: Path, mode: int) -> str:
        return "No such file or directory" if path.name == self.bad else ""


NEW, OLD = "QEMU emulator version 11.1.3 (Debian 1:11.1.3-1)\n", "QEMU emulator version 10.0.7\n"


async def versions(a: str, b: str, machine: str = "hv1") -> Precondition:
    hosts: dict[NodeName, Host] = {"a": Node("a", a), "b": Node("b", b, machine)}
    (found,) = await doctor._versions(QEMU, hosts)
    return found


async def test_unequal_versions_are_an_error_that_names_both_machines() -> None:
    assert (await versions(NEW, NEW, "hv2")).severity is Severity.OK
    here = await versions(NEW, OLD)
    assert here.severity is Severity.ERROR
    assert here.sentence.startswith("Node a runs 'QEMU emulator version 11.1.3")
    there = await versions(NEW, OLD, "hv2")
    assert there.sentence.startswith("Node a on hv1 runs 'QEMU emulator version 11.1.3")
    assert "and node b on hv2 'QEMU emulator version 10.0.7'." in there.sentence


async def test_a_copy_of_a_machine_is_found_beside_errors_that_keep_a_start_back() -> None:
    first, copy = Node("a", NEW), Node("b", NEW, "hv2")
    copy._machine = replace(copy.machine, machine_id=first.machine.machine_id)
    (found,) = await guarded("machines", doctor._identities({"a": first, "b": copy}))
    assert found.severity is Severity.ERROR
    assert found.sentence.startswith("hv1 and hv2 have the same /etc/machine-id")
    assert "/var/lib/dbus/machine-id" in found.hint
    other = {"a": first, "b": Node("b", NEW, "hv2")}
    assert await guarded("machines", doctor._identities(other)) == []


async def test_two_patches_of_one_version_are_a_warning() -> None:
    patched = NEW.replace("1.3-1", "1.3-2")
    assert (await versions(NEW, patched)).severity is Severity.WARNING


def on_hv2(spec: PairSpec) -> PairSpec:
    there = replace(spec.nodes["b"], host="ssh://hv2", kernel=Path("/boot/own"))
    return replace(spec, nodes={**spec.nodes, "b": there})


async def test_a_file_that_is_not_on_the_other_machine_is_reported_by_its_key() -> None:
    hosts: dict[NodeName, Host] = {"a": Node("a", ""), "b": Node("b", "", "hv2", bad="own")}
    found = [one async for one in doctor._files_elsewhere(on_hv2(make_spec()), hosts)]
    assert [one.name for one in found] == ["node.b.kernel"]
    assert found[0].sentence == "/boot/own on hv2 cannot be used: No such file or directory."


@pytest.mark.parametrize("key", ["guest.kernel", "node.b.kernel", "guest.initrd", "node.b.initrd"])
def test_a_pair_is_tried_without_a_kernel_that_one_node_does_not_have(key: str) -> None:
    spec = on_hv2(make_spec())
    guest = replace(spec.guest, kernel=Path("/k"), initrd=Path("/i"), append="quiet")
    found = startable(replace(spec, guest=guest), [Precondition(key, Severity.ERROR, "")])
    assert found is not None
    for node in NODES:
        tried = found[0].guest_on(node)
        assert (tried.kernel is None) == key.endswith("kernel")
        assert tried.initrd is None
        assert tried.append == ("" if key.endswith("kernel") else "quiet")


async def test_disks_of_two_machines_are_not_compared_here() -> None:
    spec = make_spec(disks=1)
    hosts: dict[NodeName, Host] = {"a": Node("a", ""), "b": Node("b", "", "hv2")}
    found = await disks._seeded(spec, spec.disks[0], hosts, dict.fromkeys(NODES, Path("qemu-img")))
    assert found.severity is Severity.INFO
    assert "found out when the pair is protected" in found.sentence


async def test_the_state_folder_of_each_machine_is_looked_at() -> None:
    full = "Filesystem 1024-blocks Used Available\n/dev/x 100 99 1 99% /run\n"
    for machine, lines in (("hv1", 1), ("hv2", 2)):
        hosts: dict[NodeName, Host] = {"a": Node("a", full), "b": Node("b", full, machine)}
        tools = dict.fromkeys(NODES, Path("qemu-img"))
        found = await room.examine_room(make_spec(), hosts, tools)
        assert len(found) == lines
        assert f"on {machine} has 0 MiB of room left" in found[-1].sentence


class Slow(Node):
    """A machine whose answers take their time, and whose clock is an hour ahead."""

    def __init__(self, takes_s: float, ahead_s: float) -> None:
        super().__init__("b", "", "hv2")
        self._reach = Reach(Contact.CONNECTED, 0.0)
        self.takes_s, self.ahead_s = takes_s, ahead_s

    async def which(self, program: str) -> Path | None:
        await asyncio.sleep(self.takes_s)
        return Path("/bin/sh")

    async def run(self, argv: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Completed:
        assert argv[0] == "date"
        return Completed(0, str(datetime.now(UTC).timestamp() + self.ahead_s), "")


async def test_a_machine_that_answers_late_delays_what_is_noticed() -> None:
    quick, slow = Slow(0.0, 0.0), Slow(0.15, 3600.0)
    (one,) = await connection.examine_connection(quick, "b")
    assert one.severity is Severity.OK and one.sentence.startswith("hv2 answers within ")
    late, clock = await connection.examine_connection(slow, "b")
    assert late.severity is Severity.WARNING
    assert late.sentence.startswith("hv2 answers after 0.")
    assert late.sentence.endswith("a silence of node b's QEMU is noticed that much later.")
    assert clock.sentence == "The clock of hv2 is 3600 s fast, by this machine's."
    assert clock.severity is Severity.WARNING  # nothing of the pair depends on it
    assert await connection.examine_connection(Node("a", ""), "a") == []
