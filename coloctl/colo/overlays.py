"""Make, keep, settle and remove the overlays of a node's disks.

Called by `colo.launch`, which makes and removes them with a secondary, and by
`supervisor.acts.start`, which settles those of the node whose disks it takes; named by
`supervisor.acts.durable`, removed by `supervisor.acts.merge`. Works through `machine.overlay`. What
is pending is written in the disk record (`colo.generation`) before a secondary is promoted, and
taken back when QEMU has merged the overlays.

Invariant: overlays that a record calls pending are never removed or made again, nor those of a node
of which it is not known. A guest never runs on an image without its pending overlays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from coloctl.colo import generation, registry
from coloctl.colo.generation import Companion, Overlays, Worth
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.machine import blockdev, overlay
from coloctl.machine import merge_log as machine_log
from coloctl.machine.image import HEADER_DEADLINE_S
from coloctl.model.pair import NodeName, PairSpec
from coloctl.tasks import side_by_side

#: Removing a few files from a busy disk, seconds.
REMOVE_DEADLINE_S = 2.0
#: A log of merges has about 100 bytes for each of eight states per disk, and twice that for each
#: time that a long merge pauses.
LOG_LIMIT = 16 << 20


def names(spec: PairSpec, node: NodeName) -> Overlays:
    """Return the overlays of each disk of ``node``, by disk id, as a disk record names them.

    The paths are those of the active overlay, the hidden overlay and the close marker.
    """
    if not spec.disks:
        return {}
    close_marker = str(blockdev.close_marker(spec, node))
    found = zip(spec.disks, blockdev.overlays(spec, node), strict=True)
    return {disk.id: (str(over.active), str(over.hidden), close_marker) for disk, over in found}


def merge_log(spec: PairSpec, node: NodeName) -> Path | None:
    """Name the file in which a secondary's QEMU on ``node`` notes its merges; None: no disk."""
    return blockdev.merge_log(blockdev.close_marker(spec, node)) if spec.disks else None


def _files(spec: PairSpec, node: NodeName) -> list[str]:
    return sorted({path for found in names(spec, node).values() for path in found})


def _signs(named: Overlays) -> list[str]:
    """Return the files that show how far QEMU was with merging these overlays."""
    markers = {Path(found[2]) for found in named.values()}
    return sorted(str(path) for path in (*markers, *map(blockdev.merge_log, markers)))


def as_claimed(spec: PairSpec, known: Companion, claimed: int) -> Companion:
    """Call the overlays of a secondary pending where a claim shows that it may have been promoted.

    ``claimed`` is the generation of that claim, 0 for none. A failover that was cut short between
    the claim and the record beside the image leaves no other trace.
    """
    if known.state is not Worth.FOLLOWING or claimed <= known.generation or known.doubt:
        return known
    return replace(
        known,
        state=Worth.OVERLAY_PENDING,
        generation=claimed,
        overlays=names(spec, known.node),
    )


async def as_overruled(
    spec: PairSpec, host: Host, known: Companion, claimed: int, *, qemu_img: Path
) -> Companion:
    """Call overlays pending that lie beside disks in doubt, on which an operator starts the guest.

    A claim, of generation ``claimed``, shows that their node was promoted. Raises
    `PreconditionFailed` where overlays hold data and there is no claim: it may be what clients saw
    acknowledged, or what a secondary did that was never promoted.
    """
    if not known.doubt or not spec.disks:
        return known
    there = {}
    for disk, found in names(spec, known.node).items():
        if not all([await _is_file(host, path) for path in found[:2]]):
            continue
        if any([await overlay.has_data(Path(p), host.run, qemu_img=qemu_img) for p in found[:2]]):
            there[disk] = found
    if not there:
        return known
    if claimed:
        pending = Worth.OVERLAY_PENDING
        return replace(known, doubt="", state=pending, generation=claimed, overlays=there)
    files = ", ".join(path for found in there.values() for path in found[:2])
    raise PreconditionFailed(
        f"{known.sentence()} Nor is it known whether {files} hold what clients of the guest saw "
        "acknowledged and the image does not hold.",
        hint=f"move these files to another folder if node {known.node} was never promoted; else "
        "bring back its IMAGE.generation or the machine's registry, and start without --from",
    )


async def _is_file(host: Host, path: str) -> bool:
    return (await host.run(["test", "-f", path], deadline_s=HEADER_DEADLINE_S)).code == 0


async def make(
    spec: PairSpec, host: Host, node: NodeName, sizes: Mapping[str, int], *, qemu_img: Path
) -> None:
    """Make fresh overlays for a new secondary on ``node``; ``sizes`` in bytes, by disk id.

    Disks in doubt were decided on by `generation.source` before. Raises `PreconditionFailed` where
    overlays are pending, or cannot be made.
    """
    if not spec.disks:
        return
    known = await _known(spec, host, node)
    if known.state is Worth.OVERLAY_PENDING:
        raise PreconditionFailed(
            f"No secondary is made on node {node}: {known.sentence()}",
            hint=f"`coloctl start SPEC --from {node}` starts with these disks, whole",
        )
    for folder in {Path(path).parent for path in _files(spec, node)}:
        if folder == blockdev.overlay_folder(spec, node):
            await host.make_private(folder)
    wanted = {blockdev.close_marker(spec, node): blockdev.CLOSE_MARKER_BYTES}
    for disk, over in zip(spec.disks, blockdev.overlays(spec, node), strict=True):
        wanted |= dict.fromkeys((over.active, over.hidden), sizes[disk.id])
    await side_by_side(
        *(overlay.make(path, size, host.run, qemu_img=qemu_img) for path, size in wanted.items()),
        host.put(blockdev.merge_log(blockdev.close_marker(spec, node)), b"", 0o600),
    )


async def remove(spec: PairSpec, host: Host, node: NodeName) -> bool:
    """Remove the overlays of ``node``, whose QEMU is gone; return False where they are kept.

    Overlays that a process holds are kept too: the pair may run from another state folder.
    """
    if not spec.disks:
        return True
    paths = map(Path, _files(spec, node))
    known, users = await side_by_side(
        _known(spec, host, node), side_by_side(*map(host.image_user, paths))
    )
    if any(users) or known.state is Worth.OVERLAY_PENDING or known.doubt:
        return False
    await _remove(host, [*_files(spec, node), *_signs(names(spec, node))])
    return True


async def _remove(host: Host, files: list[str]) -> None:
    await host.run(["rm", "-f", "--", *files], deadline_s=REMOVE_DEADLINE_S)


async def _known(spec: PairSpec, host: Host, node: NodeName) -> Companion:
    return (await registry.look(spec, host, node))[0]


async def settle(
    spec: PairSpec,
    hosts: generation.Hosts,
    known: Companion,
    *,
    qemu_img: Path,
    report: Callable[[str], None] = lambda _: None,
) -> Companion:
    """Make the images of a node whole: commit their pending overlays, before a guest runs.

    Returns what the disks hold then: in sync, of the same generation. It may be cut short at any
    point and called again. Raises `PreconditionFailed` where it cannot be done now; nothing is lost
    then, and the next start tries again.
    """
    if known.state is not Worth.OVERLAY_PENDING:
        return known
    node, host = known.node, hosts[known.node]
    await _require_all(spec, host, known)
    pending = await _unmerged(spec, host, known, qemu_img)
    if pending != known.overlays:  # before anything of the others is touched
        await _write(spec, hosts, replace(known, overlays=pending))
    # From here on the overlays' own marks prove nothing: opening an overlay changes them.
    await _remove(host, _signs(known.overlays))
    formats = {disk.id: (disk.image[node], disk.format) for disk in spec.disks}
    for disk, (active, hidden, _) in pending.items():
        report("overlays")
        image, image_format = formats[disk]
        try:
            await overlay.commit(
                image, image_format, Path(active), Path(hidden), host.run, qemu_img=qemu_img
            )
        except PreconditionFailed as error:
            raise _unsettled(known, error) from error
    settled = replace(known, state=Worth.IN_SYNC, overlays={})
    await _write(spec, hosts, settled)
    named = {path for found in known.overlays.values() for path in found}
    await _remove(host, sorted(named.union(_files(spec, node), _signs(names(spec, node)))))
    return settled


async def _write(spec: PairSpec, hosts: generation.Hosts, known: Companion) -> None:
    await generation.write(
        spec, hosts, known.node, known.generation, known.state, overlays=known.overlays
    )


def _unsettled(known: Companion, error: PreconditionFailed) -> PreconditionFailed:
    return PreconditionFailed(
        f"The image of node {known.node} lacks the guest's last writes: {error.message}",
        hint=f"nothing is lost; {error.hint or 'put its disk right'}, and start the pair again",
    )


async def _require_all(spec: PairSpec, host: Host, known: Companion) -> None:
    """Require that every overlay is there and belongs to a disk of the pair, or
    `PreconditionFailed`.
    """
    disks = {disk.id for disk in spec.disks}
    for disk, found in known.overlays.items():
        if disk not in disks or len(found) != 3:
            raise PreconditionFailed(
                f"Node {known.node} has overlays of a disk {disk}, which is not in the pair file.",
                hint="write the pair file as it was when the pair ran last",
            )
        for path in found[:2]:
            if not await _is_file(host, path):
                raise PreconditionFailed(
                    f"The image of node {known.node} lacks the guest's last writes, and {path}, "
                    "which has them, is not there.",
                    hint="bring the file back; `coloctl start SPEC --from NODE` does without it, "
                    "and those writes are lost",
                )


async def _unmerged(spec: PairSpec, host: Host, known: Companion, qemu_img: Path) -> Overlays:
    """Return the overlays without those of disks whose image QEMU had put in their place already.

    The guest writes to the image alone from then on: to commit the overlays would bring back what
    was overwritten since. QEMU's own log shows it, however that QEMU ended; where that has no
    merge, because that QEMU has no trace events or an earlier coloctl began it, the marks do.
    """
    numbers = {disk.id: number for number, disk in enumerate(spec.disks)}
    done = await _logged(spec, host, known)
    if done is not None:
        return {disk: found for disk, found in known.overlays.items() if numbers[disk] not in done}
    return await _unmarked(host, known, qemu_img)


async def _logged(spec: PairSpec, host: Host, known: Companion) -> frozenset[int] | None:
    """Return the numbers of the disks that QEMU's log calls merged; None where it shows nothing."""
    for marker in {found[2] for found in known.overlays.values()}:
        log = await host.read_file(blockdev.merge_log(Path(marker)), LOG_LIMIT)
        if log is not None:
            return machine_log.merged(log.decode(errors="replace"), len(spec.disks))
    return None


async def _unmarked(host: Host, known: Companion, qemu_img: Path) -> Overlays:
    """Return the overlays without those whose marks show that QEMU has merged them.

    QEMU closes the active overlay when it has. Closing writes a bitmap into it
    (`blockdev.CLOSED`), which is therefore the sign, with or without data: one without data is
    never dirty. The hidden overlay shows nothing, because QEMU marks it as clean when the merge
    begins.

    At an orderly end QEMU closes what it has not merged as well, and the close marker. What it had
    merged before looks the same, so all count as pending then.

    An overlay without that bitmap, of an earlier coloctl or closed on a full disk, was closed if it
    holds data and is not dirty.
    """
    markers = {Path(found[2]) for found in known.overlays.values()}
    if not await _killed(host, markers, qemu_img):
        return known.overlays
    left = {}
    for disk, found in known.overlays.items():
        active = Path(found[0])
        seen = await overlay.marks(active, host.run, qemu_img=qemu_img)
        closed = blockdev.CLOSED in seen.bitmaps or (
            not seen.dirty and await overlay.has_data(active, host.run, qemu_img=qemu_img)
        )
        if not closed:
            left[disk] = found
    return left


async def _killed(host: Host, markers: set[Path], qemu_img: Path) -> bool:
    """Return whether the QEMU that had the close marker open ended without closing its files.

    A close marker that is not there has been read already (`settle`).
    """
    for path in markers:
        if not await _is_file(host, str(path)):
            return False
        if not (await overlay.marks(path, host.run, qemu_img=qemu_img)).dirty:
            return False
    return bool(markers)
