"""Make, inspect and commit the overlays of a secondary's disk, through ``qemu-img``.

Called by `colo.overlays`, on the node that has the files. ``run`` executes a command there, as in
`machine.image`.

Invariant: until it is known that QEMU has put an image in the place of its overlays, the guest's
disk is the image with both. Committing them into the image changes no byte of that disk; it may be
cut short at any point and may be done again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coloctl.errors import PreconditionFailed
from coloctl.machine.image import HEADER_DEADLINE_S, QEMU_IMG, CommandEnd, RunCommand, reason

#: Committing ends when the disk has taken everything, however slow it is; seconds, a week.
COMMIT_DEADLINE_S = 7 * 86_400.0


async def make(path: Path, size: int, run: RunCommand, *, qemu_img: Path = QEMU_IMG) -> None:
    """Make ``path`` an empty overlay of ``size`` bytes that its owner alone can read.

    With lazy reference counts QEMU marks it as dirty from its first data cluster until it is
    closed. Raises `PreconditionFailed` naming it when it cannot be written.
    """
    words = [str(qemu_img), "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on"]
    script = 'umask 077 && rm -f -- "$1" && shift && exec "$@"'
    argv = ["sh", "-c", script, "sh", str(path), *words, str(path), str(size)]
    _require(await run(argv, deadline_s=HEADER_DEADLINE_S), f"{path} cannot be made")


@dataclass(frozen=True)
class Marks:
    """The marks that QEMU wrote into the header of an overlay."""

    dirty: bool  #: it holds data, and QEMU never closed it
    bitmaps: frozenset[str]  #: those that QEMU wrote when it closed it, by name


async def marks(path: Path, run: RunCommand, *, qemu_img: Path = QEMU_IMG) -> Marks:
    """Read the marks of the overlay, and no other part of it.

    Raises `PreconditionFailed` when it is missing, damaged or in use.
    """
    argv = [str(qemu_img), "info", "-f", "qcow2", "--output=json", str(path)]
    done = await run(argv, deadline_s=HEADER_DEADLINE_S)
    _require(done, f"{path} cannot be read")
    found = _json(path, done.stdout)
    bitmaps = found.get("format-specific", {}).get("data", {}).get("bitmaps", ())
    names = frozenset(str(bitmap["name"]) for bitmap in bitmaps)
    return Marks(bool(found.get("dirty-flag", False)), names)


async def has_data(path: Path, run: RunCommand, *, qemu_img: Path = QEMU_IMG) -> bool:
    """Return whether a cluster of the overlay holds data, other than zeros without a place.

    Raises `PreconditionFailed` as `marks` does.
    """
    argv = [str(qemu_img), "map", "-f", "qcow2", "--output=json", str(path)]
    done = await run(argv, deadline_s=COMMIT_DEADLINE_S)
    _require(done, f"{path} cannot be read")
    return any(bool(extent.get("data")) for extent in _json(path, done.stdout))


async def commit(
    image: Path,
    image_format: str,
    active: Path,
    hidden: Path,
    run: RunCommand,
    *,
    qemu_img: Path = QEMU_IMG,
) -> None:
    """Commit both overlays, ``active`` above ``hidden``, into the image, and flush it.

    The overlays keep what they hold. Raises `PreconditionFailed` naming the image when one of the
    three is in use, missing or fails; the guest's disk is still the image with both overlays then.
    """
    what = f"{image} could not take what {active} and {hidden} hold"
    for above, below, below_format in ((hidden, image, image_format), (active, hidden, "qcow2")):
        argv = [str(qemu_img), "rebase", "-u", "-f", "qcow2", "-F", below_format]
        done = await run([*argv, "-b", str(below), str(above)], deadline_s=COMMIT_DEADLINE_S)
        _require(done, what)
    argv = [str(qemu_img), "commit", "-q", "-f", "qcow2", "-d", "-b", str(image), str(active)]
    _require(await run(argv, deadline_s=COMMIT_DEADLINE_S), what)


def _json(path: Path, document: str) -> Any:
    try:
        return json.loads(document)
    except ValueError:
        raise PreconditionFailed(f"qemu-img says nothing usable about {path}.") from None


def _require(done: CommandEnd, what: str) -> None:
    if done.code != 0:
        why, hint = reason(done.stderr)
        raise PreconditionFailed(f"{what}: {why}.", hint=hint)
