"""Ask the peer of a session to perform operations, and perform what it asks.

Called by `host.wire.mux`, which makes both tables for each session.

Invariant: each ASK has one ANSWER, also where it was cancelled. So an end that no longer waits
learns what became of its request, and undoes an answer that came all the same.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from coloctl.errordocument import error_document, error_from
from coloctl.errors import ColoctlError, HostOutOfReach
from coloctl.host.wire.frames import MESSAGE_MAX, FrameError, FrameKind, decode_json, encode_json
from coloctl.host.wire.stream import SendFrame

log = logging.getLogger(__name__)

#: Performs ``do`` with its arguments within ``deadline_s``; JSON can hold what it returns.
Serve = Callable[[str, Mapping[str, Any], float], Awaitable[Any]]
#: Undoes what the answer to ``do`` stands for: its asker waits no longer.
Unclaimed = Callable[[str, Any], None]

#: The answer to a request that was cancelled; the peer waits for it no longer.
_CANCELLED = encode_json({"error": error_document(ColoctlError("It was cancelled."))})


@dataclass
class _Ask:
    """A request of this end; ``sent`` once its first piece may have left."""

    do: str
    answer: asyncio.Future[Any]
    sent: bool = False


class Asks:
    """The requests of this end in one session that have no answer yet."""

    def __init__(
        self,
        peer: str,
        numbers: Iterator[int],
        send: SendFrame,
        withdraw: Callable[[int], None],
        unclaimed: Unclaimed,
    ) -> None:
        self._peer, self._numbers, self._send = peer, numbers, send
        self._withdraw, self._unclaimed = withdraw, unclaimed
        self._asks: dict[int, _Ask] = {}
        self._why = ""  #: the reason once the session was forgotten

    async def ask(
        self, do: str, arguments: Mapping[str, Any], deadline_s: float, wait_s: float
    ) -> Any:
        """Ask and return the answer, which is awaited ``wait_s``.

        Raises what the peer raised, `HostOutOfReach` where no answer came or the session was
        forgotten, and `ColoctlError` for a request that is too long.
        """
        message = encode_json({"do": do, "with": arguments, "deadline_s": deadline_s})
        if len(message) > MESSAGE_MAX:
            raise ColoctlError(f"The request {do} has {len(message)} bytes, too many for one.")
        number = next(self._numbers)
        ask = self._asks[number] = _Ask(do, asyncio.get_running_loop().create_future())
        self._send(FrameKind.ASK, number, message)
        try:
            async with asyncio.timeout(wait_s):
                answer = await ask.answer
        except (TimeoutError, asyncio.CancelledError) as error:
            self._abandon(number, ask)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise HostOutOfReach(
                f"{do} had no answer from {self._peer} within {wait_s:g} s.", sent=ask.sent
            ) from None
        if self._why:  # forgotten since: what the answer names is of no session
            raise HostOutOfReach(self._why, sent=True)
        return answer

    def _abandon(self, number: int, ask: _Ask) -> None:
        """Take an ask back: undo what was answered, cancel what was sent, withdraw the rest."""
        if ask.answer.done() and not ask.answer.cancelled():
            if ask.answer.exception() is None and not self._why:
                self._unclaimed(ask.do, ask.answer.result())
            return
        ask.answer.cancel()
        if self._why:
            return
        if ask.sent:
            self._send(FrameKind.CANCEL, number, b"")
        else:
            self._withdraw(number)
            del self._asks[number]

    def note_sent(self, number: int) -> None:
        """Note that a piece of an ASK may have left."""
        self._asks[number].sent = True

    def receive(self, number: int, document: Mapping[str, Any]) -> None:
        """Take an ANSWER; raises `FrameError` for one of no request."""
        ask = self._asks.pop(number, None)
        if ask is None or not isinstance(document.get("error", {}), Mapping):
            raise FrameError(f"The answer to a request {number} came out of place or is damaged.")
        if ask.answer.done():
            if "return" in document:
                self._unclaimed(ask.do, document["return"])
        elif "return" in document:
            ask.answer.set_result(document["return"])
        else:
            ask.answer.set_exception(error_from(document.get("error", {})))

    def forget(self, why: str) -> None:
        """Fail all that was asked, because the session is over."""
        self._why = why
        for ask in self._asks.values():
            if not ask.answer.done():
                ask.answer.set_exception(HostOutOfReach(why, sent=ask.sent))


class Served:
    """Requests of the peer in one session; each request is a task."""

    def __init__(self, serve: Serve, send: SendFrame) -> None:
        self._serve, self._send = serve, send
        self._tasks: dict[int, asyncio.Task[bytes]] = {}

    def receive(self, number: int, message: bytes) -> None:
        """Begin to perform an ASK; raises `FrameError` where its number is in use."""
        if number in self._tasks:
            raise FrameError(f"The request {number} came twice.")
        task = self._tasks[number] = asyncio.create_task(self._perform(decode_json(message)))
        task.add_done_callback(functools.partial(self._performed, number))

    def cancel(self, number: int) -> None:
        """Cancel what is performed for a request; its answer is sent all the same."""
        if number in self._tasks:
            self._tasks[number].cancel()

    def forget(self) -> list[asyncio.Task[bytes]]:
        """Cancel all, because the session is over, and return the tasks; none is answered."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        return tasks

    def _performed(self, number: int, task: asyncio.Task[bytes]) -> None:
        """Answer a request, also where its task was cancelled before it began."""
        if self._tasks.get(number) is task:
            del self._tasks[number]
            self._send(FrameKind.ANSWER, number, _CANCELLED if task.cancelled() else task.result())

    async def _perform(self, document: Mapping[str, Any]) -> bytes:
        """Perform a request and return the message of its ANSWER."""
        do = str(document.get("do"))
        try:
            deadline_s, arguments = float(document["deadline_s"]), dict(document["with"])
            message = encode_json({"return": await self._serve(do, arguments, deadline_s)})
            if len(message) > MESSAGE_MAX:
                raise ColoctlError(f"The answer to {do} has {len(message)} bytes, too many.")
            return message
        except ColoctlError as error:
            return encode_json({"error": error_document(error)})
        except Exception as error:
            log.exception("The request %s failed", do)
            failed = ColoctlError(f"{do} failed: {type(error).__name__}: {error}.")
            return encode_json({"error": error_document(failed)})
