"""Build and remove the lab: one machine serves as two hosts, a client and their switch.

Called by `api.faults`, `cli.verbs.lab`, `pytest_plugin` and, for every run, `chaos.run.testbed`;
calls `lab.devices` and `lab.link`.

A lab consists of its four namespaces and keeps no other state. So a lab is opened by name, and a
crashed `up` is repaired by another or removed by `down`.

Invariant: the loopback device of each namespace carries the lab's name as its alias. A namespace
without that mark belongs to another program and is never touched.
"""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from coloctl.errors import LabError
from coloctl.lab import devices, layout, netns
from coloctl.lab.layout import TWO_HOSTS, Layout
from coloctl.lab.link import Link, netlink
from coloctl.lab.processes import evict

TUN_NODE = Path("/dev/net/tun")
_TUN_DEVICE = os.makedev(10, 200)  # linux/miscdevice.h: misc devices are major 10, TUN_MINOR is 200


class Lab:
    """A standing lab; leaving its ``with`` block takes it down."""

    DOWN: ClassVar = "coloctl lab down"  #: the verb that removes it

    def __init__(self, name: str, plan: Layout = TWO_HOSTS) -> None:
        """Compute the lab's names only: use `up` or `open`."""
        self.name = layout.check_name(name)
        self.plan = plan
        self._namespaces = {role: plan.namespace(name, role) for role in plan.roles}

    @classmethod
    def up(cls, name: str = layout.DEFAULT) -> Lab:
        """Build the lab as drawn, all links healed; repair one that a crash left half built.

        A lab that cannot be finished is removed again, unless it stood before. Raises `LabError`
        when rights, the kernel or /dev/net/tun do not allow it, or when a namespace of that name
        belongs to another program.
        """
        lab = cls(name)
        ensure_tun()
        with netns.exclusive():
            before = lab._present()
            try:
                lab._build()
            except BaseException:
                if not before:
                    lab._remove()
                raise
        return lab

    @classmethod
    def open(cls, name: str = layout.DEFAULT) -> Lab:
        """Open a lab that stands; raises `LabError` when it does not, or not whole."""
        lab = cls(name)
        missing = [ns for ns in lab._namespaces.values() if not netns.exists(ns)]
        if missing:
            raise LabError(
                f"The lab {name} is not up: there is no {', '.join(missing)}.",
                hint="build it with `coloctl lab up`",
            )
        lab._present()
        return lab

    def down(self) -> list[str]:
        """Remove all of the lab: processes, links, namespaces and files; fine when it is gone.

        A process that still runs in it is ended, a QEMU too: stop the pair first. Returns a
        sentence for each process that had to be ended. Raises `LabError` when one would not end,
        or when a namespace of that name belongs to another program.
        """
        if not any(netns.path(ns).exists() for ns in self._namespaces.values()):
            return []
        with netns.exclusive():
            return self._remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def host_a(self) -> str:
        """The namespace of the first host."""
        return self._namespaces[self.plan.hosts[0]]

    @property
    def host_b(self) -> str:
        """The namespace of the second host."""
        return self._namespaces[self.plan.hosts[1]]

    @property
    def client(self) -> str:
        """The namespace of the machine that talks to the guest."""
        return self._namespaces["client"]

    @property
    def lan(self) -> str:
        """The namespace of the switch."""
        return self._namespaces["lan"]

    def link(self, which: str) -> Link:
        """Return a link to cut, to impair and to heal: replication, lan-a, lan-b or client."""
        return Link.of(self.name, self.plan, self.plan.wire(which))

    def popen(
        self, argv: Sequence[str], where: str = "client", **options: Any
    ) -> subprocess.Popen[Any]:
        """Start the command inside that machine; ``options`` are those of `subprocess.Popen`."""
        # The child inherits the namespace of the thread that makes it.
        return netns.inside(
            self.plan.namespace(self.name, where), lambda: subprocess.Popen(argv, **options)
        )

    def run(
        self,
        argv: Sequence[str],
        where: str = "client",
        *,
        deadline_s: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run the command inside that machine, its output captured as text.

        Raises `LabError` when it fails (unless ``check`` is off), misses the deadline or does not
        exist.
        """
        try:
            process = self.popen(
                argv, where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise LabError(f"Cannot run {argv[0]}: {error.strerror}.") from None
        with process:
            try:
                out, err = process.communicate(timeout=deadline_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise LabError(
                    f"{argv[0]} did not end within {deadline_s:g} s in {where}."
                ) from None
            except BaseException:
                process.kill()
                raise
        if check and process.returncode:
            last = err.strip().splitlines()[-1:] or ["it printed no message"]
            raise LabError(f"{argv[0]} ended with {process.returncode} in {where}: {last[0]}")
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def connect(
        self, port: int, address: str = layout.GUEST, *, timeout_s: float = 10.0
    ) -> socket.socket:
        """Connect by TCP from the client's machine to the guest, or to another ``address``.

        Reads and writes on it miss their deadline after ``timeout_s`` as well. Raises `OSError`.
        """
        return netns.inside(
            self.client, lambda: socket.create_connection((address, port), timeout_s)
        )

    def bad_checksums(self) -> int:
        """Count the TCP segments with a wrong checksum that reached the client in this lab.

        The client's own TCP counts them (InCsumErrors in /proc/net/snmp). That is trustworthy
        because no device on the way may claim to have checked, and nothing is lost to a full
        capture buffer.
        """
        snmp = netns.inside(self.client, Path("/proc/thread-self/net/snmp").read_text)
        return tcp_checksum_errors(snmp)

    def processes(self) -> dict[str, dict[int, str]]:
        """List the processes in each machine: process ids with command names."""
        return {role: netns.processes(ns) for role, ns in self._namespaces.items()}

    def busy(self) -> list[str]:
        """List the programs that run in the lab, each with its number and its machine."""
        return [
            f"{command} ({pid}) on {role}"
            for role, there in self.processes().items()
            for pid, command in there.items()
        ]

    def describe(self) -> dict[str, Any]:
        """Describe the lab as a document.

        It holds machines with their devices, links with their states, and addresses.
        """
        return {
            "schema": 1,
            "name": self.name,
            "machines": {
                role: {
                    "namespace": ns,
                    "path": str(netns.path(ns)),
                    "devices": netlink(ns, devices.listed),
                    "processes": len(netns.processes(ns)),
                }
                for role, ns in self._namespaces.items()
            },
            "links": {
                name: {
                    "state": self.link(name).state(),
                    "ends": [f"{end.role}:{end.device}" for end in wire.ends],
                }
                for name, wire in self.plan.wires.items()
            },
            "addresses": {
                "replication": [layout.REPLICATION_A, layout.REPLICATION_B],
                "client": layout.CLIENT,
                "guest": layout.GUEST,
            },
        }

    def drawing(self) -> str:
        """Draw the lab for people, with the links that are cut."""
        return layout.draw(self.name, {name: self.link(name).state() for name in self.plan.wires})

    def _present(self) -> bool:
        """Return whether any namespace of the lab is there; raises `LabError` for a foreign one."""
        present = [ns for ns in self._namespaces.values() if netns.exists(ns)]
        for ns in present:
            if devices.lab_of(ns, self.plan.kind) != self.name:
                raise LabError(
                    f"A network namespace {ns} is there already and is not part of this lab.",
                    hint="give the lab another name with --name, or remove that namespace yourself",
                )
        return bool(present)

    def _build(self) -> None:
        for ns in self._namespaces.values():
            if not netns.exists(ns):
                netns.create(ns, partial(devices.furnish, ns, self.name, self.plan.kind))
        for wire in self.plan.wires.values():
            devices.ensure_wire(self.name, self.plan, wire)
        for role, ns in self._namespaces.items():
            netlink(ns, partial(devices.arrange, self.plan, role))
        for name in self.plan.wires:
            self.link(name).heal()

    def _remove(self) -> list[str]:
        ended: list[str] = []
        if self._present():
            standing = [ns for ns in self._namespaces.values() if netns.exists(ns)]
            for name in self.plan.wires:
                self.link(name).end_pumps()
            ended = evict(standing)
            for ns in standing:
                # The kernel empties a namespace later, and not while a descriptor is held.
                netlink(ns, devices.clear)
        for ns in self._namespaces.values():
            netns.remove(ns)
        return ended


def labs(kind: str = TWO_HOSTS.kind) -> list[str]:
    """List the names of all labs of that kind of which at least one namespace stands, sorted."""
    owners = (_owner(ns, kind) for ns in netns.names())
    return sorted({owner for owner in owners if owner is not None})


def _owner(namespace: str, kind: str) -> str | None:
    """Find the lab of that kind that it belongs to; None also where it has just been removed."""
    try:
        return devices.lab_of(namespace, kind)
    except LabError:
        if netns.exists(namespace):
            raise
        return None


def tcp_checksum_errors(snmp: str) -> int:
    """Read TCP's InCsumErrors from the text of /proc/net/snmp (two lines per protocol)."""
    heads, values = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
    return int(values[heads.index("InCsumErrors")])


def ensure_tun() -> None:
    """Ensure that `TUN_NODE` can be opened; raises `LabError` with a hint otherwise.

    As root it is made where it is missing.
    """
    if not TUN_NODE.exists():
        _make_tun()
    try:
        os.close(os.open(TUN_NODE, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        raise LabError(
            f"{TUN_NODE} cannot be opened by this user, so there can be no taps.",
            hint=f"`chmod 666 {TUN_NODE}` as root: that is how Debian ships it",
        ) from None
    except OSError as error:
        raise LabError(
            f"{TUN_NODE} does not work: {error.strerror}.",
            hint="load the module with `modprobe tun`; a container needs it from its host",
        ) from None


def _make_tun() -> None:
    try:
        TUN_NODE.parent.mkdir(exist_ok=True)
        os.mknod(TUN_NODE, stat.S_IFCHR | 0o666, _TUN_DEVICE)
        TUN_NODE.chmod(0o666)
    except FileExistsError:
        return
    except OSError as error:
        raise LabError(
            f"{TUN_NODE} is missing and cannot be made here: {error.strerror}.",
            hint="load the module with `modprobe tun`, or give the container that device",
        ) from None
