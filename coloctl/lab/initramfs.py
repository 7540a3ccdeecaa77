"""Write an initramfs as the bytes of a `newc` archive, and resolve what kernel modules need.

Called by `lab.guestbuild`.

The archive format is the kernel's own (Documentation/driver-api/early-userspace/buffer-format.rst):
a header of thirteen 8-digit hexadecimal fields after the magic "070701", the name, the data, each
padded to four bytes, closed by an entry called TRAILER!!!. Device nodes are header fields like any
other, so no right to make devices is needed. Times are zero and inode numbers count up: the same
entries always give the same bytes.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

from coloctl.errors import ProvisionError

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class ArchiveEntry:
    """One file, folder, symbolic link or device node, owned by root inside the guest."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(path: str, permissions: int = 0o755) -> ArchiveEntry:
    """Describe a folder."""
    return ArchiveEntry(path, stat.S_IFDIR | permissions)


def file(path: str, data: bytes, permissions: int = 0o644) -> ArchiveEntry:
    """Describe a regular file with that content."""
    return ArchiveEntry(path, stat.S_IFREG | permissions, data)


def link(path: str, target: str) -> ArchiveEntry:
    """Describe a symbolic link to ``target``."""
    return ArchiveEntry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> ArchiveEntry:
    """Describe the node of a character device."""
    return ArchiveEntry(path, stat.S_IFCHR | permissions, device=(major, minor))


def archive(entries: Iterable[ArchiveEntry]) -> bytes:
    """Pack the entries as one `newc` archive.

    Folders that no entry names are added, before what lies in them. Raises `ValueError` when one
    path is given twice.
    """
    out = bytearray()
    for number, entry in enumerate(_with_parents(entries), start=1):
        _append(out, number, entry)
    _append(out, 0, ArchiveEntry(_TRAILER, 0))
    return bytes(out)


def _with_parents(entries: Iterable[ArchiveEntry]) -> list[ArchiveEntry]:
    named: dict[str, ArchiveEntry] = {}
    for entry in entries:
        path = entry.path.strip("/")
        if path in named:
            raise ValueError(f"{path} is given twice")
        named[path] = entry
    for path in list(named):
        for parent in PurePosixPath(path).parents:
            if parent.name:
                named.setdefault(str(parent), folder(str(parent)))
    return [named[path] for path in sorted(named)]


def _append(out: bytearray, number: int, entry: ArchiveEntry) -> None:
    name = entry.path.strip("/").encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (
        number,
        entry.mode,
        0,  # uid
        0,  # gid
        links,
        0,  # mtime
        len(entry.data),
        0,  # major and minor of the file system it came from
        0,
        major,
        minor,
        len(name),
        0,  # checksum, unused by this magic
    )
    out += b"070701" + b"".join(b"%08x" % field for field in fields) + name
    _pad(out)
    out += entry.data
    _pad(out)


def _pad(out: bytearray) -> None:
    out += bytes(-len(out) % 4)


def module_dependencies(data: bytes) -> tuple[str, ...]:
    """Read the dependencies of a kernel module: the `depends=` record of its .modinfo section."""
    found = re.search(rb"\0depends=([^\0]*)\0", data)
    return tuple(found[1].decode().split(",")) if found and found[1] else ()


def module_closure(release: Path, wanted: Iterable[str]) -> dict[str, Path]:
    """Find the wanted modules and all they depend on, each after what it needs.

    ``release`` is the folder /lib/modules/VERSION of an unpacked kernel package. Names are compared
    as the kernel does, with dashes as underscores. Raises `ProvisionError` for a module that this
    kernel has not got.
    """
    available = {_module_name(path.stem): path for path in release.rglob("*.ko")}
    needs: dict[str, tuple[str, ...]] = {}
    pending = [_module_name(name) for name in wanted]
    while pending:
        name = pending.pop()
        if name in needs:
            continue
        if name not in available:
            raise ProvisionError(
                f"The kernel {release.name} has no module {name}.",
                hint="its package may have changed; remove the guest's folder in the cache",
            )
        needs[name] = tuple(map(_module_name, module_dependencies(available[name].read_bytes())))
        pending.extend(needs[name])
    try:
        return {name: available[name] for name in TopologicalSorter(needs).static_order()}
    except CycleError as error:
        raise ProvisionError(f"The modules of kernel {release.name} need each other.") from error


def module_entries(release: str, modules: Mapping[str, Path]) -> list[ArchiveEntry]:
    """Return the modules with the `modules.dep` that modprobe reads.

    Each of its lines names a file and all it needs.
    """
    base = f"lib/modules/{release}"
    contents = {name: path.read_bytes() for name, path in modules.items()}
    lines = []
    for name in modules:
        files = " ".join(f"{need}.ko" for need in _all_needs(name, contents))
        lines.append(f"{name}.ko: {files}".rstrip())
    entries = [file(f"{base}/{name}.ko", data) for name, data in contents.items()]
    return [*entries, file(f"{base}/modules.dep", ("\n".join(lines) + "\n").encode())]


def _all_needs(name: str, contents: Mapping[str, bytes]) -> list[str]:
    """List all that ``name`` needs, nearest first as depmod writes it.

    The order matters, because modprobe loads from the end.
    """
    needs: dict[str, None] = {}
    for near in map(_module_name, module_dependencies(contents[name])):
        for each in (near, *_all_needs(near, contents)):
            needs.pop(each, None)
            needs[each] = None
    return list(needs)


def _module_name(name: str) -> str:
    return name.replace("-", "_")
