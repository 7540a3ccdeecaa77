"""Refuse what another process uses: disk images by QEMU's locks, taps by who holds them.

Called by `supervisor.acts.start` and its dry run in `cli.verbs.start`, and by `colo.launch` before
a guest starts, before an image is made or given to a secondary, and where a node is swept; asks
`host.base`.

Invariant: nothing here changes what another process holds. A second supervisor of the same pair (a
forgotten COLOCTL_STATE_DIR) finds the first one's guest by that, whichever journal it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coloctl.colo import taps
from coloctl.errors import PairBusy, PreconditionFailed
from coloctl.host.base import Host
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.tasks import side_by_side


async def require_idle(spec: PairSpec, hosts: Mapping[NodeName, Host]) -> None:
    """Refuse to start a guest whose disks or taps a process holds, on either node.

    Raises `PairBusy` naming what is held and by which process, `PreconditionFailed` where that
    cannot be determined.
    """

    async def used(node: NodeName, image: Path) -> None:
        if user := await hosts[node].image_user(image):
            raise _busy(spec, f"Node {node}'s disk {image} is in use by {user}")

    async def held(node: NodeName, tap: str) -> None:
        if await hosts[node].tap_held(tap):
            raise _busy(spec, f"Node {node}'s tap {tap} is held by another process")

    looks = []
    for node in NODES:
        looks += [used(node, disk.image[node]) for disk in spec.disks]
        looks += [held(node, tap) for tap in taps.names(spec, node)]
    await side_by_side(*looks)


def _busy(spec: PairSpec, what: str) -> PairBusy:
    return PairBusy(
        f"{what}: the guest of {spec.name} may be running already, and is left alone.",
        hint="look for it under another state folder (`COLOCTL_STATE_DIR=... coloctl status`) and "
        f"with `pgrep -af 'guest={spec.name},'`; --from does not overrule a guest that runs",
    )


async def require_free(host: Host, *images: Path) -> None:
    """Refuse images that a process uses; raises `PreconditionFailed` naming the first, and the
    process.
    """
    users = await side_by_side(*map(host.image_user, images))
    for image, user in zip(images, users, strict=True):
        if user:
            raise PreconditionFailed(
                f"{image} is in use by {user}: it holds the image's lock.",
                hint=f"`fuser -v {image}` names what has it open; stop that first",
            )
