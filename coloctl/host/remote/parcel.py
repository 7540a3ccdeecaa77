"""Pack the agent's program as a zip: the parts of coloctl that the other machine runs.

Called by `host.remote.greeting` when a machine is dialled; `host.remote.loader` receives the zip
there. The zip needs no third-party module and no other file. Python runs it where it is, with
``PYTHONPATH=ZIP``.

Invariant: the same sources give the same bytes, so the digest names what runs on both machines.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import coloctl

#: What is packed, below the package: modules, and folders with all modules in them.
PARTS = (
    *("__init__.py", "bounded.py", "clock.py", "errordocument.py", "errors.py", "flocks.py"),
    *("interrupts.py", "journalfile.py", "paths.py", "probe_cache.py", "procfs.py"),
    *(
        "ratelimit.py",
        "reading.py",
        "regular.py",
        "reserve.py",
        "sealed.py",
        "tasks.py",
        "urgency.py",
        "wholefile.py",
    ),
    *("host", "model", "nbd"),
    *("machine/__init__.py", "machine/accel.py", "machine/probe_guest.py"),
)

#: The first moment that a zip can record: no wall clock is part of the digest.
_MOMENT = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Parcel:
    """The bytes of the zip, and their SHA-256 in hexadecimal."""

    content: bytes
    digest: str


@cache
def parcel() -> Parcel:
    """Pack the sources of this coloctl; reads some 100 files once in a process."""
    root = Path(coloctl.__file__).parent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in _files(root):
            name = f"{root.name}/{file.relative_to(root)}"
            entry = zipfile.ZipInfo(name, _MOMENT)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    content = packed.getvalue()
    return Parcel(content, hashlib.sha256(content).hexdigest())


def _files(root: Path) -> list[Path]:
    """List the files of `PARTS` in an order that no filesystem decides."""
    files: list[Path] = []
    for part in PARTS:
        path = root / part
        files += path.rglob("*.py") if path.is_dir() else [path]
    return sorted(files)
