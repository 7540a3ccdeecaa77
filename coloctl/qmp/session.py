"""Hold one connection to one monitor, with a deadline on each command.

Called by `qmp.monitor` and `asked`; `supervisor.loop` and `supervisor.seat` take its events;
`qmp.client` carries the messages. In any state of QEMU `execute` ends within its deadline: with an
answer, or with one of three errors. `CommandRefused`: QEMU refused, the command did not happen.
`Unreachable`: the connection is gone or takes no commands, and none was sent. `OutcomeUnknown`:
sent, not answered; it may happen yet, so query before deciding.

Invariant: a late answer is recorded, counted and dropped; it never answers another command.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

from qemu.qmp import (
    ConnectError,
    ExecInterruptedError,
    ExecuteError,
    QMPError,
    Runstate,
    StateError,
)

from coloctl.errors import CommandRefused, DeadlineMissed, OutcomeUnknown, Unreachable
from coloctl.qmp import command as qmp
from coloctl.qmp.client import Event, HookedClient, RecordMessage
from coloctl.qmp.command import Command
from coloctl.qmp.value import thaw

__all__ = ["MAX_UNANSWERED", "Event", "RecordMessage", "Session"]

#: Commands of one session that QEMU may leave unanswered. QEMU itself queues 8 per monitor
#: (QMP_REQ_QUEUE_LEN_MAX in monitor/monitor-internal.h) and then stops reading; more than a few
#: times that means it hangs, and what is written to it would only pile up here.
MAX_UNANSWERED = 64

#: Commands that take the descriptor which came before them.
TAKERS = frozenset({"getfd", "add-fd"})


class Session:
    """One connection to one monitor. Made by `open`; always ended with `aclose`.

    Note the difference: a `Session` is one connection; a `qmp.monitor.Monitor` is the two of one
    QEMU.
    """

    def __init__(self, client: HookedClient, name: str, record: RecordMessage | None) -> None:
        self.name = name
        self._client = client
        self._record = record
        self._passing = asyncio.Lock()
        self._ending = asyncio.Lock()

    @classmethod
    async def open(
        cls,
        sock: socket.socket,
        *,
        name: str,
        oob: bool,
        deadline_s: float,
        on_event: Callable[[Event], None],
        record: RecordMessage | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> Session:
        """Open a session on ``sock``, whose monitor greets first, and take ``sock`` over.

        ``on_event`` and ``record`` run inside the reader: they must return at once and not raise.
        ``record`` gets ``"sent"``, ``"received"`` or ``"abandoned"`` and the message. ``oob`` asks
        for out-of-band execution. Raises `Unreachable` when it does not greet in time or is not a
        QMP monitor, `CommandRefused` when it refuses ``oob``; ``sock`` is closed then.
        """
        client = HookedClient(name, on_event, on_lost, record)
        session = cls(client, name, record)
        try:
            async with asyncio.timeout(deadline_s):
                await client.connect(sock)
                await session.execute(qmp.qmp_capabilities(oob=oob), deadline_s)
        except BaseException as error:
            await session.aclose()
            sock.close()
            # The library asserts that a session which was just established still stands.
            if isinstance(error, (TimeoutError, OutcomeUnknown, ConnectError, AssertionError)):
                raise session._unusable(error, deadline_s) from error
            raise
        return session

    @property
    def greeting(self) -> Mapping[str, Any]:
        """The monitor's greeting: ``version`` and ``capabilities`` under ``QMP``."""
        greeting = self._client.greeting
        return {} if greeting is None else greeting._asdict()

    @property
    def unanswered(self) -> int:
        """Number of commands that QEMU has not answered, abandoned ones included."""
        return len(self._client.unanswered)

    async def execute(self, command: Command, deadline_s: float, *, fd: int | None = None) -> Any:
        """Send a command and return QEMU's answer; ``fd`` is passed with it (SCM_RIGHTS).

        The descriptor stays the caller's. Raises `CommandRefused`, `Unreachable` and
        `OutcomeUnknown` as above, and `DeadlineMissed` when there was no time left to send it. A
        cancelled call leaves the outcome unknown, too.
        """
        if deadline_s <= 0:
            raise DeadlineMissed(f"{command.execute} was not sent to {self.name}: no time left.")
        if fd is None:
            return await self._execute(command, deadline_s)
        start = time.monotonic()
        try:
            async with asyncio.timeout(deadline_s):
                await self._passing.acquire()
        except TimeoutError:
            raise DeadlineMissed(
                f"{command.execute} was not sent to {self.name}: another descriptor is on its way."
            ) from None
        try:
            self._pass(fd)
            return await self._execute(command, max(0.001, start + deadline_s - time.monotonic()))
        finally:
            self._passing.release()

    def probe(self, command: Command, answered: Callable[[], None]) -> bool:
        """Send a command without arguments; ``answered`` is called when QEMU replies.

        The call does not wait, and no record is kept: this is for questions that are asked all the
        time, where only the moment of the answer matters, yes or no. At most one of each name is
        under way: False means that the last has no answer yet. Raises `Unreachable` as `execute`.
        """
        self._check_open()
        try:
            return self._client.probe(command, answered)
        except StateError:
            raise self._unreachable() from None

    async def _execute(self, command: Command, deadline_s: float) -> Any:
        name = command.execute
        self._check_open()
        arguments = thaw(command.arguments) if command.arguments else None
        try:
            async with asyncio.timeout(deadline_s):
                return await self._client.execute(name, arguments, command.oob)
        except ExecuteError as error:
            raise CommandRefused(name, str(error), error_class=error.error_class) from None
        except StateError:
            raise self._unreachable() from None
        except TimeoutError:
            self._abandon(command, deadline_s)
            raise OutcomeUnknown(
                name, f"{self.name} gave no answer within {deadline_s:g} s."
            ) from None
        except ExecInterruptedError:
            raise OutcomeUnknown(name, f"{self.name}: {self._client.why_lost}") from None
        except QMPError as error:
            raise OutcomeUnknown(name, f"{self.name} answered with nonsense: {error}") from error
        except asyncio.CancelledError:
            self._abandon(command, deadline_s)
            raise

    def _check_open(self) -> None:
        if self._client.lost.is_set():
            raise self._unreachable()
        if self.unanswered >= MAX_UNANSWERED:
            raise Unreachable(
                f"The monitor of {self.name} has not answered {self.unanswered} commands and gets"
                " no more until it answers some."
            )

    def _unreachable(self) -> Unreachable:
        return Unreachable(f"The monitor of {self.name} is gone: {self._client.why_lost}.")

    def _unusable(self, error: Exception, deadline_s: float) -> Unreachable:
        if isinstance(error, TimeoutError):
            return Unreachable(
                f"The monitor of {self.name} did not greet within {deadline_s:g} s.",
                hint="a monitor serves one client at a time; another one may be connected",
            )
        why = _cause(error) if isinstance(error, ConnectError) else self._client.why_lost
        return Unreachable(f"The monitor of {self.name} cannot be used: {why}.")

    def _abandon(self, command: Command, deadline_s: float) -> None:
        if self._record:
            self._record("abandoned", {**command.wire(), "deadline_s": deadline_s})

    def _pass(self, fd: int) -> None:
        """Put ``fd`` into the socket just before the command that will be written next.

        QEMU keeps the last descriptor that came until a command of `TAKERS` takes it, so only one
        may be under way. The blank that carries it must not fall into another command.
        """
        self._check_open()
        if earlier := TAKERS.intersection(self._client.unanswered.values()):
            raise Unreachable(f"{self.name} has not answered an earlier {min(earlier)} yet.")
        if self._client.unsent:
            raise Unreachable(f"The monitor of {self.name} does not read what is sent to it.")
        try:
            self._client.send_fd_scm(fd)
        except StateError:
            raise self._unreachable() from None
        except OSError as error:
            raise Unreachable(
                f"The descriptor could not be passed to {self.name}: {error.strerror}."
            ) from error

    async def closed(self) -> None:
        """Wait until the connection is gone, by whichever end."""
        await self._client.lost.wait()

    async def aclose(self) -> None:
        """Close the connection, and end all that runs for it; never waits for the other end.

        When cancelled, it still does so before it raises. The library forgets the error that ended
        the connection where its own wait is cut short, and asyncio would report it at the end.
        """
        async with self._ending:
            if self._client.runstate is Runstate.IDLE:
                return
            leaving = asyncio.create_task(self._leave())
            try:
                await asyncio.shield(leaving)
            except asyncio.CancelledError:
                await asyncio.wait({leaving})
                raise

    async def _leave(self) -> None:
        # The library raises here again what ended the connection, of any class. `execute` has
        # reported it to its caller, and the end of a QEMU must not stop at it.
        with suppress(Exception):
            await self._client.disconnect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _cause(error: ConnectError) -> str:
    if isinstance(error.exc, EOFError):
        return "it closed the connection"
    if isinstance(error.exc, OSError):
        return error.exc.strerror or str(error.exc)
    return "what answers there does not speak QMP"
