"""Decide what is known of a node's disks, from the records of both places; pure.

Called by `colo.registry` at every look, with the records that `colo.companion` read. The rules:

1. A record about other disks (another file or device under the same name) puts these in doubt. The
   registry's record of another pair about other disks is ignored.
2. Where both places have a record of these disks, the higher serial counts. A companion file older
   than the registry knows it was put back by other hands: the disks are in doubt.
3. Where only the registry has one, it counts, unless a later one may have been lost with the
   companion file. A companion file of the old form counts by its generation.
4. Where no record can be read, the disks are in doubt. Where none exists, they are new.

Example: the companion file has serial 7, and the registry has serial 9, which it knows to lie
beside the image. The image was restored from a backup, or the file was: the disks are in doubt.

Invariant: unreadable is unknown, never new. A doubt has a bound only where a record gives one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coloctl.colo.companion import Companion, CompanionRead, DiskRecord, Worth
from coloctl.errors import PreconditionFailed
from coloctl.model.disk import DiskIdentity, Sameness, compare
from coloctl.model.pair import NodeName


def weigh(
    pair: str,
    node: NodeName,
    now: Mapping[str, DiskIdentity],
    beside: CompanionRead | None,
    registered: CompanionRead,
) -> Companion:
    """Conclude what is known of the disks that are there ``now`` (by disk id) from both places.

    ``beside`` is None where no file can lie beside the first disk. Raises `PreconditionFailed`
    where one place records that these very disks belong to another pair. The rules stand one per
    line in docs/life-of-a-pair.md, "Whose disks are the guest's".
    """
    if registered.record and registered.record.pair != pair:
        if likeness(registered.record, now) in OTHERS:
            registered = CompanionRead(registered.path)  # another pair's disk lay there once
        else:
            _require_own(registered, pair, node)
    if beside and beside.record:
        _require_own(beside, pair, node)
    places = [place for place in (beside, registered) if place is not None]
    known = Companion(
        pair, node, serial=max((p.record.serial for p in places if p.record), default=0)
    )
    ours = beside.record if beside else None
    theirs = registered.record
    if ours is None and theirs is None:
        troubled = [place for place in places if place.trouble]
        if not troubled:
            return known
        return replace(known, doubt=_unreadable(node, troubled[0]))
    if theirs is not None and (ours is None or ours.old_form):
        return _from_registry(known, now, places[0], registered, ours)
    assert ours is not None
    assert beside is not None
    return _from_beside(known, now, beside, registered, ours)


#: The disks that a record was written about are not there any more.
OTHERS = frozenset({Sameness.REPLACED, Sameness.GONE})


def likeness(record: DiskRecord, now: Mapping[str, DiskIdentity]) -> Sameness:
    """Compare the disks now with those of ``record``; return the worst result of any of them."""
    found = {compare(now[disk], known) for disk, known in record.images.items() if disk in now}
    order = (Sameness.GONE, Sameness.REPLACED, Sameness.MOVED)
    return next((one for one in order if one in found), Sameness.SAME)


def _require_own(place: CompanionRead, pair: str, node: NodeName) -> None:
    assert place.record is not None
    if place.record.pair != pair:
        raise PreconditionFailed(
            f"{place.path} says that node {node}'s disks belong to the pair {place.record.pair}.",
            hint=f"correct the image in the pair file, or remove {place.path} if they are {pair}'s",
        )


def _take(known: Companion, record: DiskRecord) -> Companion:
    return replace(
        known,
        generation=record.generation,
        state=record.state,
        written=True,
        overlays=record.overlays,
    )


def _doubt(known: Companion, bound: int | None, why: str, *, replaced: bool = False) -> Companion:
    return replace(known, doubt=f"{why}.", bound=bound, replaced=replaced)


def _unreadable(node: NodeName, place: CompanionRead) -> str:
    return f"It is not known what node {node}'s disks hold: {place.trouble}"


def _from_registry(
    known: Companion,
    now: Mapping[str, DiskIdentity],
    beside: CompanionRead,
    registered: CompanionRead,
    old: DiskRecord | None,
) -> Companion:
    """Conclude from the registry's record.

    Beside the image is no record, an unreadable one, or one of the old form.
    """
    record, node = registered.record, known.node
    assert record is not None
    alike = likeness(record, now)
    if old is not None:
        return _from_old(known, registered, record, old, alike)
    if alike is Sameness.SAME and not _went_on(beside, record):
        return _take(known, record)
    if beside.trouble:
        return replace(known, doubt=_unreadable(node, beside))
    was = f"generation {record.generation}"
    if alike is Sameness.SAME:
        return _doubt(known, None, f"{beside.path}, which was written for node {node}, is gone")
    if alike is Sameness.GONE:
        return _doubt(known, record.generation, f"Node {node}'s disks, {was}, are not there")
    why = f"Node {node}'s disks are not those of which {was} was written ({registered.path})"
    # A name that holds for one boot only does not prove that the disk is another one.
    surely = alike is Sameness.REPLACED and all(disk.stable for disk in now.values())
    return _doubt(known, record.generation, why, replaced=surely)


def _went_on(beside: CompanionRead, record: DiskRecord) -> bool:
    """Return whether a later record than a secondary's may have been beside the image only, now
    lost.
    """
    lost = beside.record is None and record.beside == record.serial
    return record.state is Worth.FOLLOWING and lost


def _from_old(
    known: Companion,
    registered: CompanionRead,
    record: DiskRecord,
    old: DiskRecord,
    alike: Sameness,
) -> Companion:
    """Conclude where the record beside the image has no identity: its generation decides."""
    if alike in OTHERS or old.generation > record.generation:
        return _take(known, old)
    if (old.generation, old.state) == (record.generation, record.state):
        return _take(known, record)
    return _doubt(
        known,
        max(old.generation, record.generation),
        f"Beside node {known.node}'s image generation {old.generation} ({old.state}) is written, "
        f"and in {registered.path} generation {record.generation} ({record.state})",
    )


def _from_beside(
    known: Companion,
    now: Mapping[str, DiskIdentity],
    beside: CompanionRead,
    registered: CompanionRead,
    ours: DiskRecord,
) -> Companion:
    """Conclude from the record beside the image; the registry may have a later one."""
    node, theirs = known.node, registered.record
    alike = likeness(ours, now)
    if alike is not Sameness.SAME and ours.node != node:
        why = f"{beside.path} is a copy of what lies beside node {ours.node}'s image"
        return _doubt(known, ours.generation, why)
    if alike in OTHERS:
        why = f"{beside.path} was written for other disks than those of node {node} now"
        return _doubt(known, _highest(ours, theirs), why)
    if theirs is None or theirs.serial <= ours.serial:
        return _take(known, ours)
    if likeness(theirs, now) in OTHERS:
        why = f"The record in {registered.path} is a later one, about another disk that lay there"
        return _doubt(known, _highest(ours, theirs), f"{why} (node {node}, {beside.path})")
    if ours.serial >= theirs.beside:
        return _take(known, theirs)  # it could not be written beside the image
    return _doubt(
        known,
        _highest(ours, theirs),
        f"{beside.path} (generation {ours.generation}) is older than {registered.path} (generation "
        f"{theirs.generation}): node {node}'s disks were restored from a backup, or the file was",
    )


def _highest(ours: DiskRecord, theirs: DiskRecord | None) -> int:
    return max(ours.generation, theirs.generation if theirs else 0)
