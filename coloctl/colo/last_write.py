"""Notice an image that was written to while its pair was down. Pure.

When a guest has ended, the word about its disks notes size and time of the last write of each image
file. `coloctl.colo.registry` compares that at the next look: a backup that was copied over the
image, or another tool that used it, leaves inode and companion as they were, but not these.

Invariant: only the latest word is asked, and a start writes one without them before its guest runs.
So what a killed QEMU, a power failure or a dead supervisor leaves is never taken for another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from coloctl.colo.companion import Companion, Word
from coloctl.model.disk import DiskIdentity, written_since


def forgotten(images: Mapping[str, DiskIdentity]) -> Mapping[str, DiskIdentity]:
    """Leave out of ``images``, by disk id, how they lie now: a guest is going to write to them."""
    return {disk: replace(identity, rest="") for disk, identity in images.items()}


def checked(
    known: Companion, now: Mapping[str, DiskIdentity], words: Iterable[Word | None]
) -> Companion:
    """Put disks in doubt whose images, as they are ``now``, were written to since ``words``."""
    latest = max((word for word in words if word), key=lambda word: word.serial, default=None)
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
