"""A node is proven down before anything is promoted.

Invariant: `fence` returns only with a proof; everything else is `FencingFailed`. What the kernel
says of a process outweighs what an agent or a person says: a QEMU within reach that lives on is
killed in any case, and must be proven gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from coloctl.clock import CLOCK, Clock, Deadline
from coloctl.errors import ColoctlError, FencingFailed
from coloctl.ha.agent import switch_off
from coloctl.host.base import DeathProof
from coloctl.model.pair import FencingMethod, PairSpec
from coloctl.vm import VM

#: SIGKILL to pidfd readiness takes about 3 ms (docs/qemu.md); a core dump or a busy disk longer.
KILL_DEADLINE_S = 10.0

#: A tap goes down within a millisecond; a kernel that is busy with its devices may take longer.
TAP_DEADLINE_S = 1.0

#: The kernel closes what a dead process had open before it says that it is dead; what was under way
#: on its disks may take a little longer. Seconds from one look to the next.
RELEASE_PERIOD_S = 0.01

#: Awaited with a sentence for a person; returns when a person vouches for the node's being down.
Confirm = Callable[[str], Awaitable[None]]


@dataclass(frozen=True)
class Means:
    """What may help to prove a node down, besides the pair's fencing method."""

    confirm: Confirm | None = None  #: asks a person; None: no one can be asked
    #: Returns when a person vouches for the node without having been asked.
    word: Callable[[], Awaitable[None]] | None = None
    vouched: bool = False  #: a person has vouched already
    forced: bool = False  #: an operator forces it: the kernel's proof is tried before the agent
    agent_known: bool = False  #: the agent has said "on" of this node before


NO_MEANS = Means()


@dataclass(frozen=True)
class Fenced:
    """How ``node`` was made sure to be down; ``said`` is the agent's, or empty."""

    node: str
    method: FencingMethod
    how: str  #: as in `DeathProof.how`, before it ``confirmed-`` or ``agent-`` where one was asked
    took_ms: float
    proof: DeathProof
    said: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the journal and `coloctl fence history`."""
        document = {
            "method": str(self.method),
            "how": self.how,
            "ms": self.took_ms,
            "pid": self.proof.pid,
        }
        return document | ({"said": self.said} if self.said else {})


async def isolate(spec: PairSpec, vm: VM) -> None:
    """The node's taps are down, so that a zombie cannot reach the LAN; a help, never the proof."""
    taps = [nic.tap.ifname[vm.node] for nic in spec.nics if nic.tap is not None]
    with contextlib.suppress(ColoctlError, TimeoutError):
        async with asyncio.timeout(TAP_DEADLINE_S):
            await asyncio.gather(*(vm.host.tap(tap, up=False) for tap in taps))


async def fence(
    spec: PairSpec,
    vm: VM,
    means: Means = NO_MEANS,
    *,
    deadline_s: float = KILL_DEADLINE_S,
    clock: Clock = CLOCK,
) -> Fenced:
    """Take ``vm`` off the LAN and make sure that it can never run another instruction.

    ``deadline_s`` is for the kernel's proof; an agent has the pair's ``fencing.timeout_s`` before,
    a person as long as it takes. Raises `FencingFailed` when there is no proof, or when a person is
    needed and no one can be asked.
    """
    began = clock.now()
    method = spec.fencing.method
    require_means(spec, vm, means)
    await isolate(spec, vm)
    by, said, proof = "", "", None
    if means.vouched:
        by = "confirmed-" if vm.process.alive() else ""
    elif means.forced:
        proof = await _killed(vm, deadline_s)
    if proof is None and not means.vouched and vm.process.alive():
        if method is FencingMethod.COMMAND:
            by, said = await _by_agent(spec, vm, means, clock)
        elif method is FencingMethod.MANUAL and means.confirm is not None:
            by = await _by_person(spec, vm, means.confirm)
    deadline = Deadline(deadline_s, clock)
    proof = proof or await vm.process.kill(deadline_s)
    await require_released(spec, vm, deadline)
    took_ms = round((clock.now() - began) * 1000, 2)
    return Fenced(vm.node, method, by + proof.how, took_ms, proof, said)


async def require_released(spec: PairSpec, vm: VM, deadline: Deadline) -> None:
    """Wait until no process can write to the node's images or has its taps open.

    What the lost QEMU had open is closed when it is dead. What is open then is in the hands of a
    process that coloctl does not know: raises `FencingFailed` at the deadline, which names it.
    """
    images = [disk.image[vm.node] for disk in spec.disks]
    taps = [nic.tap.ifname[vm.node] for nic in spec.nics if nic.tap is not None]
    while held := await vm.host.still_held(images=images, taps=taps):
        if deadline.expired:
            raise FencingFailed(
                vm.node,
                f"QEMU of node {vm.node} is dead, but {'; '.join(held)}.",
                hint="end that process; the failover goes on by itself then, or with"
                f" `coloctl failover {spec.name} --force`",
            )
        await asyncio.sleep(RELEASE_PERIOD_S)


async def _killed(vm: VM, deadline_s: float) -> DeathProof | None:
    """The kernel's proof, where it can be had; asked for before any agent."""
    with contextlib.suppress(FencingFailed):
        return await vm.process.kill(deadline_s)
    return None


def require_means(spec: PairSpec, vm: VM, means: Means) -> None:
    """Require that the pair's fencing method can prove ``vm`` down, before anything is done to it.

    A process that the kernel says is gone needs no method. Raises `FencingFailed`.
    """
    unasked = means.confirm is None and not (means.vouched or means.forced)
    if spec.fencing.method is FencingMethod.MANUAL and unasked and vm.process.alive():
        raise FencingFailed(
            vm.node,
            f"Node {vm.node} must be fenced by '{spec.fencing.method}', which needs a person.",
            hint='fencing.method = "kill" lets coloctl do it where it runs beside QEMU',
        )


async def _by_agent(spec: PairSpec, vm: VM, means: Means, clock: Clock) -> tuple[str, str]:
    """The agent confirmed it; or a person or the kernel did meanwhile, and is not kept waiting."""
    agent = asyncio.ensure_future(switch_off(spec.fencing, vm.node, clock, known=means.agent_known))
    dying = asyncio.ensure_future(vm.process.wait())
    word = asyncio.ensure_future(means.word()) if means.word is not None else None
    tasks: list[asyncio.Future[Any]] = [agent, dying, *([word] if word is not None else [])]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if agent.done() and agent.exception() is None:
            return "agent-", agent.result()
        if word is not None and word.done():
            return "confirmed-", ""
        if dying.done() or not vm.process.alive():
            failed = agent.exception() if agent.done() else None
            return "", failed.message if isinstance(failed, ColoctlError) else ""
        return "agent-", agent.result()  # raises what the agent failed with
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _by_person(spec: PairSpec, vm: VM, confirm: Confirm) -> str:
    """Somebody vouched for it, or the kernel did meanwhile."""
    asking = asyncio.ensure_future(
        confirm(
            f"Node {vm.node} must be known to be down before the other one may run the guest: "
            f"switch it off, then say so with `coloctl fence confirm {spec.name} {vm.node}`."
        )
    )
    dying = asyncio.ensure_future(vm.process.wait())
    try:
        await asyncio.wait({asking, dying}, return_when=asyncio.FIRST_COMPLETED)
        if dying.done():
            return ""
        await asking
        return "confirmed-"
    finally:
        for task in (asking, dying):
            task.cancel()
        await asyncio.gather(asking, dying, return_exceptions=True)
