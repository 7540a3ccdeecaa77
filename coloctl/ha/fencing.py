"""Prove a node down before anything is promoted, or state that only the claim may decide.

Called by `ha.failover`, by `supervisor.acts.failover_book`, which records it, and by
`supervisor.acts.stop`, which ends QEMUs within reach; asks the fence agent through `ha.agent`, and
the kernel through the node's host (`host.base`). `supervisor.acts.fencing` gathers the means.

Invariant: `fence` returns with a proof, or, for a secondary out of reach, with the statement that
only the claim lets the survivor run. Every other end is `FencingFailed`. The kernel's report on a
process outweighs an agent's or an operator's: a QEMU within reach that lives on is killed in any
case, and must be proven gone.

A secondary needs no proof, because it reaches no client: its output is held, its taps are down, and
it runs on alone only when a supervisor orders it to, after a claim. A primary always needs one: its
guest may be serving. Example: the power of the secondary's machine fails. Nothing can prove its
QEMU gone, and the primary's guest goes on `GIVEN_UP_WAIT_S` after the diagnosis.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from operator import not_
from typing import Any, TypeVar

from coloctl.clock import CLOCK, Clock, Deadline
from coloctl.colo import taps
from coloctl.errors import ColoctlError, FencingFailed
from coloctl.ha.agent import switch_off
from coloctl.host.base import DeathProof
from coloctl.host.identity import Identity
from coloctl.host.records import Contact
from coloctl.model.observation import Life
from coloctl.model.pair import FencingMethod, NodeName, PairSpec, Role
from coloctl.model.timeline import OUT_OF_REACH, FenceRecord
from coloctl.tasks import first_of
from coloctl.vm import VM

T = TypeVar("T")

#: SIGKILL to pidfd readiness takes about 3 ms (docs/qemu.md); a core dump or a busy disk longer.
KILL_DEADLINE_S = 10.0

#: A machine reports of its QEMUs every 40 ms (docs/two-machines.md). One that has not for 120 ms,
#: and does not answer a kill for so long either, is out of reach. Seconds, and looks in that time.
OUT_OF_REACH_WAIT_S, UNSEEN_LOOKS = 0.1, 5
#: The same where the guest stands still meanwhile: a secondary that is given up too soon is ended
#: as soon as its machine answers, and the claim alone decides in any case. A kill over ssh is
#: answered within 2 ms by a machine that is there. Seconds.
GIVEN_UP_WAIT_S = 0.02

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
    """Proof that ``node`` is down, how it was obtained, and the output of an asked agent.

    ``proof`` is None where its machine is out of reach: for a secondary, or for a node of which an
    agent or an operator states that it is off.
    """

    node: NodeName
    method: FencingMethod
    #: `DeathProof.how` or `OUT_OF_REACH`, after ``confirmed-`` or ``agent-`` where one was asked.
    how: str
    took_ms: float
    pid: int
    proof: DeathProof | None
    said: str = ""

    @property
    def claim_alone(self) -> bool:
        """True where nothing but the claim keeps two nodes from running the guest."""
        return self.how == OUT_OF_REACH

    def record(self) -> FenceRecord:
        """Return the record for journal, timeline and `coloctl fence history`."""
        method = str(self.method)
        return FenceRecord(self.node, method, self.how, self.took_ms, self.pid, self.said)


def unseen(vm: VM) -> bool:
    """Return whether the machine of ``vm`` cannot be asked now, or does not report of its QEMU."""
    reach = vm.host.reach
    return reach.out or (reach.contact is not Contact.HERE and vm.process.life() is Life.UNKNOWN)


async def while_seen(
    vm: VM, work: Coroutine[Any, Any, DeathProof], wait_s: float = OUT_OF_REACH_WAIT_S
) -> DeathProof | None:
    """Return the proof that ``work`` obtains; None as soon as the machine of ``vm`` is unseen.

    A machine that is connected and does not report is waited for, ``wait_s`` at most. Raises
    `FencingFailed` as ``work``.
    """
    working = asyncio.ensure_future(work)
    try:
        looks = 0
        while not working.done() and looks < UNSEEN_LOOKS and not vm.host.reach.out:
            await asyncio.wait({working}, timeout=wait_s / UNSEEN_LOOKS)
            looks = looks + 1 if unseen(vm) else 0
        return await working if working.done() else None
    except FencingFailed as error:
        if error.out_of_reach:
            return None
        raise
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def isolate(spec: PairSpec, vm: VM) -> None:
    """Take the node's taps down, so that a zombie cannot reach the LAN; a help, never the proof."""
    names = taps.names(spec, vm.node)
    with contextlib.suppress(ColoctlError, TimeoutError):
        async with asyncio.timeout(TAP_DEADLINE_S + vm.host.reach.trips_s(1)):
            await asyncio.gather(*(vm.host.tap(tap, up=False) for tap in names))


async def fence(
    spec: PairSpec,
    vm: VM,
    means: Means = NO_MEANS,
    *,
    role: Role = Role.PRIMARY,
    deadline_s: float = KILL_DEADLINE_S,
    clock: Clock = CLOCK,
) -> Fenced:
    """Take ``vm`` off the LAN and make sure that it can never run another instruction.

    ``role`` is that of ``vm``; a primary needs a proof. A secondary out of reach is given up
    without one where the method is ``kill``; with another method its agent or operator is asked.
    ``deadline_s`` is for the kernel's proof; an agent has the pair's ``fencing.timeout_s`` before,
    an operator as long as it takes. Raises `FencingFailed` when there is no proof, or when an
    operator is needed and none can be asked.
    """
    began = clock.now()
    method = spec.fencing.method
    require_means(spec, vm, means)
    by, said = "", ""
    if role is Role.SECONDARY and method is FencingMethod.KILL:
        by = "confirmed-" if means.confirmed and not vm.process.halted() else ""
        ending = _isolated_and_ended(spec, vm, deadline_s, clock)
        proof = await while_seen(vm, ending, GIVEN_UP_WAIT_S)
    else:
        proving = _proven(spec, vm, means, deadline_s, clock)
        by, said, proof = await _isolated(spec, vm, proving)
    took_ms = round((clock.now() - began) * 1000, 2)
    how = by + (OUT_OF_REACH if proof is None else proof.how)
    pid = vm.process.identity.pid if proof is None else proof.pid
    return Fenced(vm.node, method, how, took_ms, pid, proof, said)


async def _isolated_and_ended(
    spec: PairSpec, vm: VM, deadline_s: float, clock: Clock
) -> DeathProof:
    return await _isolated(spec, vm, _ended(spec, vm, None, deadline_s, clock))


async def _isolated(spec: PairSpec, vm: VM, proving: Coroutine[Any, Any, T]) -> T:
    """Isolate the node beside ``proving``; return what that returns, once both have ended.

    An isolation that fails or hangs delays no kill. Raises as ``proving``, at the end of both. A
    dead process is not isolated: its taps carry nothing, and the kernel, which has to detach them,
    takes 5 to 30 ms for each that is set down. They are when the node is swept (`colo.launch`).
    """
    if vm.process.halted():
        return await proving
    isolating = asyncio.ensure_future(isolate(spec, vm))  # on its way first
    proven = asyncio.ensure_future(proving)
    await asyncio.gather(isolating, proven, return_exceptions=True)
    return proven.result()


async def _proven(
    spec: PairSpec, vm: VM, means: Means, deadline_s: float, clock: Clock
) -> tuple[str, str, DeathProof | None]:
    """Obtain a proof, by the agent or an operator before where the method wants that.

    Returns who was asked, what an agent printed, and the kernel's proof. That is None only where
    the one who was asked states that the node is off, and its machine is out of reach.
    """
    method = spec.fencing.method
    by, said, proof = "", "", None
    if means.confirmed:
        by = "confirmed-" if not vm.process.halted() else ""
    elif means.forced:
        proof = await _killed(vm, deadline_s)
    if proof is None and not means.confirmed and not vm.process.halted():
        if method is FencingMethod.COMMAND:
            by, said = await _by_agent(spec, vm, means, clock)
        elif method is FencingMethod.MANUAL and means.confirmation is not None:
            by = await _by_operator(spec, vm, means.confirmation)
    try:
        return by, said, await _ended(spec, vm, proof, deadline_s, clock)
    except FencingFailed as error:
        if by and error.out_of_reach:
            return by, said, None
        raise


async def _ended(
    spec: PairSpec, vm: VM, proof: DeathProof | None, deadline_s: float, clock: Clock
) -> DeathProof:
    """Kill the process, unless there is a ``proof``, and wait for the release of what it held."""
    deadline = Deadline(deadline_s, clock)
    proof = proof or await vm.process.halt(deadline_s)
    await require_released(spec, vm, deadline)
    return proof


async def require_released(spec: PairSpec, vm: VM, deadline: Deadline) -> None:
    """Wait until no process can write to the node's images or has its taps open.

    A dead QEMU holds no file open. A file that is open then belongs to a process that coloctl does
    not know: raises `FencingFailed` at the deadline, which names it.
    """
    images = [disk.image[vm.node] for disk in spec.disks]
    names = taps.names(spec, vm.node)
    held = await deadline.poll(
        lambda: vm.host.still_held(images=images, taps=names, besides=_halted(vm)),
        RELEASE_PERIOD_S,
        done=not_,
    )
    if held:
        raise FencingFailed(
            vm.node,
            f"QEMU of node {vm.node} is dead, but {'; '.join(held)}.",
            hint="end that process; the failover goes on by itself then, or with"
            f" `coloctl failover {spec.name} --force`",
        )


def _halted(vm: VM) -> Identity | None:
    """Return the process where it is dead and not gone: the kernel has its files to close yet."""
    return vm.process.identity if vm.process.halted() and vm.process.alive() else None


async def _killed(vm: VM, deadline_s: float) -> DeathProof | None:
    """Kill the process and return the kernel's proof; None where it cannot be had."""
    with contextlib.suppress(FencingFailed):
        return await vm.process.halt(deadline_s)
    return None


def require_means(spec: PairSpec, vm: VM, means: Means) -> None:
    """Require that the pair's fencing method can prove ``vm`` down, before anything is done to it.

    A process that the kernel reports as gone needs no method. Raises `FencingFailed`.
    """
    unasked = means.confirmation is None and not (means.confirmed or means.forced)
    if spec.fencing.method is FencingMethod.MANUAL and unasked and not vm.process.halted():
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
        vm.process.until_halted(),
        *([given] if given is not None else []),
    )
    async with first_of(*waits) as (agent, dying, *confirmed):
        if agent.done() and agent.exception() is None:
            return "agent-", agent.result()
        if any(one.done() for one in confirmed):
            return "confirmed-", ""
        if dying.done() or vm.process.halted():
            failed = agent.exception() if agent.done() else None
            return "", failed.message if isinstance(failed, ColoctlError) else ""
        return "agent-", agent.result()  # raises the agent's failure


async def _by_operator(spec: PairSpec, vm: VM, confirmation: Confirmation) -> str:
    """Ask an operator to confirm it; a death that the kernel reports meanwhile counts at once."""
    question = confirmation.ask(
        f"Node {vm.node} must be known to be down before the other one may run the guest: "
        f"switch it off, then confirm it with `coloctl fence confirm {spec.name} {vm.node}`."
    )
    async with first_of(question, vm.process.until_halted()) as (asking, dying):
        if dying.done():
            return ""
        await asking
        return "confirmed-"
