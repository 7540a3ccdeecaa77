"""Hold the two monitors of one QEMU: the command monitor, and the rescue monitor for when it hangs.

Made by `vm_open`; `qmp.lost` is the one of a QEMU that cannot be reached. Used by `qmp.sequence`
and `qmp.wait`. The rescue monitor executes out of band, and only ``query-yank``, ``yank`` and
probes are sent there. QEMU answers from its monitor thread while the main loop waits for a dead
peer. Both monitors emit every event; each is reported once, from the monitor that sends it first
(`qmp.event_merge`), and recorded as the command monitor sent it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

from coloctl.clock import Deadline
from coloctl.errors import DeadlineMissed, Unreachable
from coloctl.qmp.command import Command
from coloctl.qmp.event_merge import EventMerger
from coloctl.qmp.session import Event, RecordMessage, Session


class EventStream:
    """The events of some names, kept from entering the context until they are asked for.

    At most ``bound`` wait here: an overflow drops the oldest and counts it in ``dropped``.
    """

    def __init__(self, monitor: Monitor, names: frozenset[str], bound: int) -> None:
        self.dropped = 0
        self._monitor = monitor
        self._names = names
        self._waiting: deque[Event] = deque(maxlen=bound)
        self._wake = asyncio.Event()

    def __enter__(self) -> Self:
        self._monitor.streams.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._monitor.streams.discard(self)

    def offer(self, event: Event) -> None:
        """Keep the event if its name was asked for."""
        if self._names and event.name not in self._names:
            return
        if len(self._waiting) == self._waiting.maxlen:
            self.dropped += 1
        self._waiting.append(event)
        self._wake.set()

    def wake(self) -> None:
        """Wake a waiting `next`, so that it looks again."""
        self._wake.set()

    async def next(self, deadline_s: float, where: Callable[[Event], bool] | None = None) -> Event:
        """Return the oldest waiting event, or the first to come, for which ``where`` holds.

        Those before it are dropped. Raises `DeadlineMissed`, or `Unreachable` once the monitor is
        gone and no event is left.
        """
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    while self._waiting:
                        event = self._waiting.popleft()
                        if where is None or where(event):
                            return event
                    if self._monitor.gone:
                        raise Unreachable(
                            f"The monitor of {self._monitor.node} is gone while waiting for"
                            f" {self._wanted()}."
                        )
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            raise DeadlineMissed(
                f"{self._monitor.node} sent no {self._wanted()} within {deadline_s:g} s."
            ) from None

    def _wanted(self) -> str:
        return " or ".join(sorted(self._names)) or "event"


class Monitor:
    """Both monitors of the QEMU of one node. Made by `open`; always ended with `aclose`."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.streams: set[EventStream] = set()
        self._lost = asyncio.Event()
        self._merger = EventMerger(self._on_event, leading="command", following="rescue")
        self._command: Session
        self._rescue: Session

    @classmethod
    async def open(
        cls,
        node: str,
        command_sock: socket.socket,
        rescue_sock: socket.socket,
        *,
        deadline_s: float,
        record: RecordMessage | None = None,
    ) -> Monitor:
        """Open both monitors of ``node``, which greet first, and take both sockets over.

        ``record`` gets ``"command sent"``, ``"command received"``, ``"rescue abandoned"`` and so
        on, and the message. Raises `Unreachable` or `CommandRefused`; both sockets are closed then.
        """
        monitor = cls(node)
        deadline = Deadline(deadline_s)
        try:
            monitor._command = await Session.open(
                command_sock,
                name=f"node {node}",
                oob=False,
                deadline_s=deadline.remaining(),
                on_event=partial(monitor._merger.hear, "command"),
                record=_named("command", record),
                on_lost=monitor._on_lost,
            )
        except BaseException:
            rescue_sock.close()
            raise
        try:
            monitor._rescue = await Session.open(
                rescue_sock,
                name=f"node {node} (rescue)",
                oob=True,
                deadline_s=deadline.remaining(),
                on_event=partial(monitor._merger.hear, "rescue"),
                record=_named("rescue", record, events=False),
                on_lost=monitor._on_lost,
            )
        except BaseException:
            await monitor._command.aclose()
            raise
        return monitor

    async def execute(
        self, command: Command, deadline_s: float = 5.0, *, fd: int | None = None
    ) -> Any:
        """Return QEMU's answer on the command monitor; raises as `Session.execute` does.

        Raises `ValueError` for a command that is out of band.
        """
        if command.oob:
            raise ValueError(f"{command.execute} is out of band: use rescue()")
        return await self._command.execute(command, deadline_s, fd=fd)

    async def rescue(self, command: Command, deadline_s: float = 1.0) -> Any:
        """Return QEMU's answer on the rescue monitor, which a hanging main loop does not block.

        Raises as `Session.execute` does, and `ValueError` for a command that is not out of band.
        """
        if not command.oob:
            raise ValueError(f"{command.execute} is not out of band: use execute()")
        return await self._rescue.execute(command, deadline_s)

    def probe(self, command: Command, answered: Callable[[], None]) -> bool:
        """Send the question on the monitor that it belongs to; see `Session.probe`."""
        monitor = self._rescue if command.oob else self._command
        return monitor.probe(command, answered)

    def listen(self, *names: str, bound: int = 1000) -> EventStream:
        """Make a context that keeps the events of these names (all, when none is given)."""
        return EventStream(self, frozenset(names), bound)

    @property
    def gone(self) -> bool:
        """True when one of the two connections is lost: this monitor is not whole any more."""
        return self._lost.is_set()

    async def closed(self) -> None:
        """Wait until one of the two connections is lost."""
        await self._lost.wait()

    async def aclose(self) -> None:
        """Close both connections; never waits for QEMU."""
        try:
            await self._command.aclose()
        finally:
            await self._rescue.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _on_event(self, event: Event) -> None:
        for stream in self.streams:
            stream.offer(event)

    def _on_lost(self) -> None:
        self._lost.set()
        for stream in self.streams:
            stream.wake()


def _named(name: str, record: RecordMessage | None, *, events: bool = True) -> RecordMessage | None:
    """Return ``record`` with the monitor's name before each kind; one monitor leaves events out."""
    if record is None:
        return None

    def tell(what: str, message: Mapping[str, Any]) -> None:
        if events or "event" not in message:
            record(f"{name} {what}", message)

    return tell
