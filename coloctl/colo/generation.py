"""What each node's disks are worth: pair, node, generation and state, durably beside its image.

A pair that was stopped begins again with the disks that hold everything that clients were told; the
images themselves do not tell. So ``IMAGE.generation`` beside the node's first image does. Block
devices have no place beside them that outlives a boot: such a pair always begins on node a.

Invariant: disks that lack something that clients saw acknowledged are in sync only with a lower
generation than disks which have it, or as those of a secondary with the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.host.base import Host
from coloctl.model.pair import NODES, NodeName, PairSpec, other

Hosts = Mapping[NodeName, Host]

SUFFIX = ".generation"

#: Reading or writing one line on a busy disk, seconds.
DEADLINE_S = 10.0


class Worth(StrEnum):
    """What a node's disks hold of their generation."""

    IN_SYNC = "in-sync"  #: everything: the guest ran on them
    FOLLOWING = "following"  #: everything, as long as their node was the secondary
    DIVERGED = "diverged"  #: the guest went on without them
    RESYNC_TARGET = "resync-target"  #: half of a copy


@dataclass(frozen=True)
class Companion:
    """What stands beside the first image of a node."""

    pair: str
    node: NodeName
    generation: int = 0
    state: Worth = Worth.IN_SYNC
    written: bool = False  #: it was found there; else nobody ever wrote one

    def sentence(self) -> str:
        """For people: what these disks are."""
        words = {
            Worth.IN_SYNC: "whole",
            Worth.FOLLOWING: "those of a secondary",
            Worth.DIVERGED: "left behind by their guest, which ran on without them",
            Worth.RESYNC_TARGET: "half of a copy",
        }
        return f"Node {self.node}'s disks, generation {self.generation}, are {words[self.state]}."


Companions = Mapping[NodeName, Companion]

_WHOLE = frozenset({Worth.IN_SYNC, Worth.FOLLOWING})


def _beside(spec: PairSpec, node: NodeName) -> Path | None:
    if not spec.disks or spec.disks[0].image[node].is_relative_to("/dev"):
        return None
    image = spec.disks[0].image[node]
    return image.with_name(image.name + SUFFIX)


async def read(spec: PairSpec, hosts: Hosts) -> Companions:
    """What each node's disks are worth; generation 0 and in sync where nobody ever said so.

    Raises `PreconditionFailed` for a file that does not tell, or is another pair's.
    """
    return {node: await _read(spec, hosts, node) for node in NODES}


async def _read(spec: PairSpec, hosts: Hosts, node: NodeName) -> Companion:
    path = _beside(spec, node)
    if path is None:
        return Companion(spec.name, node)
    argv = ["sh", "-c", 'if test -e "$1"; then cat "$1"; fi', "sh", str(path)]
    done = await hosts[node].run(argv, deadline_s=DEADLINE_S)
    if not done.stdout.strip():
        return Companion(spec.name, node)
    companion = _parse(spec, node, path, done.stdout)
    if companion.pair != spec.name:
        raise PreconditionFailed(
            f"{path} says that node {node}'s disks belong to the pair {companion.pair}.",
            hint="correct the image in the pair file, or remove that file if they are this pair's",
        )
    return companion


def _parse(spec: PairSpec, node: NodeName, path: Path, text: str) -> Companion:
    """A lone number is what was written there before there were states."""
    try:
        found: Any = json.loads(text)
        if isinstance(found, int) and not isinstance(found, bool):
            return Companion(spec.name, node, found, written=True)
        state = Worth(found["state"])
        return Companion(str(found["pair"]), node, int(found["generation"]), state, written=True)
    except (ValueError, TypeError, KeyError):
        raise PreconditionFailed(
            f"{path} does not tell what node {node}'s disks are worth.",
            hint="write 0 into it, or a number above the other node's if these disks are newer",
        ) from None


def source(companions: Companions, *, promoted: tuple[NodeName, int] | None = None) -> NodeName:
    """The node whose disks are the guest's: the newest, before those of its secondary; else node a.

    ``promoted`` is the arbiter's word: who was promoted last, and in which generation. Raises
    `PreconditionFailed` where a start would lose something, and says what.
    """
    known = {node: promoted[1] if promoted and promoted[0] == node else 0 for node in NODES}
    number = {node: max(known[node], companions[node].generation) for node in NODES}
    sound = [node for node in NODES if companions[node].state in _WHOLE]
    if not sound:
        both = " ".join(companions[node].sentence() for node in NODES)
        raise PreconditionFailed(f"No node's disks hold the whole guest. {both}", hint=_HINT)
    own = {node: companions[node].state is Worth.IN_SYNC for node in NODES}
    best = max(sound, key=lambda node: (number[node], own[node]))
    rival = other(best)
    if number[rival] > number[best]:
        raise PreconditionFailed(
            f"{companions[rival].sentence()} {companions[best].sentence()} What the guest wrote "
            f"since generation {number[best]} would be lost.",
            hint=_HINT,
        )
    return best


_HINT = "`coloctl start SPEC --from NODE` starts with that node's disks all the same"


async def write(
    spec: PairSpec,
    hosts: Hosts,
    node: NodeName,
    generation: int,
    state: Worth = Worth.IN_SYNC,
) -> None:
    """What ``node``'s disks are worth is beside them, durably; raises `PreconditionFailed`.

    So it does for a block device whose pair would begin on the other node all the same.
    """
    path = _beside(spec, node)
    if path is None:
        if spec.disks and node != "a" and state is Worth.IN_SYNC and generation:
            raise PreconditionFailed(
                f"{spec.disks[0].image[node]} is a device, and such a pair begins on node a.",
                hint="exchange a and b in the pair file before the next start",
            )
        return
    said = asdict(Companion(spec.name, node, generation, state))
    del said["written"]
    try:
        async with asyncio.timeout(DEADLINE_S):
            await hosts[node].write_durably(path, json.dumps(said).encode() + b"\n")
    except TimeoutError:
        raise PreconditionFailed(
            f"{path} was not written within {DEADLINE_S:g} s.", hint="its disk does not answer"
        ) from None


async def keep(
    spec: PairSpec,
    hosts: Hosts,
    node: NodeName,
    generation: int,
    state: Worth = Worth.IN_SYNC,
) -> str:
    """As `write`, but the guest matters more: what went wrong is answered, for an operator."""
    try:
        await write(spec, hosts, node, generation, state)
    except ColoctlError as error:
        return f"The next start would not begin with its disks: {error.message}"
    return ""
