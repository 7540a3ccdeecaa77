"""Compile a C file that needs no header and no library into a shared object.

The machine's own ``cc`` does it. Where there is none, Debian's tcc does, fetched with its C library
into a private folder: 3 MB in place of the 60 MB of gcc. Called by `check/freshcode.py`.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from coloctl.errors import ProvisionError
from coloctl.lab import apt, qemu
from coloctl.lab.lock import exclusive
from coloctl.lab.progress import Progress, Report, silent
from coloctl.paths import cache_dir

OPTIONS = ("-shared", "-nostdlib")
#: What gcc and clang need besides; tcc knows neither and makes such code anyway.
CC_OPTIONS = ("-fPIC", "-O2", "-fvisibility=hidden")

#: A source of some hundred lines takes a tenth of a second, seconds.
DEADLINE_S = 60.0

#: Offsets in an ELF header of 64 bits: e_phoff, and e_phentsize with e_phnum (elf.h).
_PHOFF, _PHNUM = 32, 54
_PHENT = 56
#: PT_GNU_STACK; readable and writable, not executable.
_STACK = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)


def shared_object(source: Path, target: Path, *, report: Report = silent) -> str:
    """Compile ``source`` into ``target`` and return the name of the compiler.

    Raises `ProvisionError` with the first complaint where neither compiler does it.
    """
    if cc := system_cc():
        if not (complaint := _run([cc, *CC_OPTIONS, *OPTIONS, "-o", str(target), str(source)])):
            return "cc"
        report(Progress(f"cc does not compile {source.name} ({complaint}): trying tcc"))
    command = _tcc(report)
    if complaint := _run([*command, *OPTIONS, "-o", str(target), str(source)]):
        raise ProvisionError(f"tcc does not compile {source.name}: {complaint}")
    _forbid_executable_stack(target)
    return "tcc"


def system_cc() -> str | None:
    """Return the machine's own C compiler, if it has one."""
    return shutil.which("cc")


def _run(command: Sequence[str]) -> str:
    """Run a compiler; return the first line of its complaint, empty when it succeeds."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if not done.returncode:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]


def _tcc(report: Report) -> list[str]:
    """Return the command line of the private tcc; fetch it where it is missing."""
    home = cache_dir().absolute() / "tcc"
    with exclusive(home.with_suffix(".lock"), "the compiler tcc", report):
        if not (home / "usr/bin/tcc").is_file():
            debs = apt.fetch(qemu.SUITES[qemu.FALLBACK], ["tcc"], report=report)
            apt.unpack(debs, home, report=report)
            apt.discard(debs)
    libraries = home / qemu.LIBRARIES[0]
    loader = libraries / "ld-linux-x86-64.so.2"
    return [
        *(str(loader), "--inhibit-cache", "--library-path", str(libraries)),
        *(str(home / "usr/bin/tcc"), "-B", str(libraries / "tcc")),
    ]


def _forbid_executable_stack(target: Path) -> None:
    """Mark ``target`` as needing no executable stack.

    tcc leaves that open, which the C library takes for a need, and refuses since 2.41. The program
    headers move to the end of the file, with one more.
    """
    binary = target.read_bytes()
    (offset,) = struct.unpack_from("<Q", binary, _PHOFF)
    size, count = struct.unpack_from("<HH", binary, _PHNUM)
    if binary[:5] != b"\x7fELF\x02" or size != _PHENT:
        raise ProvisionError(f"{target} is not a shared object of 64 bits.")
    headers = binary[offset : offset + size * count]
    # A loaded segment must not end in the headers, and they are aligned.
    padding = b"\0" * (-len(binary) % 16)
    moved = bytearray(binary + padding + headers + _STACK)
    struct.pack_into("<Q", moved, _PHOFF, len(binary) + len(padding))
    struct.pack_into("<H", moved, _PHNUM + 2, count + 1)
    target.write_bytes(moved)
