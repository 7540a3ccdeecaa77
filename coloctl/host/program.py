"""Hold a launched program with every process that belongs to it, and end them with a proof.

`host.launch` and `host.recorded_program` make them (`LocalHost.launch`, `LocalHost.adopt`), for the
QEMUs of a pair and for those that are only queried; `procfs` shows the processes. Used by
`supervisor.leftovers`, which kills one, and by `host.resource_use`, which looks at it. A site may
start QEMU through a script. Then the process that was launched is a shell, and QEMU its child, or
the child of one that has ended.

Invariant: `kill` returns its proof only when no process of the program is left. A process that
cannot be proven to belong to it is never signalled.
"""

from __future__ import annotations

import asyncio
import signal as signals
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from coloctl.clock import CLOCK, Deadline
from coloctl.errors import FencingFailed, PreconditionFailed, Unreachable
from coloctl.host.gone import GoneProcess
from coloctl.host.identity import Identity
from coloctl.host.process import LocalProcess, file_bytes, identity_of
from coloctl.host.process_tree import ProcessTree, holder
from coloctl.host.records import Death, DeathProof, ThreadTimes
from coloctl.host.threads import worked
from coloctl.model.observation import Life

T = TypeVar("T")

#: From one look at /proc to the next, where the first one left a doubt.
_SECOND_LOOK_S = 0.02

#: Looks at /proc; apart from the event loop, and from tasks that keep its own threads busy.
_LOOKS = ThreadPoolExecutor(2, thread_name_prefix="procfs")


class Program:
    """A program of any number of processes; implements `Process`.

    One of them counts as the process: the one that was launched, until `answers` names the QEMU.

    Note the difference: a `host.process.LocalProcess` is one process of the kernel.
    """

    def __init__(
        self,
        leader: LocalProcess | GoneProcess,
        sockets: Mapping[Path, int],
        main: LocalProcess | GoneProcess | None = None,
        *,
        unplaced: str = "",
    ) -> None:
        """Hold ``leader``, which was launched and leads a session; ``sockets`` maps paths to
        inodes.

        ``main`` is the QEMU, where that is known already. ``unplaced``: see `Process.unplaced`.
        """
        self.unplaced = unplaced
        self._leader = leader
        self._main = leader if main is None else main
        self._settled = main is not None
        self._alone = False  #: one process, and no other when it was last looked at
        self._tree = ProcessTree(leader.identity, sockets, leader.node)
        self._threads: tuple[int, ...] = ()
        self._console: Path | None = None
        self._note_life()

    def __repr__(self) -> str:
        return f"<Program {self.identity.pid} {self.node or self.argv[:1]}>"

    @property
    def identity(self) -> Identity:
        return self._main.identity

    @property
    def leader(self) -> Identity:
        """The process that was launched; behind a wrapper, another one than `identity`."""
        return self._leader.identity

    @property
    def argv(self) -> tuple[str, ...]:
        return self._main.argv

    @property
    def node(self) -> str:
        return self._leader.node

    async def answers(self, speaker: Identity, files: Collection[Path] = ()) -> None:
        """Hold the process that is the QEMU from now on: ``speaker`` answered at its monitor.

        Where another process of the program has ``files`` open (the guest's disks), that one is the
        QEMU, and ``speaker`` only relays for it. Raises `Unreachable` when ``speaker`` does not
        belong to the program.
        """
        found = await looked(self._tree.look)
        try:
            known = {one.identity for one in found}
            if speaker not in known:
                raise Unreachable(
                    f"Process {speaker.pid} answers at the monitor of {self.node or self.argv[0]}, "
                    "and coloctl did not start it."
                )
            if not self._settled:
                chosen = await looked(holder, files, known, speaker)
                self._hold(next(one for one in found if one.identity == chosen))
            self._alone = known == {self.identity} == {self.leader}
            self._settled = True
            self._note_life()
        finally:
            self._close(found)

    async def wait(self) -> Death:
        """Wait until the process is gone; until `answers`, until none is left that could be it."""
        while True:
            waited = self._main
            death = await waited.wait()
            if waited is self._main and not await self._inherited():
                return death

    async def until_halted(self) -> Death:
        """See `Process.until_halted`; until `answers`, as `wait`."""
        while True:
            waited = self._main
            halt = await waited.until_halted()
            if not self._settled:
                return await self.wait()
            if waited is self._main:
                return halt

    def halted(self) -> bool:
        """See `Process.halted`; until `answers`, no process is left that could be the QEMU."""
        return self._main.halted() and (self._settled or not self._tree.listens())

    def alive(self) -> bool:
        """Return whether the process exists; until `answers`, whether one does that could be it."""
        return self._main.alive() or (not self._settled and self._tree.listens())

    def life(self) -> Life:
        """See `Process.life`; ALIVE until `answers` while another process may be the QEMU."""
        life = self._main.life()
        return Life.ALIVE if life is Life.DEAD and not self.halted() else life

    @property
    def seen_dying(self) -> bool:
        """True where the end of the process was noticed while it is waited for; nothing is read."""
        return isinstance(self._main, LocalProcess) and self._main.seen_dying

    def dying(self) -> bool:
        """See `Process.dying`."""
        return self._main.dying()

    def cpu_s(self) -> float | None:
        """See `Process.cpu_s`."""
        return self._main.cpu_s()

    def signal(self, signum: int) -> bool:
        """Send the signal to the process; returns False where it was gone already."""
        return self._main.signal(signum)

    def watch(self, *, threads: Sequence[int] | None = None, console: Path | None = None) -> None:
        """See `Process.watch`."""
        self._threads = self._threads if threads is None else tuple(threads)
        self._console = console or self._console

    def worked(self) -> ThreadTimes | None:
        """See `Process.worked`."""
        found = worked(self.identity.pid, self._threads)
        return None if found is None else ThreadTimes(CLOCK.now(), found)

    def console_bytes(self) -> int:
        """See `Process.console_bytes`."""
        return file_bytes(self._console)

    async def kill(self, deadline_s: float) -> DeathProof:
        """Kill every process of the program; the proof is that of the one that counts.

        Raises `FencingFailed` when one of them is not gone within ``deadline_s``, or when a process
        that this user may not see still holds its sockets.
        """
        deadline = Deadline(deadline_s)
        self._note_life()
        if self._leader is not self._main:
            _signal(self._leader)  # first: it may start another QEMU for one that ends
        proof = await self._main.kill(deadline_s)
        await self._end_rest(deadline)
        return proof

    async def halt(self, deadline_s: float) -> DeathProof:
        """See `Process.halt`; a program of several processes is killed. Raises `FencingFailed`."""
        if not self._alone:
            return await self.kill(deadline_s)
        self._note_life()
        return await self._main.halt(deadline_s)

    async def terminate(self, deadline_s: float) -> DeathProof:
        """Ask the process to end, then end all others; proof and errors as `kill`."""
        deadline = Deadline(deadline_s)
        self._note_life()
        proof = await self._main.terminate(deadline_s)
        await self._end_rest(deadline)
        return proof

    async def lives(self) -> bool:
        """Return whether any process of the program is left."""
        found = await looked(self._tree.look)
        self._close(found)
        return bool(found)

    def discard(self, within_s: float) -> bool:
        """Kill its processes; return whether all are gone ``within_s``, and released. Blocks."""
        deadline = Deadline(within_s)
        self._note_life()
        while (found := self._tree.look()) and not deadline.expired:
            first = [one for one in found if one.identity not in self._tree.unsure] or found
            for one in first:
                _signal(one)
            for one in first:
                one.wait_blocking(deadline.remaining())
            self._close(found)
        self._close(found)
        if not self._leader.alive() and not found:  # that look reaps it
            self.close()
        return not found

    def close(self) -> None:
        """Release the hold on the processes; they are left alone."""
        for one in {id(one): one for one in (self._leader, self._main)}.values():
            one.close()

    def _note_life(self) -> None:
        for one in (self._leader, self._main):
            if isinstance(one, LocalProcess) and one.alive():
                one.watch_memory()
                self._tree.note_life(one.identity)

    async def _inherited(self) -> bool:
        """Hold another process that has the sockets of the one that ended, until one has answered.

        A wrapper may end before its QEMU has come up: it daemonizes.
        """
        if self._settled or not self._tree.listens():
            return False
        found = await looked(self._tree.look)
        try:
            heirs = [one for one in found if one.alive()]
            if heirs:
                self._hold(heirs[0])
            return bool(heirs)
        finally:
            self._close(found)

    def _hold(self, one: LocalProcess) -> None:
        if one.identity != self._main.identity:
            self._main = self._leader if one.identity == self.leader else one
        # A wrapper that became QEMU by exec is another program by now.
        self._main.identity = identity_of(one.identity.pid) or one.identity

    def _close(self, found: Collection[LocalProcess]) -> None:
        for one in found:
            if one is not self._main:
                one.close()

    async def _end_rest(self, deadline: Deadline) -> None:
        """End every process of the program that is left; raises `FencingFailed` as `kill`."""
        if self._alone and not self._tree.listens():
            return
        suspects: set[Identity] = set()
        while found := await looked(self._tree.look):
            unsure = self._tree.unsure - suspects
            try:
                await _end([one for one in found if one.identity not in unsure], deadline)
                if unsure:
                    await asyncio.sleep(_SECOND_LOOK_S)
            finally:
                self._close(found)
            suspects |= unsure
        if self._leader is not self._main:
            await self._leader.kill(deadline.remaining())  # it is gone, and is reaped here
        while not await looked(self._tree.silent):
            if deadline.expired:
                raise FencingFailed(
                    self.node,
                    "A process that this user may not see still serves the monitor of the QEMU "
                    f"that was process {self.identity.pid}.",
                    hint="run coloctl as root, or find it with "
                    f"`ss -xlp | grep {next(iter(self._tree.sockets))}`",
                )
            await asyncio.sleep(_SECOND_LOOK_S)


async def _end(found: Collection[LocalProcess], deadline: Deadline) -> None:
    for one in found:
        _signal(one)
    for one in found:
        await one.kill(deadline.remaining())


def _signal(one: LocalProcess | GoneProcess) -> None:
    with suppress(PreconditionFailed):  # another user's process: `kill` reports it
        one.signal(signals.SIGKILL)


async def looked(look: Callable[..., T], *arguments: object) -> T:
    """Return the result of ``look``, which asks the kernel apart from the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_LOOKS, look, *arguments)
