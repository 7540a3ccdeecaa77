"""Read and write the word about a node's disks in both of its places, on the node's own machine.

`coloctl.colo.generation` calls this. The registry is one file per disk in
``/var/lib/coloctl/disks`` (`coloctl.paths.registry_dir`), named after the disk's identity, so that
it is found again when the companion is lost, and where a block device has nothing beside it.

Invariant: a word is durable beside the image, or could not be written there, before it is in the
registry, which says which of both. So a word beside the image that is older than the registry knows
was put back by other hands.
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

from coloctl import paths
from coloctl.colo import companion, last_write
from coloctl.colo.companion import Companion, CompanionRead, Word
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.model.disk import DiskIdentity
from coloctl.model.pair import NodeName, PairSpec

log = logging.getLogger(__name__)

SUFFIX = ".generation"

#: Reading or writing one line on a busy disk, seconds.
DEADLINE_S = 10.0

Images = Mapping[str, DiskIdentity]

T = TypeVar("T")


def beside(image: Path) -> Path:
    """Where the companion of ``image`` lies; a device has none."""
    return image.with_name(image.name + SUFFIX)


def entry(identity: DiskIdentity) -> Path:
    """Where the registry keeps the word about that disk."""
    name = hashlib.sha256(identity.key.encode(errors="surrogateescape")).hexdigest()[:32]
    return paths.registry_dir() / f"{name}.json"


async def identities(spec: PairSpec, host: Host, node: NodeName) -> Images:
    """What each disk of ``node`` is known by; raises `PreconditionFailed`."""
    found = {}
    for disk in spec.disks:
        found[disk.id] = await _in_time(host.identify(disk.image[node]), disk.image[node])
    return found


async def look(spec: PairSpec, host: Host, node: NodeName) -> tuple[Companion, Images]:
    """What is known of the disks of ``node``, and what they are known by.

    Raises `PreconditionFailed` for another pair's disks alone: all else that is wrong is a doubt.
    """
    try:
        now = await identities(spec, host, node)
    except PreconditionFailed as error:
        return Companion(spec.name, node, doubt=error.message), {}
    near, far = await _places(spec, host, node, now)
    known = companion.weigh(spec.name, node, now, near, far)
    return last_write.checked(known, now, [place.word for place in (near, far) if place]), now


async def _places(
    spec: PairSpec, host: Host, node: NodeName, now: Images
) -> tuple[CompanionRead | None, CompanionRead]:
    first = spec.disks[0]
    identity = now[first.id]

    def parse(content: bytes) -> Word:
        return companion.parse(content, spec.name, node)

    try:
        far = await _place(host, entry(identity), parse)
    except PreconditionFailed as error:  # a folder that others can change
        far = CompanionRead("", trouble=error.message)
    if identity.device:
        return None, far
    return await _place(host, beside(first.image[node]), parse), far


async def _place(host: Host, path: Path, parse: Callable[[bytes], Word]) -> CompanionRead:
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
    word: Word,
    durable: Callable[[], None] = lambda: None,
    *,
    at_rest: bool = False,
) -> None:
    """Write ``word`` durably in both places; its serial, its images and the rest are set here.

    Calls ``durable`` as soon as the word is in the first of both, where the next start finds it.
    ``at_rest``: nothing writes to the images any more, and the word says how they lie.
    Raises `PreconditionFailed` when it is in neither; where one place cannot be written the other
    is enough, and the log says so. A word about a generation that is over changes nothing.
    """
    node, first = word.node, spec.disks[0]
    async with _alone(f"{host.name} {first.image[node]}"):
        now = await identities(spec, host, node)
        near, far = await _places(spec, host, node, now)
        known = [place.word for place in (near, far) if place is not None and place.word]
        after = _following(word, known, now)
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


def _following(word: Word, known: list[Word], now: Images) -> Word | None:
    """Make ``word`` the next one about these disks; None where they have gone further already.

    What was copied or left behind stays so in the highest generation that is known: only the claim
    of a new one may call disks whole.
    """
    mine = [one for one in known if one.pair == word.pair and not _foreign(one, now)]
    highest = max((one.generation for one in mine), default=0)
    if word.generation < highest:
        if word.state in companion.WHOLE:
            log.warning("Node %s's disks are of generation %s already.", word.node, highest)
            return None
        word = replace(word, generation=highest)
    serial = max((one.serial for one in known), default=0) + 1
    lies = max((one.beside for one in known), default=0)
    return replace(word, serial=serial, beside=lies, images=now)


def _foreign(word: Word, now: Images) -> bool:
    return companion.likeness(word, now) in companion.OTHERS


async def _store(host: Host, path: Path, word: Word) -> PreconditionFailed | None:
    """Write one place; answers what went wrong."""
    try:
        content = companion.render(word)
        await _in_time(host.write_durably(path, content, make_folder=path.suffix == ".json"), path)
    except PreconditionFailed as error:
        return error
    return None


#: One lock per disk and event loop: two words about a disk are written one after the other.
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
