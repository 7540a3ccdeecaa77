"""Corrupt the guest of a secondary in its memory, again and again until the fault is healed.

Registered in `chaos.faults`. A machine check is injected through QEMU's human monitor. Memory is
overwritten without QEMU, as memory that has gone bad would change: QEMU is not aware of it, so no
checkpoint puts it right.

Invariant: the corruption lasts. A checkpoint gives the secondary the processors and the devices of
the primary, and the pages that either guest wrote. The parts that this heals are corrupted again at
once, so whether the corruption is noticed does not depend on when a checkpoint came.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from coloctl.chaos.faults.fault import (
    QMP_S,
    Fault,
    Injected,
    NothingToHit,
    PairUnderTest,
    TargetNode,
    fault,
)
from coloctl.chaos.scenario.tables import Params
from coloctl.clock import Deadline
from coloctl.errors import ColoctlError

#: The code that the interrupt handlers become: ``cli`` and a jump to itself; ``cli``, ``hlt``
#: and a jump to the latter; an invalid instruction; ``iretq``, so that no interrupt is served.
CODES: Mapping[str, bytes] = {
    "spin": b"\xfa\xeb\xfd",
    "halt": b"\xfa\xf4\xeb\xfd",
    "crash": b"\x0f\x0b",
    "ignore": b"\x48\xcf",
}
#: A machine check of the first processor that cannot be corrected: valid, enabled, context corrupt.
INJECT = "mce 0 0 0xbe00000000000000 0x5 0 0"
#: Vectors of x86: the page fault, devices, and those that Linux uses for timers and processors.
VECTORS = (14, *range(0x20, 0x40), 0xEC, 0xFB, 0xFC, 0xFD)
#: Bytes of an entry of the interrupt table of 64-bit x86, and how many it has.
ENTRY, ENTRIES = 16, 256
#: Where memory is overwritten: every page of the guest has its chance, and loses so many bytes.
PAGE, LOST = 4096, 64
#: How often it is done again, seconds.
AGAIN_S = 0.1
#: A secondary that loads a checkpoint is reset before: for a moment it has no interrupt table.
RETRY_S = 0.5


class RuinParams(Params):
    """``how``: a machine check, memory, or one of `CODES`. ``share``: of the pages, for memory."""

    how: Literal["machine-check", "memory", "spin", "halt", "crash", "ignore"] = "machine-check"
    share: float = Field(default=0.2, gt=0.0, le=1.0)


@dataclass(frozen=True)
class GuestMemory:
    """The memory of one QEMU's guest, and the human monitor that finds places in it."""

    node: TargetNode
    pair: PairUnderTest

    def monitor(self, line: str) -> str:
        """Return the answer of the human monitor; raises `ColoctlError`."""
        return str(self.pair.qmp(self.node.name, "human-monitor-command", command_line=line))

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
        size = self.pair.qmp(self.node.name, "query-memory-size-summary")
        return min(int(size["base-memory"]), 2 << 30)

    def overwrite(self, places: Mapping[int, bytes]) -> None:
        """Write into QEMU's memory without its knowledge; raises OSError."""
        with Path(f"/proc/{self.node.pid}/mem").open("r+b", buffering=0) as memory:
            for at, data in places.items():
                os.pwrite(memory.fileno(), data, at)


def _damage(guest: GuestMemory, how: str, share: float) -> Callable[[], None] | None:
    """Return a function that corrupts that guest at each call; None where none can."""
    if how == "machine-check":
        return lambda: (guest.monitor(INJECT), None)[1]
    chance = random.Random(how)
    if how == "memory":
        base = guest.physical(0)
        pages = range(0, guest.memory(), PAGE)
        bad = [at for at in pages if chance.random() < share]
        if base is None:
            return None
        return lambda: guest.overwrite({base + at: chance.randbytes(LOST) for at in bad})
    if not (handlers := Deadline(RETRY_S).poll_blocking(guest.handlers, AGAIN_S)):
        return None

    def replace() -> None:
        # The bytes after the code are never reached, and are other ones each time: a translation
        # of code beside it, made after the first time, would otherwise hide from the fresh-code
        # plugin that the page has changed.
        code = CODES[how] + chance.randbytes(ENTRY - len(CODES[how]))
        guest.overwrite(dict.fromkeys(handlers, code))

    return replace


@fault("ruin")
class Ruin(Fault[RuinParams]):
    """Corruption of the secondary's guest in its memory, until it is healed."""

    targets = ("secondary",)
    params = RuinParams
    lasting = True
    _worker: threading.Thread | None = None

    def begin(self) -> Injected:
        """Corrupt the guest once, and again and again in a thread.

        Raises `NothingToHit` when the guest has no interrupt table yet, or its memory cannot be
        reached.
        """
        node = self.pair.node(self.target)
        try:
            guest = GuestMemory(node, self.pair)
            if (damage := _damage(guest, self.given.how, self.given.share)) is None:
                raise NothingToHit("its guest has no interrupt table yet")
            at_s = time.monotonic()
            damage()
        except NothingToHit:
            raise
        except (ColoctlError, OSError) as error:
            raise NothingToHit(f"its memory could not be reached: {error}") from error
        self._healed = threading.Event()
        self._worker = threading.Thread(target=self._repeat, args=(damage,), daemon=True)
        self._worker.start()
        return Injected(at_s, (node.name,), node.role)

    def _repeat(self, damage: Callable[[], None]) -> None:
        """Corrupt the guest every `AGAIN_S`, until that QEMU is gone or the fault is healed."""
        with contextlib.suppress(OSError, ColoctlError):
            while not self._healed.wait(AGAIN_S):
                damage()

    def heal(self) -> None:
        """Stop corrupting the guest."""
        if self._worker is not None:
            self._healed.set()
            self._worker.join(QMP_S)
