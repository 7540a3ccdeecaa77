"""Which node holds the guest's disks: a number beside its image, one higher per promotion.

A pair that was stopped after a failover must begin again with the disks of its survivor; the images
themselves do not tell. The number lies in ``IMAGE.generation`` beside the node's first image, and
is written on the survivor alone, because the lost node may be out of reach. Block devices have no
place beside them that outlives a boot: such a pair always begins on node a.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.host.base import Host
from coloctl.model.pair import NODES, NodeName, PairSpec

Hosts = Mapping[NodeName, Host]

SUFFIX = ".generation"

#: Reading or writing one line on a busy disk, seconds.
DEADLINE_S = 10.0


def _beside(spec: PairSpec, node: NodeName) -> Path | None:
    if not spec.disks or spec.disks[0].image[node].is_relative_to("/dev"):
        return None
    image = spec.disks[0].image[node]
    return image.with_name(image.name + SUFFIX)


async def read(spec: PairSpec, hosts: Hosts) -> Mapping[NodeName, int]:
    """The generation of each node's disks; 0 where none was ever promoted.

    Raises `PreconditionFailed` for a file that holds no number.
    """
    return {node: await _read(spec, hosts, node) for node in NODES}


async def _read(spec: PairSpec, hosts: Hosts, node: NodeName) -> int:
    path = _beside(spec, node)
    if path is None:
        return 0
    argv = ["sh", "-c", 'if test -e "$1"; then cat "$1"; else echo 0; fi', "sh", str(path)]
    done = await hosts[node].run(argv, deadline_s=DEADLINE_S)
    try:
        return int(done.stdout)
    except ValueError:
        raise PreconditionFailed(
            f"{path} does not tell the generation of node {node}'s disks.",
            hint="write 0 into it, or a number above the other node's if these disks are newer",
        ) from None


def newest(generations: Mapping[NodeName, int]) -> NodeName:
    """The node whose disks are the guest's; node a where both are as new."""
    return max(NODES, key=lambda node: generations[node])


async def write(spec: PairSpec, hosts: Hosts, node: NodeName, generation: int) -> None:
    """``node`` holds the disks of ``generation``, durably; raises `PreconditionFailed`.

    So it does for a block device whose pair would begin on the other node all the same.
    """
    path = _beside(spec, node)
    if path is None:
        if spec.disks and node != "a":
            raise PreconditionFailed(
                f"{spec.disks[0].image[node]} is a device, and such a pair begins on node a.",
                hint="exchange a and b in the pair file before the next start",
            )
        return
    try:
        async with asyncio.timeout(DEADLINE_S):
            await hosts[node].write_durably(path, b"%d\n" % generation)
    except TimeoutError:
        raise PreconditionFailed(
            f"{path} was not written within {DEADLINE_S:g} s.", hint="its disk does not answer"
        ) from None


async def keep(spec: PairSpec, hosts: Hosts, node: NodeName, generation: int) -> str:
    """As `write`, but the guest matters more: what went wrong is answered, for an operator."""
    try:
        await write(spec, hosts, node, generation)
    except ColoctlError as error:
        return f"The next start would not begin with its disks: {error.message}"
    return ""
