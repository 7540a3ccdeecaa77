"""A node is proven down before anything is promoted.

Invariant: `fence` returns only with a proof; everything else is `FencingFailed`.
"""

from __future__ import annotations

import asyncio
import contextlib

from coloctl.errors import ColoctlError, FencingFailed
from coloctl.host.base import DeathProof
from coloctl.model.pair import FencingMethod, PairSpec
from coloctl.vm import VM

#: SIGKILL to pidfd readiness takes about 3 ms (docs/qemu.md); a core dump or a busy disk longer.
KILL_DEADLINE_S = 10.0


async def isolate(spec: PairSpec, vm: VM) -> None:
    """The node's taps are down, so that a zombie cannot reach the LAN; a help, never the proof."""
    taps = [nic.tap.ifname[vm.node] for nic in spec.nics if nic.tap is not None]
    with contextlib.suppress(ColoctlError):
        await asyncio.gather(*(vm.host.tap(tap, up=False) for tap in taps))


async def fence(spec: PairSpec, vm: VM, *, deadline_s: float = KILL_DEADLINE_S) -> DeathProof:
    """``vm`` can never run another instruction, and its taps are down.

    Raises `FencingFailed` when there is no proof within ``deadline_s``, or when the pair's fencing
    method leaves the proof to somebody else.
    """
    require_means(spec, vm)
    await isolate(spec, vm)
    return await vm.kill(deadline_s)


def require_means(spec: PairSpec, vm: VM) -> None:
    """The pair's fencing method can prove ``vm`` down; asked before anything is done to it.

    A process that the kernel says is gone needs no method. Raises `FencingFailed`.
    """
    if spec.fencing.method is not FencingMethod.KILL and vm.process.alive():
        raise FencingFailed(
            vm.node,
            f"Node {vm.node} must be fenced by '{spec.fencing.method}', which needs a person.",
            hint='fencing.method = "kill" lets coloctl do it where it runs beside QEMU',
        )
