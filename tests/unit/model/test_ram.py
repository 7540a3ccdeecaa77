"""Which addresses are memory: what three QEMUs print, and what is not understood."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.model.ram import LEGACY, NotUnderstood, RamRange, main_memory

pytestmark = pytest.mark.unit

#: What ``info mtree -f`` prints with ``-machine pc -m 64``, but for what the names say.
GOLDEN = Path(__file__).parents[2] / "golden" / "mtree"
MIB = 1 << 20
LOW = RamRange(0, 0xA0000)

VIEW = """FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram
  00000000000c0000-00000000000fffff (prio 0, rom): pc.ram @00000000000c0000
  0000000000100000-0000000003ffffff (prio 0, ram): pc.ram @0000000000100000
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram

FlatView #2
 AS "i440FX", root: bus master container
 Root memory region: (none)
  No rendered FlatView
"""


@pytest.mark.parametrize(
    ("name", "base", "plugged", "block", "ranges"),
    [
        *((name, 64, 0, "pc.ram", (LOW, RamRange(MIB, 64 * MIB))) for name in
          ("7.2", "10.0", "11.1", "11.1-q35")),
        ("11.1-large", 5120, 0, "pc.ram",
         (LOW, RamRange(MIB, 3072 * MIB), RamRange(4096 * MIB, 6144 * MIB))),
        ("11.1-numa", 128, 0, "m0", (LOW, RamRange(MIB, 64 * MIB))),
        ("11.1-plugged", 64, 128, "pc.ram", (LOW, RamRange(MIB, 64 * MIB))),
    ],
)  # fmt: skip
def test_each_qemus_words_are_understood_and_what_is_left_out_is_counted(
    name: str, base: int, plugged: int, block: str, ranges: tuple[RamRange, ...]
) -> None:
    view = (GOLDEN / f"{name}.txt").read_text()
    ram = main_memory(view, base * MIB, plugged * MIB)
    assert (ram.block, ram.ranges) == (block, ranges)
    assert ram.size + ram.left_out == (base + plugged) * MIB
    assert main_memory(view.replace("\n", "\r\n"), base * MIB, plugged * MIB) == ram


def test_devices_and_roms_are_never_in_a_range() -> None:
    ram = main_memory(VIEW, 64 * MIB)
    assert ram.ranges == (LOW, RamRange(MIB, 64 * MIB))
    for begin, end in (LEGACY, (0xFD000000, 0xFE000000)):
        assert all(one.end <= begin or one.begin >= end for one in ram.ranges)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ('"memory", root: system', '"memory", root: else', "no address space"),
        ('"I/O", root: io', '"memory", root: system', "no address space"),
        ("(prio 0, ram): pc.ram\n", "(prio 0, i/o): pc.ram\n", "no memory at address 0"),
        ("-00000000000bffff", "-00000000000cffff", "overlap"),
        ("-0000000003ffffff", "-0000000003fffeff", "begin and end with a page"),
        ("-0000000003ffffff", "-0000000007ffffff", "more than the guest"),
        ("  00000000fd000000-", "  fd000000 to ", "unknown words"),
        ("(prio 1, ram)", "(ram)", "unknown words"),
    ],
)
def test_a_view_that_is_not_understood_is_refused(before: str, after: str, why: str) -> None:
    assert before in VIEW
    with pytest.raises(NotUnderstood, match=why):
        main_memory(VIEW.replace(before, after, 1), 64 * MIB)


@given(cut=st.integers(0, len(VIEW)))
def test_a_view_that_is_cut_short_is_refused_or_only_lacks_memory(cut: int) -> None:
    try:
        ram = main_memory(VIEW[:cut], 64 * MIB)
    except NotUnderstood:
        return
    whole = main_memory(VIEW, 64 * MIB)
    assert set(ram.ranges) <= set(whole.ranges) and ram.left_out >= whole.left_out
