"""Prove a node down before anything is promoted.

Called by `ha.failover`, and by `supervisor.acts.failover_book`, which records it; asks the fence
agent through `ha.agent`, and the kernel through the node's host (`host.base`).
`supervisor.acts.fencing` gathers the means.

Invariant: `fence` returns only with a proof; every other end is `FencingFailed`. The kernel's
report on a process outweighs an agent's or an operator's: a QEMU within reach that lives on is
killed in any case, and must be proven gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from operator import not_

from coloctl.clock import CLOCK, Clock, Deadline
from coloctl.colo import taps
from coloctl.errors import ColoctlError, FencingFailed
from coloctl.ha.agent import switch_off
from coloctl.host.base import DeathProof
from coloctl.model.pair import FencingMethod, NodeName, PairSpec
from coloctl.model.timeline import FenceRecord
from coloctl.tasks import first_of
from coloctl.vm import VM

#: SIGKILL to pidfd readiness takes about 3 ms (docs/qemu.md); a core dump or a busy disk longer.
KILL_DEADLINE_S = 10.0

#: A tap goes down within a millisecond; a kernel that is busy with its devices may take longer.
TAP_DEADLINE_S = 1.0

#: The kernel closes the files of a dead process before it reports the death; requests that were
#: under way on its disks may take a little longer. Seconds from one look to the next.
RELEASE_PERIOD_S = 0.01


class Confirmation:
    """An operator's statement that a node is off: may be asked for, and given at any time."""

    def __init__(self) -> None:
        self.question = ""  #: sentences for an operator, once ``asked`` is set
        self.asked = asyncio.Event()
        self.given = asyncio.Event()

    async def ask(self, question: str) -> None:
        """Ask an operator, and wait until the statement is given."""
        self.question = question
        self.asked.set()
        await self.given.wait()

    def give(self) -> None:
        """Take the operator's statement, whether it was asked for or not."""
        self.given.set()


@dataclass(frozen=True)
class Means:
    """Further means to prove a node down, besides the pair's fencing method."""

    confirmation: Confirmation | None = None  #: None: no operator can be asked
    confirmed: bool = False  #: an operator has confirmed already
    forced: bool = False  #: an operator forces it: the kernel's proof is tried before the agent
    agent_known: bool = False  #: the agent has reported "on" of this node before


NO_MEANS = Means()


@dataclass(frozen=True)
class Fenced:
    """Proof that ``node`` is down, how it was obtained, and the output of an asked agent."""

    node: NodeName
    method: FencingMethod
    how: str  #: as in `DeathProof.how`, before it ``confirmed-`` or ``agent-`` where one was asked
    took_ms: float
    proof: DeathProof
    said: str = ""

    def record(self) -> FenceRecord:
        """Return the record for journal, timeline and `coloctl fence history`."""
        method, pid = str(self.method), self.proof.pid
        return FenceRecord(self.node, method, self.how, self.took_ms, pid, self.said)


async def isolate(spec: PairSpec, vm: VM) -> None:
    """Take the node's taps down, so that a zombie cannot reach the LAN; a help, never the proof."""
    names = taps.names(spec, vm.node)
    with contextlib.suppress(ColoctlError, TimeoutError):
        async with asyncio.timeout(TAP_DEADLINE_S):
            await asyncio.gather(*(vm.host.tap(tap, up=False) for tap in names))


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
    an operator as long as it takes. Raises `FencingFailed` when there is no proof, or when an
    operator is needed and none can be asked.
    """
    began = clock.now()
    method = spec.fencing.method
    require_means(spec, vm, means)
    await isolate(spec, vm)
    by, said, proof = "", "", None
    if means.confirmed:
        by = "confirmed-" if vm.process.alive() else ""
    elif means.forced:
        proof = await _killed(vm, deadline_s)
    if proof is None and not means.confirmed and vm.process.alive():
        if method is FencingMethod.COMMAND:
            by, said = await _by_agent(spec, vm, means, clock)
        elif method is FencingMethod.MANUAL and means.confirmation is not None:
            by = await _by_operator(spec, vm, means.confirmation)
    deadline = Deadline(deadline_s, clock)
    proof = proof or await vm.process.kill(deadline_s)
    await require_released(spec, vm, deadline)
    took_ms = round((clock.now() - began) * 1000, 2)
    return Fenced(vm.node, method, by + proof.how, took_ms, proof, said)


async def require_released(spec: PairSpec, vm: VM, deadline: Deadline) -> None:
    """Wait until no process can write to the node's images or has its taps open.

    A dead QEMU holds no file open. A file that is open then belongs to a process that coloctl does
    not know: raises `FencingFailed` at the deadline, which names it.
    """
    images = [disk.image[vm.node] for disk in spec.disks]
    names = taps.names(spec, vm.node)
    held = await deadline.poll(
        lambda: vm.host.still_held(images=images, taps=names), RELEASE_PERIOD_S, done=not_
    )
    if held:
        raise FencingFailed(
            vm.node,
            f"QEMU of node {vm.node} is dead, but {'; '.join(held)}.",
            hint="end that process; the failover goes on by itself then, or with"
            f" `coloctl failover {spec.name} --force`",
        )


async def _killed(vm: VM, deadline_s: float) -> DeathProof | None:
    """Kill the process and return the kernel's proof; None where it cannot be had."""
    with contextlib.suppress(FencingFailed):
        return await vm.process.kill(deadline_s)
    return None


def require_means(spec: PairSpec, vm: VM, means: Means) -> None:
    """Require that the pair's fencing method can prove ``vm`` down, before anything is done to it.

    A process that the kernel reports as gone needs no method. Raises `FencingFailed`.
    """
    unasked = means.confirmation is None and not (means.confirmed or means.forced)
    if spec.fencing.method is FencingMethod.MANUAL and unasked and vm.process.alive():
        raise FencingFailed(
            vm.node,
            f"Node {vm.node} must be fenced by '{spec.fencing.method}', which needs an operator.",
            hint='fencing.method = "kill" lets coloctl do it where it runs beside QEMU',
        )


async def _by_agent(spec: PairSpec, vm: VM, means: Means, clock: Clock) -> tuple[str, str]:
    """Ask the agent to confirm it; an earlier proof by an operator or the kernel counts at once."""
    given = means.confirmation.given.wait() if means.confirmation is not None else None
    waits = (
        switch_off(spec.fencing, vm.node, clock, known=means.agent_known),
        vm.process.wait(),
        *([given] if given is not None else []),
    )
    async with first_of(*waits) as (agent, dying, *confirmed):
        if agent.done() and agent.exception() is None:
            return "agent-", agent.result()
        if any(one.done() for one in confirmed):
            return "confirmed-", ""
        if dying.done() or not vm.process.alive():
            failed = agent.exception() if agent.done() else None
            return "", failed.message if isinstance(failed, ColoctlError) else ""
        return "agent-", agent.result()  # raises the agent's failure


async def _by_operator(spec: PairSpec, vm: VM, confirmation: Confirmation) -> str:
    """Ask an operator to confirm it; a death that the kernel reports meanwhile counts at once."""
    question = confirmation.ask(
        f"Node {vm.node} must be known to be down before the other one may run the guest: "
        f"switch it off, then confirm it with `coloctl fence confirm {spec.name} {vm.node}`."
    )
    async with first_of(question, vm.process.wait()) as (asking, dying):
        if dying.done():
            return ""
        await asking
        return "confirmed-"
