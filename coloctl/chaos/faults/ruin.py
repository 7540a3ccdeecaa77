"""Ruin the guest of a secondary in its memory, and keep it ruined until it is noticed or healed.

Called by the chaos runner and by `api.faults`. A machine check is injected through QEMU's human
monitor. Memory is overwritten behind QEMU's back, as memory that has gone bad would change: QEMU
does not know of it, so no checkpoint puts it right. Invariant: the ruin lasts. A checkpoint gives
the secondary the processors and the devices of the primary, and the pages that either guest wrote;
what that heals is ruined again at once, so whether the ruin is noticed does not depend on when a
checkpoint came.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import Field

from coloctl.chaos.faults.fault import Ask, Blow, FaultKind, Ground, Params
from coloctl.chaos.faults.processes import victims
from coloctl.chaos.scenario.values import Planned
from coloctl.errors import ColoctlError

MACHINE_CHECK, MEMORY = "machine-check", "memory"
#: What the code of the interrupt handlers becomes: ``cli`` and a jump to itself; ``cli``, ``hlt``
#: and a jump to the latter; an invalid instruction; ``iretq``, so that no interrupt is served.
CODES: Mapping[str, bytes] = {
    "spin": b"\xfa\xeb\xfd",
    "halt": b"\xfa\xf4\xeb\xfd",
    "crash": b"\x0f\x0b",
    "ignore": b"\x48\xcf",
}
KINDS = (MACHINE_CHECK, MEMORY, *CODES)
#: A machine check of the first processor that cannot be corrected: valid, enabled, context corrupt.
INJECT = "mce 0 0 0xbe00000000000000 0x5 0 0"
#: Vectors of x86: the page fault, devices, and what Linux uses for timers and processors.
VECTORS = (14, *range(0x20, 0x40), 0xEC, 0xFB, 0xFC, 0xFD)
#: Bytes of an entry of the interrupt table of 64-bit x86, and how many it has.
ENTRY, ENTRIES = 16, 256
#: Where memory is overwritten: every page of the guest has its chance, and loses so many bytes.
PAGE, LOST = 4096, 64
#: How often it is done again, seconds; and how long QEMU may take for an answer.
AGAIN_S, PATIENCE_S = 0.1, 10.0
#: A secondary that loads a checkpoint is reset before: for a moment it has no interrupt table.
RETRIES = 5


class Ruin(Params):
    """``how``: one of `KINDS`. ``share``: of the pages, for memory."""

    how: str = MACHINE_CHECK
    share: float = Field(default=0.2, gt=0.0, le=1.0)


@dataclass(frozen=True)
class Victim:
    """The guest of one QEMU, and a way to ask it."""

    node: str
    pid: int
    ask: Ask

    def monitor(self, line: str) -> str:
        """Return what the human monitor answers; raises `ColoctlError`."""
        arguments = {"command-line": line}
        command = "human-monitor-command"
        said = self.ask(
            "node-qmp", PATIENCE_S, node=self.node, execute=command, arguments=arguments
        )
        return str(said)

    def handlers(self) -> list[int]:
        """Return where in QEMU the guest's interrupt handlers are; empty when it has no table."""
        found = re.search(r"IDT=\s*([0-9a-f]+)", self.monitor("info registers"))
        if found is None or not int(found[1], 16):
            return []
        text = self.monitor(f"x /{ENTRIES * ENTRY // 8}gx 0x{found[1]}")
        words = [int(word, 16) for word in re.findall(r" 0x([0-9a-f]{16})\b", text)]
        if len(words) < ENTRIES * ENTRY // 8:
            return []
        places = []
        for vector in VECTORS:
            low, high = words[2 * vector], words[2 * vector + 1]
            places.append((low & 0xFFFF) | (low >> 32 & 0xFFFF0000) | (high & 0xFFFFFFFF) << 32)
        return [at for one in dict.fromkeys(places) if one and (at := self._in_qemu(one))]

    def _in_qemu(self, guest: int) -> int | None:
        physical = re.search(r"gpa: (?:0x)?([0-9a-f]+)", self.monitor(f"gva2gpa {guest:#x}"))
        return self.physical(int(physical[1], 16)) if physical else None

    def physical(self, at: int) -> int | None:
        """Return where in QEMU the guest's physical address is."""
        found = re.search(r" is (0x[0-9a-f]+)", self.monitor(f"gpa2hva {at:#x}"))
        return int(found[1], 16) if found else None

    def memory(self) -> int:
        """Return how much memory the guest has below its first hole at least, bytes."""
        execute = "query-memory-size-summary"
        size = self.ask("node-qmp", PATIENCE_S, node=self.node, execute=execute, arguments={})
        return min(int(size["base-memory"]), 2 << 30)

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Open the memory of that QEMU; raises OSError where the kernel does not let us."""
        memory = os.open(f"/proc/{self.pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield memory
        finally:
            os.close(memory)


def ruin(ground: Ground, fault: Planned, ask: Ask) -> Blow:
    """Ruin the secondary's guest, and keep it ruined until that is healed."""
    how = str(fault.params["how"])
    if how not in KINDS:
        return Blow(time.monotonic(), missed=f"how is one of {', '.join(KINDS)}")
    found = victims(fault.target, ground.view())
    if not found:
        return Blow(time.monotonic(), missed=f"there was no {fault.target} to hit")
    name, role, pid = str(found[0]["name"]), str(found[0]["role"]), int(found[0]["pid"])
    victim = Victim(name, pid, ask)
    try:
        deed = _deed(victim, how, float(fault.params["share"]))
        if deed is None:
            return Blow(time.monotonic(), missed="its guest has no interrupt table yet")
        at_s = time.monotonic()
        deed()
    except (ColoctlError, OSError) as error:
        return Blow(time.monotonic(), missed=f"its memory could not be reached: {error}")
    return Blow(at_s, _repeated(deed), (name,), role)


def _deed(victim: Victim, how: str, share: float) -> Callable[[], None] | None:
    """Return what ruins that guest whenever it is called; None where nothing can."""
    if how == MACHINE_CHECK:
        return lambda: (victim.monitor(INJECT), None)[1]
    chance = random.Random(how)
    if how == MEMORY:
        base = victim.physical(0)
        pages = range(0, victim.memory(), PAGE)
        bad = [at for at in pages if chance.random() < share]
        if base is None:
            return None
        return lambda: _overwrite(victim, {base + at: chance.randbytes(LOST) for at in bad})
    handlers = victim.handlers()
    for _ in range(RETRIES):
        if handlers:
            break
        time.sleep(AGAIN_S)
        handlers = victim.handlers()
    if not handlers:
        return None

    def replace() -> None:
        # What follows the code is never reached, and other bytes each time: a translation of code
        # beside it, made after the first time, would otherwise hide from the fresh-code plugin
        # that the page has changed.
        code = CODES[how] + chance.randbytes(ENTRY - len(CODES[how]))
        _overwrite(victim, dict.fromkeys(handlers, code))

    return replace


def _overwrite(victim: Victim, places: Mapping[int, bytes]) -> None:
    """Write into QEMU's memory behind its back; raises OSError."""
    with victim.opened() as memory:
        for at, data in places.items():
            os.pwrite(memory, data, at)


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
