"""Assemble a guest of 64 KiB: from the reset vector to 64-bit mode, one counted loop, and out.

Called by `machine.accel`, which measures it. It takes the place of the firmware (``-bios``), so
that no other instructions run. It writes `ENTERED` to the debug console in 64-bit mode, `FINISHED`
after the loop, and then ends QEMU through isa-debug-exit. Source of the encodings: the opcode maps
of the AMD64 and Intel 64 manuals.
"""

from __future__ import annotations

import struct

#: Turns of the loop: about 10 ms on hardware, 0.1 s translated, half a minute emulated.
TURNS = 1 << 24

#: QEMU's isa-debugcon and isa-debug-exit, at their customary ports.
CONSOLE_PORT = 0xE9
EXIT_PORT = 0xF4
#: isa-debug-exit ends QEMU with ``(value << 1) | 1``.
EXIT_VALUE = 0x10

ENTERED = b"L"
FINISHED = b"D"

#: QEMU maps the image below 4 GiB, where the reset vector is, and again below 1 MiB.
ROM_SIZE = 0x10000
ROM_BASE = 0xF0000
RESET_VECTOR = 0xFFF0

#: Page tables in RAM: one entry each, which map the first 2 MiB onto themselves.
PML4, PDPT, PD = 0x1000, 0x2000, 0x3000
PRESENT_WRITABLE = 0b11
LARGE_PAGE = 1 << 7

EFER = 0xC0000080
EFER_LME = 1 << 8
CR4_PAE = 1 << 5
CR0_PG_PE = (1 << 31) | 1

#: Present, ring 0, execute/read, 64-bit, and already marked as accessed: it lies in ROM.
CODE64 = 0x00209B00_00000000
CODE64_SELECTOR = 8


def rom(turns: int = TURNS) -> bytes:
    """Assemble the image for ``-bios`` whose loop takes ``turns`` turns (1 to 2**32 - 1)."""
    code64 = _long_mode(turns)
    # The first half refers to addresses after itself; its length does not depend on them.
    length = len(_real_mode(gdtr=0, entry=0))
    entry = length
    gdt = (entry + len(code64) + 7) // 8 * 8
    gdtr = gdt + 16

    image = bytearray(ROM_SIZE)
    image[:entry] = _real_mode(gdtr, entry)
    image[entry : entry + len(code64)] = code64
    image[gdt:gdtr] = struct.pack("<QQ", 0, CODE64)
    image[gdtr : gdtr + 6] = struct.pack("<HI", 15, ROM_BASE + gdt)
    # jmp far 0xF000:0, from the copy below 4 GiB to the one below 1 MiB
    image[RESET_VECTOR : RESET_VECTOR + 5] = b"\xea" + struct.pack("<HH", 0, ROM_BASE >> 4)
    return bytes(image)


def _real_mode(gdtr: int, entry: int) -> bytes:
    """Assemble 16-bit code: page tables, then straight into 64-bit mode at offset ``entry``."""
    return b"".join(
        (
            b"\xfa",  # cli
            b"\x31\xc0\x8e\xd8",  # xor ax, ax; mov ds, ax
            _store(PML4, PDPT | PRESENT_WRITABLE),
            _store(PDPT, PD | PRESENT_WRITABLE),
            _store(PD, LARGE_PAGE | PRESENT_WRITABLE),
            b"\x2e\x66\x0f\x01\x16" + struct.pack("<H", gdtr),  # lgdt cs:[gdtr]
            _load_eax(CR4_PAE) + b"\x0f\x22\xe0",  # mov cr4, eax
            _load_eax(PML4) + b"\x0f\x22\xd8",  # mov cr3, eax
            b"\x66\xb9" + struct.pack("<I", EFER),  # mov ecx, EFER
            b"\x0f\x32",  # rdmsr
            b"\x66\x0d" + struct.pack("<I", EFER_LME),  # or eax, EFER_LME
            b"\x0f\x30",  # wrmsr
            b"\x0f\x20\xc0",  # mov eax, cr0
            b"\x66\x0d" + struct.pack("<I", CR0_PG_PE),  # or eax, CR0_PG_PE
            b"\x0f\x22\xc0",  # mov cr0, eax
            # jmp far CODE64_SELECTOR:entry
            b"\x66\xea" + struct.pack("<IH", ROM_BASE + entry, CODE64_SELECTOR),
        )
    )


def _long_mode(turns: int) -> bytes:
    """Assemble 64-bit code.

    `ENTERED` arrives through the upper half of a register, which a 32-bit register does not have.
    """
    return b"".join(
        (
            b"\x48\xb8" + struct.pack("<Q", ENTERED[0] << 32),  # mov rax, ENTERED << 32
            b"\x48\xc1\xe8\x20",  # shr rax, 32
            _out(CONSOLE_PORT),
            b"\xb9" + struct.pack("<I", turns),  # mov ecx, turns
            b"\xff\xc9",  # dec ecx
            b"\x75\xfc",  # jnz, back to the dec
            b"\xb0" + FINISHED + _out(CONSOLE_PORT),  # mov al, FINISHED
            b"\xb0" + bytes([EXIT_VALUE]) + _out(EXIT_PORT),  # mov al, EXIT_VALUE
            b"\xf4\xeb\xfd",  # hlt; jmp, back to the hlt
        )
    )


def _store(address: int, value: int) -> bytes:
    """Assemble two ``mov dword [address], imm32`` which make one page table entry."""
    low = b"\x66\xc7\x06" + struct.pack("<HI", address, value)
    high = b"\x66\xc7\x06" + struct.pack("<HI", address + 4, 0)
    return low + high


def _load_eax(value: int) -> bytes:
    return b"\x66\xb8" + struct.pack("<I", value)


def _out(port: int) -> bytes:
    """Assemble ``out port, al``."""
    return b"\xe6" + bytes([port])
