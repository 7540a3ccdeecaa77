"""Hold a process of another machine: its life as the agent reports it, its end with a proof.

Made by `host.remote.host` for what the agent launched or adopted. `host.remote.held` passes the
agent's reports on. Where the session began again, `host.remote.host` looks the process up there.

Invariant: DEAD rests on the kernel of that machine alone: the agent's pidfd, an agent that finds no
such process, or another boot. Without a report the state is UNKNOWN.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from coloctl.clock import CLOCK
from coloctl.errors import FencingFailed, HostOutOfReach, PreconditionFailed
from coloctl.host.agent.handles import ProcessHandle
from coloctl.host.agent.work_processes import ProcessWork
from coloctl.host.base import Process
from coloctl.host.identity import Identity
from coloctl.host.records import Death, DeathProof, Machine, ThreadTimes
from coloctl.host.remote.contact import AgentContact
from coloctl.model.observation import Life

#: How long the agent may take to look through the processes of its machine.
LOOK_WAIT_S = 10.0


class RemoteProcess(Process):
    """A process of another machine; implements `Process`."""

    def __init__(
        self,
        contact: AgentContact,
        identity: Identity,
        *,
        node: str,
        leader: Identity | None = None,
        sockets: Collection[Path] = (),
    ) -> None:
        """Hold the process of ``identity``; `bind` follows when the agent holds it."""
        self._contact = contact
        self._identity, self._node = identity, node
        self._leader = leader or identity
        self._sockets = tuple(sockets)
        self._argv: tuple[str, ...] = ()
        self._unplaced = ""
        self._hold: int | None = None
        self._life, self._dying = Life.UNKNOWN, False
        self._cpu_s: float | None = None
        self._console_bytes = 0
        self._worked: ThreadTimes | None = None
        self._threads: tuple[int, ...] | None = None
        self._console: Path | None = None
        self._death: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
        self._halt: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
        self._how = ""
        self.closed = False

    def __repr__(self) -> str:
        return f"<RemoteProcess {self._contact.name} {self.identity.pid} {self.node}>"

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def argv(self) -> tuple[str, ...]:
        return self._argv

    @property
    def node(self) -> str:
        return self._node

    @property
    def leader(self) -> Identity:
        """The process that was launched."""
        return self._leader

    @property
    def unplaced(self) -> str:
        return self._unplaced

    # -- what the agent reports

    def bind(self, handle: ProcessHandle) -> None:
        """Take over that the agent holds the process now, and report it to this object."""
        self._adopt(handle)
        self._life = Life.ALIVE
        self._contact.held.add(handle.hold, self)
        if self._threads is not None or self._console is not None:
            self._push_watch()

    def _adopt(self, handle: ProcessHandle) -> None:
        self._hold, self._argv, self._unplaced = handle.hold, handle.argv, handle.unplaced
        self._identity, self._leader = handle.identity, handle.leader

    def reported(self, row: list[Any]) -> None:
        """See `Thing.reported`."""
        life, dying, cpu_s, console_bytes, times = row
        self._dying = bool(dying)
        self._life, self._cpu_s, self._console_bytes = Life(life), cpu_s, int(console_bytes)
        self._worked = None
        if times is not None:
            threads = tuple((float(ran_s), float(waited_s)) for ran_s, waited_s in times[1])
            self._worked = ThreadTimes(self._contact.ours(times[0]), threads)

    def pushed(self, of: str, document: Mapping[str, Any]) -> None:
        """See `Thing.pushed`. The process has come to a halt, or has ended."""
        if of in {"halted", "death"}:
            at_s = self._contact.ours(float(document["at_s"]))
            code, limit = document["exit_code"], document.get("memory_limit")
            death = Death(int(document["pid"]), at_s, code, limit)
            if of == "halted":
                self._come_to_halt(death)
            else:
                self._die(death, "already-dead")

    def forgotten(self, why: str) -> None:
        """See `Thing.forgotten`. The process may run, and is looked up in the next session."""
        self._hold, self._life, self._dying = None, Life.UNKNOWN, False

    async def look_up(self, machine: Machine) -> None:
        """Find the process again where a session has begun; a reboot proves its end.

        In a case of doubt, out of reach, or on another machine of that name, its state stays
        UNKNOWN.
        """
        if self._death.done() or self.closed:
            return
        recorded = self._identity.machine
        if recorded and recorded != machine.machine_id:
            return
        if self._identity.boot and self._identity.boot != machine.boot_id:
            self._die(Death(self._identity.pid, CLOCK.now(), None), "rebooted")
            return
        try:
            handle = await self._contact.ask(
                ProcessWork.adopt,
                LOOK_WAIT_S,
                identity=self._identity,
                node=self._node,
                leader=self._leader,
                sockets=self._sockets,
            )
        except PreconditionFailed:
            return
        if handle is None:
            self._die(Death(self._identity.pid, CLOCK.now(), None), "identity-gone")
        else:
            self.bind(handle)

    def _come_to_halt(self, death: Death) -> None:
        if not self._halt.done():
            self._halt.set_result(death)

    def _die(self, death: Death, how: str) -> None:
        self._come_to_halt(death)
        if not self._death.done():
            self._life, self._how = Life.DEAD, how
            self._death.set_result(death)

    # -- Process

    async def answers(self, speaker: Identity, files: Collection[Path] = ()) -> None:
        """See `Process.answers`. Raises `Unreachable`, `HostOutOfReach`."""
        handle = await self._contact.call(
            ProcessWork.answers,
            LOOK_WAIT_S,
            hold=self._held(),
            speaker=speaker,
            files=tuple(files),
        )
        self._adopt(handle)

    async def wait(self) -> Death:
        """See `Process.wait`."""
        return await asyncio.shield(self._death)

    async def until_halted(self) -> Death:
        """See `Process.until_halted`."""
        return await asyncio.shield(self._halt)

    def halted(self) -> bool:
        """See `Process.halted`."""
        return self._halt.done()

    def life(self) -> Life:
        """See `Process.life`."""
        if self.halted():
            return Life.DEAD
        if self._life is not Life.DEAD and self._contact.held.stale:
            return Life.UNKNOWN
        return self._life

    def dying(self) -> bool:
        """See `Process.dying`; as the agent noticed it, which takes Linux 6.9 there."""
        return self._dying and self._is_known()

    def _is_known(self) -> bool:
        return self.life() not in {Life.UNKNOWN, Life.DEAD}

    def alive(self) -> bool:
        """See `Process.alive`."""
        return not self._death.done()

    def cpu_s(self) -> float | None:
        """See `Process.cpu_s`."""
        return self._cpu_s if self._is_known() else None

    def watch(self, *, threads: Sequence[int] | None = None, console: Path | None = None) -> None:
        """See `Process.watch`."""
        if threads is not None:
            self._threads, self._worked = tuple(threads), None
        if console is not None:
            self._console, self._console_bytes = console, 0
        self._push_watch()

    def _push_watch(self) -> None:
        if self._hold is not None:
            document = {
                "threads": None if self._threads is None else list(self._threads),
                "console": None if self._console is None else str(self._console),
            }
            self._contact.held.push(self, self._hold, "watch", document)

    def worked(self) -> ThreadTimes | None:
        """See `Process.worked`."""
        return self._worked if self._is_known() else None

    def console_bytes(self) -> int:
        """See `Process.console_bytes`."""
        return self._console_bytes

    async def kill(self, deadline_s: float) -> DeathProof:
        """See `Process.kill`. Raises `FencingFailed`."""
        return await self._end(deadline_s, gently=False)

    async def halt(self, deadline_s: float) -> DeathProof:
        """See `Process.halt`. Raises `FencingFailed`."""
        return await self._proven(
            self._halt,
            lambda: self._contact.call(
                ProcessWork.halt, deadline_s, hold=self._held(), deadline_s=deadline_s
            ),
            lambda halt, _how: self._come_to_halt(halt),
        )

    async def terminate(self, deadline_s: float) -> DeathProof:
        """See `Process.terminate`. Raises `FencingFailed`."""
        return await self._end(deadline_s, gently=True)

    def close(self) -> None:
        """See `Process.close`."""
        self.closed = True
        if self._hold is not None:
            self._contact.held.release(self, self._hold)
            self._hold = None

    async def _end(self, deadline_s: float, *, gently: bool) -> DeathProof:
        """End the process by its agent; raises `FencingFailed`."""
        return await self._proven(
            self._death,
            lambda: self._contact.call(
                ProcessWork.end,
                deadline_s,
                hold=self._held(),
                gently=gently,
                deadline_s=deadline_s,
            ),
            self._die,
        )

    async def _proven(
        self,
        reported: asyncio.Future[Death],
        ask: Callable[[], Awaitable[DeathProof]],
        note: Callable[[Death, str], None],
    ) -> DeathProof:
        """Return the proof of what was ``reported``, or that of the agent; raises `FencingFailed`.

        ``ask`` has the agent obtain it, and ``note`` keeps that.
        """
        if not reported.done():
            try:
                proof = await ask()
            except HostOutOfReach as error:
                if not reported.done():  # a reboot may have answered meanwhile
                    raise out_of_reach(self._node, error) from None
            else:
                note(Death(proof.pid, self._contact.ours(proof.at_s), proof.exit_code), proof.how)
                return self._proof(proof.how)
        return self._proof(self._how or "already-dead")

    def _proof(self, how: str) -> DeathProof:
        death = (self._death if self._death.done() else self._halt).result()
        return DeathProof(
            self._identity.pid, self._identity.start_time, how, death.at_s, death.exit_code
        )

    def _held(self) -> int:
        """Return the number of the agent's hold; raises `HostOutOfReach` where it has none."""
        if self._hold is None:
            raise HostOutOfReach(
                f"Process {self._identity.pid} on {self._contact.name} is not held at the moment."
            )
        return self._hold


def out_of_reach(node: str, error: HostOutOfReach) -> FencingFailed:
    """Make the error for a process whose machine cannot be asked to end it."""
    return FencingFailed(node, error.message, hint=error.hint, out_of_reach=True)
