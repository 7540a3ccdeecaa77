"""A shared object that needs no executable stack, and a compiler's complaint in one sentence."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from coloctl.errors import ProvisionError
from coloctl.lab import compiler

pytestmark = pytest.mark.unit

#: An ELF header of 64 bits with two program headers behind it (elf.h).
HEADERS = [struct.pack("<IIQQQQQQ", kind, 5, 0, 0, 0, 0, 0, 8) for kind in (1, 2)]
ELF = b"\x7fELF\x02".ljust(32, b"\0") + struct.pack("<Q", 64)
ELF = ELF.ljust(54, b"\0") + struct.pack("<HH", 56, len(HEADERS))
ELF = ELF.ljust(64, b"\0") + b"".join(HEADERS) + b"code"


def headers(binary: bytes) -> list[bytes]:
    (offset,) = struct.unpack_from("<Q", binary, 32)
    size, count = struct.unpack_from("<HH", binary, 54)
    return [binary[offset + size * n : offset + size * (n + 1)] for n in range(count)]


def test_one_program_header_more_says_that_the_stack_is_not_executable(tmp_path: Path) -> None:
    file = tmp_path / "x.so"
    file.write_bytes(ELF)
    compiler._forbid_executable_stack(file)
    *kept, added = headers(file.read_bytes())
    assert kept == HEADERS
    assert struct.unpack_from("<II", added) == (0x6474E551, 6)
    assert file.read_bytes()[64:].startswith(ELF[64:])


def test_what_is_no_shared_object_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "x.so"
    file.write_bytes(b"MZ".ljust(100, b"\0"))
    with pytest.raises(ProvisionError, match="64 bits"):
        compiler._forbid_executable_stack(file)


def test_a_source_that_no_compiler_takes_is_told_with_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaining = tmp_path / "cc"
    complaining.write_text("#!/bin/sh\necho 'x.c:1: error: no' >&2\nexit 1\n")
    complaining.chmod(0o755)
    monkeypatch.setattr(compiler, "system_cc", lambda: str(complaining))
    monkeypatch.setattr(compiler, "_tcc", lambda report: [str(complaining)])
    with pytest.raises(ProvisionError, match=r"x\.c:1: error: no"):
        compiler.shared_object(tmp_path / "x.c", tmp_path / "x.so")
