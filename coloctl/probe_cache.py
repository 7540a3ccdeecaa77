"""Remember what a binary was found to be, for as long as all that it depends on is unchanged.

Called by `vm`, `check.trial` and `machine.freshcode`; files are lines of `sealed` in the folder of
`paths`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from coloctl import paths, wholefile
from coloctl.sealed import seal, unseal

#: Grows when the trial itself changes what it asks for.
TRIAL = 1

#: A wrapper script is short; a QEMU begins with ELF's magic anyway.
SCRIPT_BYTES = 65536

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def key(binary: Path, accel: str, machine: str) -> str:
    """Return the name for this binary (and what it wraps), accelerator and machine on this boot.

    A probe that is not a trial of COLO has another word for the machine: ``loop``, ``accel``,
    ``dialect``.
    """
    return key_at(_boot_id(), identity(binary), accel, machine)


def key_at(boot: str, fingerprint: Iterable[str], accel: str, machine: str) -> str:
    """Return the name as `key` does, for a binary that another machine was asked about.

    ``boot`` is that machine's, and names the machine too; ``fingerprint`` is `identity` there.
    """
    return digest([str(TRIAL), accel, machine, boot, *fingerprint])


def identity(binary: Path) -> tuple[str, ...]:
    """Describe what makes this binary another one when it changes: path, size and mtime of each
    part.

    A wrapper script counts with every file that it names.
    """
    return tuple(_stamp(path) for path in (binary, *_wrapped(binary)))


def digest(parts: Iterable[str]) -> str:
    """Hash ``parts`` to the name of a file of the cache."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def recall(of: str) -> Mapping[str, Any] | None:
    """Return the verdict remembered under that key, or None."""
    with contextlib.suppress(OSError, ValueError):
        found = unseal(_file(of).read_bytes())
        return found.document if found.sealed else None  # else it is measured again
    return None


def remember(of: str, verdict: Mapping[str, Any]) -> None:
    """Store the verdict under that key; a cache that cannot be written is no error."""
    with contextlib.suppress(OSError, ValueError):
        file = _file(of)
        file.parent.mkdir(parents=True, exist_ok=True)
        wholefile.replace(file, seal(verdict))


def _file(of: str) -> Path:
    return paths.cache_dir() / "probe" / f"{of}.json"


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _stamp(path: Path) -> str:
    """Return path, size and mtime; a missing file has a stamp too."""
    try:
        status = path.stat()
    except OSError:
        return f"{path} absent"
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _wrapped(binary: Path) -> Iterator[Path]:
    """Find the files that a wrapper script names: a build may change while its script does not."""
    try:
        with binary.open("rb") as file:
            head = file.read(SCRIPT_BYTES)
    except OSError:
        return
    if not head.startswith(b"#!"):
        return
    for match in re.finditer(r"/[^\s'\"=:]+", head.decode(errors="replace")):
        named = Path(match[0])
        if named.is_file():
            yield named
