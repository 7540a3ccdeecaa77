"""Name a disk, an image file or a block device, so that it is recognized under another path.

`host.disk` finds these names on a machine. `colo.companion` writes them into the disk record, and
`colo.weigh` compares them before it believes what is written there. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Sameness(StrEnum):
    """Relation of the disk that is there now to the one in the disk record."""

    SAME = "same"
    MOVED = "moved"  #: it lies elsewhere now: another path or another machine
    REPLACED = "replaced"  #: another file or device lies where the known one was
    GONE = "gone"  #: nothing lies there


@dataclass(frozen=True)
class DiskIdentity:
    """Names by which a disk is recognized.

    ``key`` names the place: ``file:/srv/a.qcow2``, ``dm:LVM-...``, ``wwid:naa.5000...``. ``mark``
    differs between the file or device there and a later one in the same place; it is "" where the
    system does not report one. ``machine`` is the machine's id (machine-id(5)). ``rest`` is a
    file's size in bytes and the time of its last write, nanoseconds since 1970, "" where that
    proves nothing.
    """

    key: str
    mark: str = ""
    machine: str = ""
    device: bool = False  #: a block device; nothing can lie beside it
    stable: bool = True  #: the name holds over a reboot; else only ``mark`` ties it to this boot
    present: bool = True
    rest: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the identity as a document, without the fields that have their default."""
        usual = DiskIdentity("")
        return {
            name: value for name, value in asdict(self).items() if value != getattr(usual, name)
        }

    @classmethod
    def from_json(cls, document: object) -> DiskIdentity:
        """Read what `to_json` wrote; raises ValueError with a sentence otherwise."""
        if not isinstance(document, dict):
            raise ValueError("a disk's identity must be a JSON object")
        for name, value in document.items():
            if name not in _TYPES or type(value) is not _TYPES[name]:
                raise ValueError(f"a disk's identity cannot have {name} = {str(value)[:40]!r}")
        if not document.get("key"):
            raise ValueError("a disk's identity needs a key")
        return cls(**document)


_TYPES: Mapping[str, type] = {
    **dict.fromkeys(("key", "mark", "machine", "rest"), str),
    **dict.fromkeys(("device", "stable", "present"), bool),
}


def compare(now: DiskIdentity, known: DiskIdentity) -> Sameness:
    """Compare the disk that is there ``now`` with the one that was ``known``.

    A file keeps its mark when it is renamed. A copy has another mark: in the same place of the same
    machine it has replaced the known file; elsewhere it was carried there.
    """
    if not now.present:
        return Sameness.GONE
    told = bool(now.mark and known.mark)
    if now.key != known.key:
        renamed = told and now.mark == known.mark and now.machine == known.machine
        return Sameness.SAME if renamed and not now.device else Sameness.MOVED
    if not told or now.mark == known.mark:
        return Sameness.SAME if now.stable or told else Sameness.REPLACED
    elsewhere = now.machine and known.machine and now.machine != known.machine
    return Sameness.MOVED if elsewhere and not now.device else Sameness.REPLACED


#: Filesystems without fractions of a second keep times to two seconds at worst (FAT), nanoseconds.
_COARSE = 2 * 10**9


def written_since(now: DiskIdentity, known: DiskIdentity) -> bool:
    """Return whether the file that was ``known`` at rest was written to, resized or overwritten.

    False for another file, and where that cannot be determined.
    """
    if compare(now, known) is not Sameness.SAME or not (now.mark and now.rest and known.rest):
        return False
    try:
        size, at_ns = map(int, now.rest.split())
        was_size, was_at_ns = map(int, known.rest.split())
    except ValueError:
        return False
    if size != was_size:
        return True
    coarse = at_ns % 10**9 == 0 or was_at_ns % 10**9 == 0
    return abs(at_ns - was_at_ns) >= (_COARSE if coarse else 1)
