"""Ruin the guest of a secondary: a machine check, or other code where its processor goes.

A machine check is what memory that has gone bad looks like to a guest; QEMU's human monitor injects
it. Code is overwritten through QEMU's gdbstub and behind its back; whether a guest runs into it
before the next checkpoint puts it right depends on what it does.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from coloctl import paths
from coloctl.chaos.nemesis.fault import Ask, Blow, FaultKind, Ground, Params
from coloctl.chaos.nemesis.processes import victims
from coloctl.chaos.scenario import Planned
from coloctl.errors import ColoctlError

#: What the code becomes: ``cli`` and a jump to itself; ``cli`` and ``hlt``; an invalid instruction.
CODES: Mapping[str, bytes] = {
    "spin": b"\xfa\xeb\xfd",
    "halt": b"\xfa\xf4\xeb\xfd",
    "crash": b"\x0f\x0b",
}
#: A machine check of the first processor that cannot be corrected: valid, enabled, context corrupt.
MACHINE_CHECK = "mce 0 0 0xbe00000000000000 0x5 0 0"
#: Vectors of x86: the page fault, the first devices, and what Linux uses for timers and processors.
VECTORS = (14, *range(0x20, 0x40), 0xEC, 0xFB, 0xFC, 0xFD)
#: Bytes of an entry of the interrupt table of 64-bit x86.
ENTRY = 16
#: How often it is written again, seconds; and how long QEMU may take for an answer.
AGAIN_S, PATIENCE_S = 0.3, 10.0


class Ruin(Params):
    """``how``: machine-check, or spin, halt or crash for other code."""

    how: str = "machine-check"


@dataclass(frozen=True)
class Place:
    """Where a handler lies: for the guest, and in QEMU's memory where that is known."""

    guest: int
    host: int | None


class Stub:
    """A connection to a gdbstub; the guest stands still until `close`."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._buffer = b""
        try:
            self._sock.settimeout(PATIENCE_S)
            self._sock.connect(str(path))
        except BaseException:
            self._sock.close()
            raise

    def ask(self, words: str) -> str:
        """Send one packet and return the answer; raises OSError when QEMU is gone."""
        raw = words.encode()
        self._sock.sendall(b"$%s#%02x" % (raw, sum(raw) & 0xFF))
        while True:
            _, dollar, tail = self._buffer.partition(b"$")
            answer, end, rest = tail.partition(b"#")
            if dollar and end and len(rest) >= 2:
                self._buffer = rest[2:]
                self._sock.sendall(b"+")
                return answer.decode()
            if not (more := self._sock.recv(65536)):
                raise ConnectionResetError("QEMU closed the connection")
            self._buffer += more

    def write(self, at: int, data: bytes) -> None:
        """Overwrite the guest's memory at that address of its own."""
        self.ask(f"M{at:x},{len(data):x}:{data.hex()}")

    def close(self) -> None:
        """Let the guest go on."""
        with contextlib.suppress(OSError):
            self.ask("D")
        self._sock.close()


@dataclass(frozen=True)
class Victim:
    """The guest of one QEMU, and a way to ask it."""

    node: str
    pid: int
    socket: Path
    ask: Ask

    def monitor(self, line: str) -> str:
        """What the human monitor answers; raises `ColoctlError`."""
        arguments = {"command-line": line}
        command = "human-monitor-command"
        said = self.ask(
            "node-qmp", PATIENCE_S, node=self.node, execute=command, arguments=arguments
        )
        return str(said)

    def handlers(self) -> list[Place]:
        """Where the guest's processor goes at each of `VECTORS`; empty when it has no table."""
        found = re.search(r"IDT=\s*([0-9a-f]+)", self.monitor("info registers"))
        if found is None:
            return []
        table, places = int(found[1], 16), []
        stub = Stub(self.socket)
        try:
            raw = [stub.ask(f"m{table + ENTRY * vector:x},{ENTRY:x}") for vector in VECTORS]
        finally:
            stub.close()
        for text in raw:
            with contextlib.suppress(ValueError):
                entry = bytes.fromhex(text)
                offset = entry[0:2] + entry[6:8] + entry[8:12]
                places.append(int.from_bytes(offset, "little"))
        return [Place(one, self._in_qemu(one)) for one in dict.fromkeys(places) if one]

    def _in_qemu(self, guest: int) -> int | None:
        physical = re.search(r"gpa: (0x)?([0-9a-f]+)", self.monitor(f"gva2gpa {guest:#x}"))
        if physical is None:
            return None
        found = re.search(r" is (0x[0-9a-f]+)", self.monitor(f"gpa2hva 0x{physical[2]}"))
        return int(found[1], 16) if found else None

    def overwrite(self, places: list[Place], code: bytes) -> None:
        """Replace the handlers; raises OSError when QEMU is gone."""
        filled = code * (ENTRY // len(code))
        stub = Stub(self.socket)
        try:
            stub.ask("?")
            for place in places:
                stub.write(place.guest, filled)
        finally:
            stub.close()
        self.corrupt(places, filled)

    def corrupt(self, places: list[Place], filled: bytes) -> None:
        """The same in QEMU's memory, where the kernel of the host lets us."""
        with contextlib.suppress(PermissionError):
            memory = os.open(f"/proc/{self.pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
            try:
                for place in places:
                    if place.host is not None:
                        os.pwrite(memory, filled, place.host)
            finally:
                os.close(memory)


def ruin(ground: Ground, fault: Planned, ask: Ask) -> Blow:
    """Replace code of the secondary's guest, and keep it replaced until that is healed."""
    found = victims(fault.target, ground.view())
    if not found:
        return Blow(time.monotonic(), missed=f"there was no {fault.target} to hit")
    name, role, pid = str(found[0]["name"]), str(found[0]["role"]), int(found[0]["pid"])
    victim = Victim(name, pid, paths.pair_dir(ground.name) / name / "gdb.sock", ask)
    if fault.params["how"] == "machine-check":
        return _check(victim, role)
    code = CODES.get(str(fault.params["how"]))
    if code is None:
        return Blow(time.monotonic(), missed=f"how is machine-check, {', '.join(CODES)}")
    try:
        victim.monitor(f"gdbserver unix:{victim.socket},server=on,wait=off")
        places = victim.handlers()
        at_s = time.monotonic()
        victim.overwrite(places, code)
    except (ColoctlError, OSError) as error:
        return Blow(time.monotonic(), missed=f"its gdbstub could not be used: {error}")
    if not places:
        return Blow(at_s, missed="its guest has no interrupt table yet")
    return Blow(at_s, _again(victim, places, code), (name,), role)


def _check(victim: Victim, role: str) -> Blow:
    """Inject machine checks until that is healed."""
    at_s = time.monotonic()
    try:
        victim.monitor(MACHINE_CHECK)
    except ColoctlError as error:
        return Blow(at_s, missed=f"its monitor refused: {error}")
    return Blow(at_s, _repeated(lambda: victim.monitor(MACHINE_CHECK)), (victim.node,), role)


def _again(victim: Victim, places: list[Place], code: bytes) -> Callable[[], None]:
    """Repeat the damage in memory; what is returned ends that."""
    filled = code * (ENTRY // len(code))
    return _repeated(lambda: victim.corrupt(places, filled))


def _repeated(deed: Callable[[], object]) -> Callable[[], None]:
    """Do it again and again, until that QEMU is gone or what is returned is called."""
    healed = threading.Event()

    def repeat() -> None:
        with contextlib.suppress(OSError, ColoctlError):
            while not healed.wait(AGAIN_S):
                deed()

    worker = threading.Thread(target=repeat, name="ruin", daemon=True)
    worker.start()

    def heal() -> None:
        healed.set()
        worker.join(PATIENCE_S)

    return heal


FAULTS: Mapping[str, FaultKind] = {
    "ruin": FaultKind(
        "The guest of the secondary is ruined in its memory, until it is healed.",
        ruin,
        ("secondary",),
        Ruin,
        lasting=True,
    ),
}
