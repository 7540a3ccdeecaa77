"""Notice an image that was written to while its pair was down; pure.

When a guest has ended, its disk record notes size and time of the last write of each image file.
`colo.registry` compares them at the next look. A backup that was copied over the image, or another
tool that used it, leaves inode and companion file as they were, but not these.

Invariant: only the latest record is compared, and a start writes one without them before its guest
runs. So what a killed QEMU, a power failure or a dead supervisor leaves is never taken for a write
of another program.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from coloctl.colo.companion import Companion, DiskRecord
from coloctl.model.disk import DiskIdentity, written_since


def forgotten(images: Mapping[str, DiskIdentity]) -> Mapping[str, DiskIdentity]:
    """Return ``images``, by disk id, without size and time: a guest is going to write to them."""
    return {disk: replace(identity, rest="") for disk, identity in images.items()}


def checked(
    known: Companion, now: Mapping[str, DiskIdentity], records: Iterable[DiskRecord | None]
) -> Companion:
    """Put disks in doubt whose images, as they are ``now``, were written to since ``records``."""
    latest = max(
        (record for record in records if record), key=lambda record: record.serial, default=None
    )
    if latest is None or known.doubt or not known.written:
        return known
    for disk, was in latest.images.items():
        if disk in now and written_since(now[disk], was):
            return replace(
                known,
                doubt=f"Node {known.node}'s disk {disk}, {was.key.removeprefix('file:')}, was "
                f"written to after its guest had ended: it was overwritten, by a backup perhaps, "
                "or another program used it.",
                bound=known.generation,
                written=False,
            )
    return known
