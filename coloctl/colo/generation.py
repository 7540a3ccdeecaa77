"""Decide whose disks the guest begins with: what each node's disks are worth, durably.

A pair that was stopped begins again with the disks that hold everything that clients were told; the
images themselves do not tell. So a word about them is kept beside the node's first image and in the
machine's registry (`coloctl.colo.registry`). Start, protect, stop, failover and the doctor call
this.

Invariant: disks that lack something that clients saw acknowledged are in sync only with a lower
generation than disks which have it, or as those of a secondary with the same. Disks of which it is
not known what they hold are neither chosen nor passed over, unless an operator says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from coloctl.colo import registry
from coloctl.colo.companion import WHOLE, Companion, Companions, Overlays, Word, Worth
from coloctl.colo.registry import SUFFIX
from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.host.base import Host
from coloctl.model.pair import NODES, NodeName, PairSpec, other

__all__ = [
    "SUFFIX",
    "Companion",
    "Companions",
    "Overlays",
    "Worth",
    "keep",
    "leap",
    "reached",
    "read",
    "rest",
    "source",
    "unstable",
    "write",
]

Hosts = Mapping[NodeName, Host]

Promoted = tuple[NodeName, int]

#: What a guest wrote last goes to the disk while its pair is stopped; seconds.
FLUSH_DEADLINE_S = 5.0


async def read(spec: PairSpec, hosts: Hosts) -> Companions:
    """Read what each node's disks are worth; generation 0 and in sync where they are new.

    What cannot be read, or was written about other disks, is a doubt in the answer. Raises
    `PreconditionFailed` for disks that are another pair's, and for two devices of one name.
    """
    if not spec.disks:
        return {node: Companion(spec.name, node) for node in NODES}
    looked = {node: await registry.look(spec, hosts[node], node) for node in NODES}
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
    """Name the devices without a name that outlives this boot, each in a sentence.

    What is known of them is lost with the boot. Raises `PreconditionFailed` for disks that cannot
    be looked at.
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
    """The highest generation that is known of these disks, be it of those that lay there before."""
    return max(companion.generation, companion.bound or 0)


#: Further than any pair fails over between two looks at a file.
LEAP = 1000


def leap(companions: Companions) -> int:
    """How much further than by one the generation grows by an operator's word.

    Where a word cannot be read at all, its number is not known. It may come back, with its disk or
    its permissions, and must not be the highest then.
    """
    return LEAP if any(one.doubt and one.bound is None for one in companions.values()) else 0


def source(companions: Companions, *, promoted: Promoted | None = None) -> NodeName:
    """The node whose disks are the guest's: the newest, before those of its secondary; else node a.

    ``promoted`` is the arbiter's word: who was promoted last, and in which generation. Raises
    `PreconditionFailed` where a start would lose something, or might, and says what.
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
    """Whether these are new disks for a pair of an old name, as a job makes them at every run.

    Those that lay there are gone on both nodes; or on one, where no failover had ever happened and
    nothing is known of the other's.
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
    """Whether disks of generation ``number`` hold whatever those in doubt can hold.

    Within one generation only disks of which it is written that the guest itself ran on them hold
    all of it (``sure``); new ones hold nothing at all.
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
) -> None:
    """Write durably what ``node``'s disks are worth; raises `PreconditionFailed`.

    ``overlays`` belong to `Worth.OVERLAY_PENDING`: per disk id the paths of the overlays that its
    image lacks, the one that the guest writes to first. ``durable`` is called as in `registry.put`.
    """
    if spec.disks:
        word = Word(spec.name, node, generation, state, overlays=overlays or {})
        await registry.put(spec, hosts[node], word, durable)


async def rest(spec: PairSpec, hosts: Hosts, node: NodeName) -> None:
    """Note durably how the images of ``node`` lie, whose guest has ended.

    By that the next start knows whether another program has written to them
    (`colo.last_write`). Does nothing for disks that are not whole by themselves.
    Raises `ColoctlError`.
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
        word = Word(spec.name, node, known.generation)
        await registry.put(spec, hosts[node], word, at_rest=True)


async def keep(
    spec: PairSpec,
    hosts: Hosts,
    node: NodeName,
    generation: int,
    state: Worth = Worth.IN_SYNC,
    *,
    overlays: Overlays | None = None,
    durable: Callable[[], None] = lambda: None,
) -> str:
    """As `write`, but the guest matters more: what went wrong is answered, for an operator."""
    try:
        await write(spec, hosts, node, generation, state, overlays=overlays, durable=durable)
    except ColoctlError as error:
        return f"The next start would not begin with its disks: {error.message}"
    return ""
