"""Read and write the disk record of a node in both of its places, on the node's own machine.

Called by `colo.generation`, `colo.overlays` and `supervisor.acts.merge`; `chaos.faults.companion`
harms it; reads and writes through `host.base`. The registry is one file per disk in
``/var/lib/coloctl/disks`` of the node's machine, named after the disk's identity. So the record is
found again when the companion file is lost, and where a block device has no file beside it.

Invariant: a record is durable beside the image, or could not be written there, before it is in the
registry, which notes which of both. So a record beside the image that is older than the registry
knows was put back by other hands.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

from coloctl.colo import companion, last_write
from coloctl.colo.companion import Companion, CompanionRead, DiskRecord
from coloctl.colo.weigh import OTHERS, likeness, weigh
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.model.disk import DiskIdentity
from coloctl.model.pair import NodeName, PairSpec
from coloctl.tasks import side_by_side

log = logging.getLogger(__name__)

SUFFIX = ".generation"

#: Reading or writing one line on a busy disk, seconds.
DEADLINE_S = 10.0

Images = Mapping[str, DiskIdentity]

T = TypeVar("T")

#: Returns when a record may be written.
When = Callable[[], Awaitable[object]]


async def at_once() -> None:
    """Return: a record may be written at any time."""


def beside(image: Path) -> Path:
    """Return the path of the companion file of ``image``; a device has none."""
    return image.with_name(image.name + SUFFIX)


def entry(identity: DiskIdentity, host: Host) -> Path:
    """Return the path of the file about that disk in the registry of its host's machine."""
    name = hashlib.sha256(identity.key.encode(errors="surrogateescape")).hexdigest()[:32]
    return host.machine.registry_dir / f"{name}.json"


async def identities(spec: PairSpec, host: Host, node: NodeName) -> Images:
    """Find the identity of each disk of ``node``; raises `PreconditionFailed`."""
    paths = [disk.image[node] for disk in spec.disks]
    found = await side_by_side(*(_in_time(host.identify(path), path) for path in paths))
    return dict(zip((disk.id for disk in spec.disks), found, strict=True))


async def look(spec: PairSpec, host: Host, node: NodeName) -> tuple[Companion, Images]:
    """Find what is known of the disks of ``node``, and their identities.

    Raises `PreconditionFailed` only for another pair's disks; any other trouble is a doubt.
    """
    try:
        now = await identities(spec, host, node)
    except PreconditionFailed as error:
        return Companion(spec.name, node, doubt=error.message), {}
    near, far = await _places(spec, host, node, now)
    known = weigh(spec.name, node, now, near, far)
    return last_write.checked(known, now, [place.record for place in (near, far) if place]), now


async def _places(
    spec: PairSpec, host: Host, node: NodeName, now: Images
) -> tuple[CompanionRead | None, CompanionRead]:
    first = spec.disks[0]
    identity = now[first.id]

    def parse(content: bytes) -> DiskRecord:
        return companion.parse(content, spec.name, node)

    async def registered() -> CompanionRead:
        try:
            return await _place(host, entry(identity, host), parse)
        except PreconditionFailed as error:  # a folder that others can change
            return CompanionRead("", trouble=error.message)

    if identity.device:
        return None, await registered()
    near = _place(host, beside(first.image[node]), parse)
    far, found = await side_by_side(registered(), near)
    return found, far


async def _place(host: Host, path: Path, parse: Callable[[bytes], DiskRecord]) -> CompanionRead:
    try:
        content = await _in_time(host.read_file(path, companion.BYTES_MAX), path)
    except PreconditionFailed as error:
        return CompanionRead(str(path), trouble=error.message)
    if content is None:
        return CompanionRead(str(path))
    try:
        return CompanionRead(str(path), parse(content))
    except ValueError as error:
        return CompanionRead(str(path), trouble=f"{path} is damaged: {error}.")


async def put(
    spec: PairSpec,
    host: Host,
    record: DiskRecord,
    durable: Callable[[], None] = lambda: None,
    *,
    at_rest: bool = False,
    when: When = at_once,
) -> None:
    """Write ``record`` durably in both places; set its serial, its images and the fields that
    follow.

    Calls ``durable`` as soon as the record is in the first of both, where the next start finds it.
    ``at_rest``: no program writes to the images any more, and the record notes size and last write.
    Nothing is written before ``when`` returns, which is awaited once all that is needed was read.
    Raises `PreconditionFailed` when it is in neither. Where one place cannot be written the other
    is enough, and the log shows it. A record about a generation that is over changes nothing.
    """
    node, first = record.node, spec.disks[0]
    async with _alone(f"{host.name} {first.image[node]}"):
        now = await identities(spec, host, node)
        near, far = await _places(spec, host, node, now)
        known = [place.record for place in (near, far) if place is not None and place.record]
        after = _following(record, known, now)
        await when()
        if after is None:
            return
        if not at_rest:
            after = replace(after, images=last_write.forgotten(now))
        wrong = await _store(host, Path(near.path), after) if near is not None else None
        if near is not None and wrong is None:
            after = replace(after, beside=after.serial)
            durable()
        if far.path:
            also_wrong = await _store(host, Path(far.path), after)
        else:
            also_wrong = PreconditionFailed(far.trouble)
        if also_wrong and (wrong or near is None):
            raise wrong or also_wrong
        for error in (wrong, also_wrong):
            if error:
                log.warning("Node %s's generation is kept in one place only: %s", node, error)


def _following(record: DiskRecord, known: list[DiskRecord], now: Images) -> DiskRecord | None:
    """Make ``record`` the next one about these disks; None where they are of a later generation.

    Disks that were copied or left behind stay so in the highest generation that is known: only the
    claim of a new one may call disks whole.
    """
    mine = [one for one in known if one.pair == record.pair and not _foreign(one, now)]
    highest = max((one.generation for one in mine), default=0)
    if record.generation < highest:
        if record.state in companion.WHOLE:
            log.warning("Node %s's disks are of generation %s already.", record.node, highest)
            return None
        record = replace(record, generation=highest)
    serial = max((one.serial for one in known), default=0) + 1
    lies = max((one.beside for one in known), default=0)
    return replace(record, serial=serial, beside=lies, images=now)


def _foreign(record: DiskRecord, now: Images) -> bool:
    return likeness(record, now) in OTHERS


async def _store(host: Host, path: Path, record: DiskRecord) -> PreconditionFailed | None:
    """Write one place and return the error, if there was one."""
    try:
        content = companion.render(record)
        await _in_time(host.write_durably(path, content, make_folder=path.suffix == ".json"), path)
    except PreconditionFailed as error:
        return error
    return None


#: One lock per disk and event loop: two records about a disk are written one after the other.
_LOCKS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]] = WeakKeyDictionary()


@asynccontextmanager
async def _alone(disk: str) -> AsyncIterator[None]:
    locks = _LOCKS.setdefault(asyncio.get_running_loop(), {})
    async with locks.setdefault(disk, asyncio.Lock()):
        yield


async def _in_time(work: Awaitable[T], path: Path) -> T:
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await work
    except TimeoutError:
        raise PreconditionFailed(
            f"{path} did not answer within {DEADLINE_S:g} s.", hint="its disk does not answer"
        ) from None
