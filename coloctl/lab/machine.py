"""Switch one lab machine on and off, freeze it, and run commands in it.

Called by `lab.machines`, `chaos.run.site` and `chaos.faults.machines`; starts `lab.machine_init` as
the machine's first process. A machine has its own network, mounts, process ids, host name, boot id,
machine id, /run, /tmp and /var/lib/coloctl. It shares the kernel, the clock and the page cache: a
crash here loses no write that a real machine would have had in memory alone.

Invariant: a machine is on while its first process lives; `state` asks the kernel, no record.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import coloctl
from coloctl.clock import Deadline
from coloctl.errors import LabError
from coloctl.lab import devices, machine_store, netns
from coloctl.lab.link import LinkEnd, index_of, netlink, state_of
from coloctl.lab.machine_group import MachineGroup
from coloctl.lab.machine_init import ENVIRONMENT, READY, Order
from coloctl.lab.machine_layout import ADDRESSES, DARK, MACHINES, ends_of

SSH_PORT = 22
BOOT_WAIT_S = 20.0
#: The kernel ends what is left of a machine within milliseconds.
END_WAIT_S = 10.0
#: How long programs get to end by themselves when a machine shuts down.
SHUTDOWN_WAIT_S = 5.0
_LOOK_S = 0.005

#: Inside a machine; sshd needs an absolute path.
_SSHD = ("/usr/sbin/sshd", "-i")


class MachineState(enum.StrEnum):
    """The state of a machine: off, or on with processes that run or stand still."""

    OFF = "off"
    UP = "up"
    FROZEN = "frozen"


class LabMachine:
    """One machine of a lab, on or off."""

    def __init__(self, lab: str, name: str) -> None:
        """Find the control group; raises `LabError` where none are mounted."""
        self.lab = lab
        self.name = name
        self.address = ADDRESSES[name]
        self.namespace = MACHINES.namespace(lab, name)
        self._dark = MACHINES.namespace(lab, DARK)
        self._group = MachineGroup.named(f"{lab}-{name}")

    def boot(self) -> None:
        """Switch the machine on and return when it answers ssh.

        Its wires are attached as they were, cut or not. Raises `LabError` when it is on already, or
        when the system refuses something; then it is off, as before.
        """
        with netns.exclusive():
            self.boot_held()

    def boot_held(self) -> None:
        """Start as `boot` does, for a caller that holds `netns.exclusive`; raises `LabError`."""
        if self.state() is not MachineState.OFF:
            raise LabError(f"{self.name} is on already.", hint=f"it is {self.state()}")
        with contextlib.ExitStack() as undo:
            if not netns.exists(self.namespace):
                undo.callback(netns.remove, self.namespace)
                furnish = partial(devices.furnish, self.namespace, self.lab, MACHINES.kind)
                netns.create(self.namespace, furnish)
            undo.callback(self._detach)
            self._attach()
            undo.callback(self._end)
            self._group.make()
            self._start()
            undo.pop_all()

    def crash(self) -> None:
        """Switch the machine off at once: nothing that it sends leaves from this moment on.

        Its peers get no FIN and no reset. Fine when it is off. Raises `LabError` when it will not
        end.
        """
        with netns.exclusive():
            self.crash_held()

    def crash_held(self) -> None:
        """End as `crash` does, for a caller that holds `netns.exclusive`; raises `LabError`."""
        # Moving the wires takes the kernel up to 100 ms: no program may notice it and answer.
        with contextlib.suppress(LabError):
            self._group.stop()
        if netns.exists(self.namespace):
            if netns.exists(self._dark):
                self._detach()
            self._end()
            netlink(self.namespace, devices.clear)
        self._end()
        netns.remove(self.namespace)

    def shutdown(self, wait_s: float = SHUTDOWN_WAIT_S) -> None:
        """End the machine's programs, with SIGTERM and some time first, and switch it off."""
        if self.state() is MachineState.FROZEN:
            self.thaw()
        first = self.init_pid()
        others = [pid for pid in self.pids() if pid != first]
        for pid in others:
            self._signal(pid, signal.SIGTERM)
        Deadline(wait_s).poll_blocking(lambda: not set(self.pids()) - {first}, _LOOK_S)
        self.crash()

    def freeze(self) -> None:
        """Stop all processes of the machine; its kernel goes on to acknowledge what it receives.

        Raises `LabError` when it is off.
        """
        self.require_on()
        self._group.freeze()

    def thaw(self) -> None:
        """Resume all processes; raises `LabError` when the machine is off."""
        self.require_on()
        self._group.thaw()

    def state(self) -> MachineState:
        """Return whether the machine is on, and whether its processes run."""
        if self.init_pid() is None:
            return MachineState.OFF
        return MachineState.FROZEN if self._group.frozen() else MachineState.UP

    def require_on(self) -> int:
        """Return the number of the first process; raises `LabError` when the machine is off."""
        first = self.init_pid()
        if first is None:
            raise LabError(f"{self.name} is off.", hint=f"coloctl lab machines boot {self.name}")
        return first

    def pids(self) -> list[int]:
        """Return the machine's processes as they are numbered outside of it."""
        return [pid for pid in self._group.pids() if _inner(pid) is not None]

    def init_pid(self) -> int | None:
        """Return the first process as it is numbered outside; None when the machine is off."""
        return self.outer(1)

    def outer(self, pid: int) -> int | None:
        """Return the number outside of the process ``pid`` of this machine; None for no such."""
        return next((one for one in self._group.pids() if _inner(one) == pid), None)

    def here(self, path: Path) -> Path:
        """Return where a file of the machine is found from outside while it is on.

        Raises `LabError` when it is off.
        """
        return Path(f"/proc/{self.require_on()}/root") / path.relative_to("/")

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start the command inside the machine; ``options`` are those of `subprocess.Popen`.

        Its environment is the machine's own, not the caller's. Raises `LabError` when the machine
        is off, and `OSError`.
        """
        enter = ["nsenter", "--mount", "--uts", "--ipc", "--net", "--pid", "--time", "--target"]
        join = 'echo 0 >"$1"; shift; exec "$@"'
        return subprocess.Popen(
            [
                *("sh", "-c", join, "sh", str(self._group.members)),
                *(*enter, str(self.require_on()), "--wdns=/root", "--", *argv),
            ],
            env={**ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")},
            **options,
        )

    def _start(self) -> None:
        """Start the first process and wait until it reports; raises `LabError`."""
        receiving, report = os.pipe()
        store = machine_store.store(self.lab, self.name)
        with contextlib.ExitStack() as ours:
            ours.callback(os.close, receiving)
            log = ours.enter_context((store / "init.log").open("ab"))
            listener = netns.inside(
                self.namespace, lambda: socket.create_server(("", SSH_PORT), backlog=64)
            )
            ours.enter_context(listener)
            root = machine_store.root_of(self.lab, self.name)
            ahead_s = machine_store.clock_of(self.lab, self.name)
            order = Order(root, self._group.members, listener.fileno(), report, ahead_s, _SSHD)
            argv = [sys.executable, "-P", "-m", "coloctl.lab.machine_init", order.to_json()]

            def start() -> subprocess.Popen[bytes]:
                return subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env={**ENVIRONMENT, "PYTHONPATH": str(Path(coloctl.__file__).parents[1])},
                    pass_fds=(listener.fileno(), report),
                    start_new_session=True,
                )

            try:
                launcher = netns.inside(self.namespace, start)
            finally:
                os.close(report)
            with launcher:
                report_text = _read_all(receiving, BOOT_WAIT_S)
                launcher.kill()  # it has ended, unless nothing came
        if report_text != READY:
            last = (store / "init.log").read_text(errors="replace").strip().splitlines()[-1:]
            reason = report_text or (last or ["it did not report in time"])[0]
            raise LabError(
                f"{self.name} does not boot: {reason}.",
                hint="a container needs to be privileged for machines",
            )

    def _end(self) -> None:
        """End every process; raises `LabError` when one survives."""
        first = self.init_pid()
        for pid in [first] if first is not None else self._group.pids():
            self._signal(pid, signal.SIGKILL)
        with contextlib.suppress(LabError):
            self._group.thaw()  # in version 1 a frozen process cannot even end
        if not Deadline(END_WAIT_S).poll_blocking(lambda: not self._group.pids(), _LOOK_S):
            raise LabError(f"Processes of {self.name} do not end: {self._group.pids()}.")
        self._group.remove()

    def _signal(self, pid: int, number: signal.Signals) -> None:
        """Send the signal to ``pid`` if it is a process of this machine at this moment."""
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                if pid in self._group.pids():
                    signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)

    def bring_in(self) -> bool:
        """Move the wires that lie in the dark into the machine's namespace, as they were.

        They are not configured yet. Return whether there were any.
        """
        return bool(self._move(self._dark, self.namespace))

    def _attach(self) -> None:
        """Bring the wires in and configure them; one that was cut stays so."""
        cut = self._move(self._dark, self.namespace)
        if not cut:
            return
        netlink(self.namespace, partial(devices.arrange, MACHINES, self.name))
        for end, state in cut.items():
            if state == "unplugged":
                LinkEnd(self.namespace, end).plug(up=False)
                LinkEnd(self.namespace, end).deliver()

    def _detach(self) -> None:
        """Move the wires into the dark, where nothing answers; their peers keep a carrier."""
        for end, state in self._move(self.namespace, self._dark).items():
            LinkEnd(self._dark, end).plug(up=state != "unplugged")

    def _move(self, source: str, target: str) -> dict[str, str]:
        """Move the machine's wires to another namespace, and return the state that each had.

        One that was cut or unplugged passes nothing there either; others are healed.
        """
        with netns.path(target).open("rb") as there:
            moved = netlink(source, partial(_hand_over, self.name, there.fileno()))
        for device, state in moved.items():
            if state in ("cut", "unplugged"):
                LinkEnd(target, device).drop()
        return moved


def _hand_over(machine: str, target: int, ip: Any) -> dict[str, str]:
    """Move the machine's devices that are here, at once; return the state that each had."""
    found = {end.device: index_of(ip, end.device) for _, end in ends_of(machine)}
    present = {device: index for device, index in found.items() if index is not None}
    states = {device: state_of(ip, index) for device, index in present.items()}
    for index in present.values():
        ip.link("set", index=index, net_ns_fd=target)
    return states


def _inner(pid: int) -> int | None:
    """Return the number of ``pid`` in its own pid namespace; None when that is the caller's."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    numbers = re.search(r"^NSpid:(.*)$", status, re.MULTILINE)
    found = numbers[1].split() if numbers else []
    return int(found[-1]) if len(found) > 1 else None


def _read_all(descriptor: int, wait_s: float) -> str:
    """Read until the other end is closed or the time is over; return what came."""
    deadline, pieces = Deadline(wait_s), []
    while select.select([descriptor], [], [], deadline.remaining())[0]:
        if not (piece := os.read(descriptor, 4096)):
            break
        pieces.append(piece)
    return b"".join(pieces).decode(errors="replace")
