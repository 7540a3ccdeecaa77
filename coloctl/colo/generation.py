"""Decide on which node's disks the guest starts, and write down durably what each node's disks
hold.

A pair that was stopped starts again on the disks that hold every write that clients saw
acknowledged. The images do not show which those are. So a disk record is kept in two places
(`colo.registry`, through `host.base`). Called by `supervisor.acts.start`,
`supervisor.acts.failover` and `check.disks`.

Invariant: disks without something that clients saw acknowledged are in sync only with a lower
generation than disks which have it, or as those of a secondary with the same. Disks of which it is
not known what they hold are neither chosen nor passed over, unless an operator orders it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from coloctl.colo import registry
from coloctl.colo.companion import WHOLE, Companion, Companions, DiskRecord, Overlays, Worth
from coloctl.colo.registry import SUFFIX
from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.host.base import Host
from coloctl.model.pair import NODES, NodeName, PairSpec, other
from coloctl.tasks import side_by_side

__all__ = [
    "SUFFIX",
    "Companion",
    "Companions",
    "Overlays",
    "Worth",
    "keep",
    "leap",
    "leave",
    "reached",
    "read",
    "rest",
    "source",
    "unstable",
    "write",
]

Hosts = Mapping[NodeName, Host]

Promoted = tuple[NodeName, int]

#: Time for a guest's last writes to reach the disk while its pair is stopped, seconds.
FLUSH_DEADLINE_S = 5.0


async def read(spec: PairSpec, hosts: Hosts) -> Companions:
    """Read what each node's disks hold; new disks have generation 0 and are in sync.

    What cannot be read, or was written about other disks, is a doubt in the result. Raises
    `PreconditionFailed` for disks that are another pair's, and for two devices of one name.
    """
    if not spec.disks:
        return {node: Companion(spec.name, node) for node in NODES}
    looks = await side_by_side(*(registry.look(spec, hosts[node], node) for node in NODES))
    looked = dict(zip(NODES, looks, strict=True))
    images = {node: looked[node][1] for node in NODES}
    for disk in spec.disks:
        a, b = (images[node].get(disk.id) for node in NODES)
        if a and b and a.device and b.device and (a.key, a.machine) == (b.key, b.machine):
            raise PreconditionFailed(
                f"Both nodes' devices of disk {disk.id} are known to this system as {a.key}.",
                hint="one is a copy of the other, or they are one: give each a serial of its own",
            )
    return {node: looked[node][0] for node in NODES}


async def unstable(spec: PairSpec, hosts: Hosts) -> list[str]:
    """Name the devices without a name that outlives this boot, each as a sentence.

    What is known of them is lost with the boot. Raises `PreconditionFailed` for disks that cannot
    be inspected.
    """
    found = []
    for node in NODES:
        for disk, identity in (await registry.identities(spec, hosts[node], node)).items():
            if identity.present and not identity.stable:
                found.append(
                    f"Disk {disk} of node {node}, {identity.key.removeprefix('path:')}, has no "
                    "name that outlives this boot (no WWN, serial or uuid): after the next one its "
                    "generation is not known, and a start needs --from."
                )
    return found


def reached(companion: Companion) -> int:
    """Return the highest generation known of these disks, or of those that were there before."""
    return max(companion.generation, companion.bound or 0)


#: Further than any pair fails over between two looks at a file.
LEAP = 1000


def leap(companions: Companions) -> int:
    """Return how much further than by one the generation grows when an operator chooses the disks.

    Where a record cannot be read at all, its number is not known. It may come back, with its disk
    or its permissions, and must not be the highest then.
    """
    return LEAP if any(one.doubt and one.bound is None for one in companions.values()) else 0


def source(companions: Companions, *, promoted: Promoted | None = None) -> NodeName:
    """Choose the node on whose disks the guest starts; node a where both are equal.

    The highest generation wins, and within one the disks on which the guest itself ran win over
    those of its secondary. ``promoted`` is the arbiter's claim: which node was promoted last, and
    in which generation. Raises `PreconditionFailed` where a start would lose something, or might,
    and names it.
    """
    if _are_new(companions):
        companions = {node: _as_new(companions[node]) for node in NODES}
    known = {node: promoted[1] if promoted and promoted[0] == node else 0 for node in NODES}
    number = {node: max(known[node], companions[node].generation) for node in NODES}
    sound = [n for n in NODES if companions[n].state in WHOLE and not companions[n].doubt]
    if not sound:
        both = " ".join(companions[node].sentence() for node in NODES)
        raise PreconditionFailed(f"No node's disks hold the whole guest. {both}", hint=HINT)
    own = {node: companions[node].state is not Worth.FOLLOWING for node in NODES}
    best = max(sound, key=lambda node: (number[node], own[node], companions[node].written))
    rival = companions[other(best)]
    since = f"what the guest wrote since generation {number[best]}"
    sure = own[best] and companions[best].written
    if rival.doubt and not _has_all_of(rival, number[best], sure=sure, claimed=known):
        raise PreconditionFailed(
            f"{rival.sentence()} {companions[best].sentence()} If node {rival.node}'s disks are "
            f"the newer ones, {since} would be lost.",
            hint=HINT,
        )
    if not rival.doubt and number[other(best)] > number[best]:
        raise PreconditionFailed(
            f"{rival.sentence()} {companions[best].sentence()} W{since[1:]} would be lost.",
            hint=HINT,
        )
    return best


HINT = (
    "`coloctl start SPEC --from NODE` starts with that node's disks all the same; the other's are "
    "overwritten when it is protected"
)


def _are_new(companions: Companions) -> bool:
    """Return whether these are new disks for a pair of an old name, as a job makes them at every
    run.

    The disks that were there are gone on both nodes; or on one, where no failover had ever happened
    and nothing is known of the other's.
    """
    gone = [one for one in companions.values() if one.replaced]
    rest = [one for one in companions.values() if not one.replaced]
    unknown = not any(one.written or one.doubt for one in rest)
    return bool(gone) and unknown and (not rest or all(one.bound == 0 for one in gone))


def _as_new(companion: Companion) -> Companion:
    return replace(companion, doubt="", generation=0, state=Worth.IN_SYNC, written=False)


def _has_all_of(
    rival: Companion, number: int, *, sure: bool, claimed: Mapping[NodeName, int]
) -> bool:
    """Return whether disks of generation ``number`` hold all that the rival in doubt can hold.

    Within one generation only disks hold all of it on which, by their record, the guest itself ran
    (``sure``). New disks hold nothing at all.
    """
    if rival.bound is None:
        return False
    most = max(rival.bound, claimed[rival.node])
    return most < number or (most == number and sure)


async def write(
    spec: PairSpec,
    hosts: Hosts,
    node: NodeName,
    generation: int,
    state: Worth = Worth.IN_SYNC,
    *,
    overlays: Overlays | None = None,
    durable: Callable[[], None] = lambda: None,
    when: registry.When = registry.at_once,
) -> None:
    """Write durably what ``node``'s disks hold; raises `PreconditionFailed`.

    ``overlays`` belong to `Worth.OVERLAY_PENDING`: per disk id the paths of the overlays that its
    image does not hold yet, the active one first. ``durable`` and ``when`` are those of
    `registry.put`.
    """
    if spec.disks:
        record = DiskRecord(spec.name, node, generation, state, overlays=overlays or {})
        await registry.put(spec, hosts[node], record, durable, when=when)


async def rest(spec: PairSpec, hosts: Hosts, node: NodeName) -> None:
    """Note durably the size and last write of the images of ``node``, whose guest has ended.

    By them the next start knows whether another program has written to them (`colo.last_write`).
    Has no effect on disks that are not whole by themselves. Raises `ColoctlError`.
    """
    if not spec.disks:
        return
    known, images = await registry.look(spec, hosts[node], node)
    if known.doubt or known.state is not Worth.IN_SYNC:
        return
    files = [disk.image[node] for disk in spec.disks if not images[disk.id].device]
    if not files:
        return
    # Without this a power failure might take back the time of a write that is noted.
    flush = ["sync", "--", *map(str, files)]
    done = await hosts[node].run(flush, deadline_s=FLUSH_DEADLINE_S)
    if done.code == 0:
        record = DiskRecord(spec.name, node, known.generation)
        await registry.put(spec, hosts[node], record, at_rest=True)


async def leave(spec: PairSpec, hosts: Hosts, node: NodeName, generation: int) -> str:
    """Mark the disks of ``node`` as diverged, where their record could count them as whole.

    The guest went on without them in that ``generation``. Overlays that are pending stay named.
    Return an error as text: the next start decides by the generations then.
    """
    if not spec.disks:
        return ""
    try:
        known, _ = await registry.look(spec, hosts[node], node)
        if known.doubt or known.state in (Worth.IN_SYNC, Worth.FOLLOWING):
            await write(spec, hosts, node, generation, Worth.DIVERGED)
    except ColoctlError as error:
        return f"Its disks are not marked as diverged: {error.message}"
    return ""


async def keep(
    spec: PairSpec,
    hosts: Hosts,
    node: NodeName,
    generation: int,
    state: Worth = Worth.IN_SYNC,
    *,
    overlays: Overlays | None = None,
    durable: Callable[[], None] = lambda: None,
    when: registry.When = registry.at_once,
) -> str:
    """Write like `write`, but return an error as text: the guest matters more."""
    try:
        await write(
            spec, hosts, node, generation, state, overlays=overlays, durable=durable, when=when
        )
    except ColoctlError as error:
        return f"The next start would not begin with its disks: {error.message}"
    return ""
