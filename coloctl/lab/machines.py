"""Build and remove a lab of machines, cut its networks, and reach its machines by ssh.

Called by `cli.verbs.lab_machines`; calls `lab.machine` for each machine and `lab.machine_store` for
what they keep. It is a `lab.network` lab with another plan: the guest's LAN and its client are the
same, and the two hosts are machines.

Invariant: like the other, this lab keeps no state but namespaces, control groups and its stores. So
it is opened by name, and what a killed `up` left is found and removed by `down`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from coloctl.errors import LabError
from coloctl.lab import (
    devices,
    machine_group,
    machine_layout,
    machine_store,
    netns,
    network,
    rootless,
    sshd,
)
from coloctl.lab.link import Link, LinkEnd
from coloctl.lab.machine import LabMachine, MachineState
from coloctl.lab.machine_layout import ADDRESSES, DARK, MACHINES, NAMES
from coloctl.lab.network import Lab, ensure_tun
from coloctl.lab.progress import Report, silent

#: Connects from the third machine's network, so that cuts of it are felt, and hands the socket to
#: ssh. It ends with the ssh that started it (PR_SET_PDEATHSIG is 1). The argument is the address.
_CONNECT = (
    "import ctypes,socket,sys;ctypes.CDLL(None).prctl(1,9);"
    "s=socket.create_connection((sys.argv[1],22),10);"
    "socket.send_fds(socket.socket(fileno=1),[b'.'],[s.fileno()])"
)


class Machines(Lab):
    """A standing lab of machines; leaving its ``with`` block takes it down."""

    DOWN = "coloctl lab machines down"

    def __init__(self, name: str) -> None:
        """Compute the names only: use `up` or `open`; raises `LabError` without control groups."""
        super().__init__(name, MACHINES)
        self.machines = {one: LabMachine(name, one) for one in NAMES}

    @classmethod
    def up(
        cls, name: str = machine_layout.DEFAULT, *, clocks: bool = False, report: Report = silent
    ) -> Machines:
        """Build the lab, every machine on and every link healed; repair one that is not whole.

        With ``clocks`` each machine that boots has a monotonic clock that is weeks apart from the
        others', so that a time which one gave to another cannot look right by chance.
        A lab that cannot be finished is removed again, unless it stood before. Raises `LabError`
        without root, or when the system refuses something, and `ProvisionError` when OpenSSH is
        missing and cannot be fetched.
        """
        require_root()
        lab = cls(name)
        ensure_tun()
        openssh = machine_store.prepare(name, clocks=clocks, report=report)
        with netns.exclusive():
            before = lab._present()
            try:
                lab._build()
                for machine in lab.machines.values():
                    if machine.state() is MachineState.OFF:
                        machine.boot_held()
                lab._write_config(openssh)
            except BaseException:
                if not before:
                    lab._remove()
                raise
        return lab

    @classmethod
    def open(cls, name: str = machine_layout.DEFAULT) -> Machines:
        """Open a lab of machines that stands; raises `LabError` when it does not, or not whole."""
        require_root()
        lab = cls(name)
        fixed = (ns for role, ns in lab._namespaces.items() if role not in NAMES)
        missing = [ns for ns in fixed if not netns.exists(ns)]
        if missing:
            raise LabError(
                f"The machines {name} are not up: there is no {', '.join(missing)}.",
                hint="build them with `coloctl lab machines up`",
            )
        lab._present()
        return lab

    def down(self) -> list[str]:
        """Remove machines, links, namespaces and stores; fine when they are gone.

        What still runs in a machine ends with it. Returns a sentence for each process elsewhere in
        the lab that had to be ended. Raises `LabError` as `Lab.down`.
        """
        with netns.exclusive():
            return self._remove()

    @property
    def third(self) -> str:
        """The namespace of the machine on which the supervisor runs."""
        return self._namespaces["witness"]

    @property
    def ssh_config(self) -> Path:
        """The configuration with which ssh reaches every machine, from the network of the third."""
        return machine_store.home(self.name) / "ssh_config"

    def ssh(self) -> list[str]:
        """Return the words that start ssh for these machines, those of `COLOCTL_SSH`."""
        return sshd.client_words(sshd.provide(), self.ssh_config)

    def machine(self, name: str) -> LabMachine:
        """Return the machine of that name; raises `LabError` when there is none."""
        if name not in self.machines:
            raise LabError(f"There is no machine {name!r}.", hint=f"one of: {', '.join(NAMES)}")
        return self.machines[name]

    def link(self, which: str) -> Link:
        """Return a link; the end of a machine that is off lies in the dark and may be cut there."""
        wire = self.plan.wire(which)
        dark = self._namespaces[DARK]

        def place(role: str) -> str:
            own = self._namespaces[role]
            return own if role not in NAMES or netns.exists(own) else dark

        first, second = (LinkEnd(place(end.role), end.device) for end in wire.ends)
        return Link(which, (first, second))

    def cut(
        self, which: str, *, at: str | None = None, way: str | None = None, carrier: bool = False
    ) -> list[str]:
        """Cut a network or one of its links, and return the links that were cut.

        With ``at``, a machine, only that one's links of it are cut; ``way`` "sends" or "receives"
        cuts one direction there. ``carrier`` pulls the plug, which takes both ways. Raises
        `LabError` when the machine has no end in it.
        """
        changed = []
        for link in self._links(which, at):
            if at is None or way is None:
                link.cut(carrier=carrier)
            else:
                own = {end.device for _, end in machine_layout.ends_of(at)}
                sender = next(
                    end.namespace for end in link.ends if (end.device in own) is (way == "sends")
                )
                link.cut(carrier=carrier, sender=sender)
            changed.append(link.name)
        return changed

    def heal(self, which: str | None = None) -> list[str]:
        """Heal a network or a link, or all of them; return the links."""
        links = list(self._links(which, None)) if which else [*map(self.link, self.plan.wires)]
        for link in links:
            link.heal()
        return [link.name for link in links]

    def describe(self) -> dict[str, Any]:
        """Describe the machines, their networks and links as a document."""
        return {
            "schema": 1,
            "name": self.name,
            "machines": {
                name: {
                    "state": str(machine.state()),
                    "address": machine.address,
                    "programs": len(self._programs(machine)),
                    "namespace": machine.namespace,
                }
                for name, machine in self.machines.items()
            },
            "networks": {
                name: {link: self.link(link).state() for link in links}
                for name, links in self.plan.networks.items()
            },
            "ssh_config": str(self.ssh_config),
        }

    def busy(self) -> list[str]:
        """List the programs that run in the machines, each with its number and its machine."""
        return [
            f"{_command(pid)} ({pid}) on {name}"
            for name, machine in self.machines.items()
            for pid in self._programs(machine)
        ]

    @staticmethod
    def _programs(machine: LabMachine) -> list[int]:
        """Return the machine's processes but the first, as they are numbered here."""
        first = machine.init_pid()
        return [pid for pid in machine.pids() if pid != first]

    def _links(self, which: str, at: str | None) -> Iterator[Link]:
        names = self.plan.networks.get(which) or (which,)
        if which not in self.plan.networks and which not in self.plan.wires:
            known = [*self.plan.networks, *self.plan.wires]
            raise LabError(
                f"There is no network or link {which!r}.",
                hint=f"one of: {', '.join(dict.fromkeys(known))}",
            )
        here = None if at is None else {w.name for w, _ in machine_layout.ends_of(at)}
        chosen = [name for name in names if here is None or name in here]
        if not chosen:
            raise LabError(f"{at} has no end in {which}.", hint="coloctl lab machines show")
        yield from map(self.link, chosen)

    def _build(self) -> None:
        for machine in self.machines.values():
            if not netns.exists(machine.namespace) and netns.exists(self._namespaces[DARK]):
                furnish = partial(devices.furnish, machine.namespace, self.name, self.plan.kind)
                netns.create(machine.namespace, furnish)
                machine.bring_in()
        super()._build()

    def _remove(self) -> list[str]:
        for machine in self.machines.values():
            machine.crash_held()
        ended = super()._remove()
        machine_store.remove(self.name)
        return ended

    def _write_config(self, openssh: sshd.OpenSsh) -> None:
        """Write ssh's configuration: each connection begins in the third's network."""
        network_file = netns.path(self.third)
        reached = {}
        for name, address in ADDRESSES.items():
            words = ["nsenter", f"--net={network_file}", sys.executable, "-I", "-S", "-c", _CONNECT]
            proxy = shlex.join([*words, address])
            reached[name] = [f"ProxyCommand {proxy}", "ProxyUseFdpass yes"]
        text = sshd.client_config(machine_store.home(self.name), reached)
        self.ssh_config.write_text(text)


def reached_by(ssh: str) -> Machines | None:
    """Return the lab whose ssh configuration those words of `COLOCTL_SSH` name; None if none."""
    words = shlex.split(ssh)
    for name in labs():
        lab = Machines(name)
        if str(lab.ssh_config) in words:
            return lab
    return None


def labs() -> list[str]:
    """List the names of all labs of machines of which any part is there, sorted."""
    groups = {name.rpartition("-")[0] for name in machine_group.names()}
    return sorted({*network.labs(MACHINES.kind), *groups, *machine_store.names()})


def require_root(typed: str = "lab machines up") -> None:
    """Raise `LabError` unless this process is root of the system itself.

    ``typed`` are the words after ``coloctl`` that need it.
    """
    if os.geteuid() != 0 or rootless.inside():
        raise LabError(
            "Machines need root: ssh logs in as several users, which a user namespace of one "
            "user does not have.",
            hint=f"sudo coloctl {typed}",
        )


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"
