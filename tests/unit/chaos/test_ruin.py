"""A secondary's memory is overwritten where the guest's interrupt handlers are, and stays so."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from support.pair_under_test import InjectedFault
from support.views import pair_view

from coloctl.chaos.faults.fault import NothingToHit, PairUnderTest
from coloctl.chaos.faults.ruin import CODES, ENTRIES, ENTRY, INJECT, VECTORS
from coloctl.chaos.run.site import LabSite
from coloctl.errors import ColoctlError
from coloctl.lab.network import Lab

pytestmark = pytest.mark.unit

IDT, TEXT, SIZE = 0xFFFFFE0000000000, 0xFFFFFFFF81E00000, 1 << 16
REGISTERS = f"GDT=     fffffe0000001000 0000007f\nIDT=     {IDT:x} 00000fff\nCR0=80050033\n"


class Machine:
    """A QEMU whose memory is a buffer of this process, and its human monitor."""

    def __init__(self, registers: str = REGISTERS) -> None:
        self.memory = ctypes.create_string_buffer(SIZE)
        self.base = ctypes.addressof(self.memory)
        self.registers, self.asked = registers, list[str]()

    def ask(self, _: str, __: float, /, **arguments: Any) -> object:
        if arguments["execute"] == "query-memory-size-summary":
            return {"base-memory": SIZE}
        line = str(arguments["arguments"]["command-line"])
        self.asked.append(line)
        return self.monitor(*line.split())

    def monitor(self, verb: str, *words: str) -> str:
        if verb == "info":
            return self.registers
        if verb == "x":
            entries = [self.entry(vector) for vector in range(ENTRIES)]
            lines = [
                f"{IDT + ENTRY * n:016x}: 0x{low:016x} 0x{high:016x}\r\n"
                for n, (low, high) in enumerate(entries)
            ]
            return "".join(lines)
        if verb == "gva2gpa":
            return f"gpa: {int(words[0], 16) - TEXT:#x}\r\n"
        if verb == "gpa2hva":
            at = int(words[0], 16)
            return f"Host virtual address for {words[0]} (pc.ram) is {self.base + at:#x}\r\n"
        return ""

    @staticmethod
    def at(vector: int) -> int:
        return TEXT + 64 * vector

    def entry(self, vector: int) -> tuple[int, int]:
        at = self.at(vector)
        low = at & 0xFFFF | 0x8E00 << 32 | 0x10 << 16 | (at >> 16 & 0xFFFF) << 48
        return low, at >> 32

    def ruin(self, **params: object) -> InjectedFault:
        view = pair_view(b=("secondary", os.getpid()))
        pair = PairUnderTest("web", LabSite(cast("Lab", None)), Path("/"), lambda: view, self.ask)
        return InjectedFault(pair, "ruin", "secondary", params)


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.parametrize("how", sorted(CODES))
def test_the_handlers_code_is_other_code_and_stays_so(how: str) -> None:
    machine = Machine()
    fault = machine.ruin(how=how)
    try:
        assert fault.nodes == ("b",)
        code = CODES[how]
        where = [Machine.at(vector) - TEXT for vector in VECTORS]
        assert all(machine.memory.raw[at : at + len(code)] == code for at in where)
        assert sum(map(bool, machine.memory.raw)) <= ENTRY * len(where)
        ctypes.memset(machine.memory, 0, SIZE)  # a checkpoint has put the memory right
        until(lambda: all(machine.memory.raw[at : at + len(code)] == code for at in where))
    finally:
        fault.heal()
    ctypes.memset(machine.memory, 0, SIZE)  # its thread has ended
    assert not any(machine.memory.raw)


def test_a_share_of_the_pages_loses_bytes() -> None:
    machine = Machine()
    machine.ruin(how="memory", share=1.0).heal()
    pages = [machine.memory.raw[at : at + 4096] for at in range(0, SIZE, 4096)]
    assert all(0 < 4096 - page.count(0) <= 64 for page in pages)


def test_machine_checks_come_until_it_is_healed() -> None:
    machine = Machine()
    fault = machine.ruin()
    until(lambda: machine.asked.count(INJECT) >= 3)
    fault.heal()
    assert set(machine.asked) == {INJECT}


def test_a_secondary_that_loads_a_checkpoint_is_asked_again() -> None:
    machine = Machine("IDT=     0000000000000000 000003ff")
    asked = machine.ask

    def later(name: str, timeout_s: float, /, **arguments: Any) -> object:
        answer = asked(name, timeout_s, **arguments)
        machine.registers = REGISTERS
        return answer

    machine.ask = later  # type: ignore[method-assign]
    machine.ruin(how="spin").heal()
    assert machine.registers == REGISTERS


@pytest.mark.parametrize(
    ("registers", "how", "said"),
    [
        ("IDT=     0000000000000000 000003ff", "spin", "has no interrupt table yet"),
        ("", "spin", "has no interrupt table yet"),
    ],
)
def test_what_cannot_be_ruined_is_missed(registers: str, how: str, said: str) -> None:
    with pytest.raises(NothingToHit, match=said):
        Machine(registers).ruin(how=how)


def test_a_qemu_that_refuses_or_is_gone_is_missed() -> None:
    machine = Machine()

    def refuse(*_: object, **__: object) -> object:
        raise ColoctlError("QEMU is gone.")

    machine.ask = refuse  # type: ignore[method-assign]
    with pytest.raises(NothingToHit, match="QEMU is gone"):
        machine.ruin(how="spin")
