"""Serve one session over any number of connections: the agent outlives the ssh that started it.

Called by `host.agent.main` for a client that names its pair. Without a connection the agent beats
the link and holds processes as before; what its client has not acknowledged is sent again on the
next connection. That comes from another agent: `host.agent.place` passes it over the socket.

Rules: a client resumes the session by its name and the secret that it gave at the beginning, and
only where no frame is lost. Any newcomer may have the agent end. It ends by itself after a BYE,
when no connection came for ``linger_s``, when its socket file is gone, and when its session was
forgotten. Example: ssh breaks for 5 s; the monitors of the QEMUs stay open, and no request is
performed twice.

Invariant: one connection is carried at a time, and the HELLO of the next one counts all frames that
the one before has brought.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coloctl.bounded import bound_all
from coloctl.clock import Deadline
from coloctl.errors import ColoctlError
from coloctl.host.agent import stdio
from coloctl.host.agent.place import LINE_MAX, AgentPlace
from coloctl.host.agent.session import AgentSession
from coloctl.host.ready import until_readable
from coloctl.tasks import first_of

log = logging.getLogger(__name__)

#: How long another agent may take for its request.
REQUEST_WAIT_S = 1.0
#: How often an agent without a connection looks for its socket file.
LOOK_S = 1.0

_UCRED = struct.Struct("3i")  # pid, uid, gid (unix(7))

#: Sends our HELLO with these members over a connection; raises OSError.
SendHello = Callable[[asyncio.StreamWriter, Mapping[str, Any]], Awaitable[None]]


@dataclass
class _Newcomer:
    """A connection on which the session goes on, and the agent that has passed it on."""

    connection: stdio.ClientConnection
    received: int
    agent: socket.socket

    def close(self) -> None:
        self.connection.close()
        self.agent.close()


class StayingAgent:
    """The agent that stays for one session."""

    def __init__(
        self, session: AgentSession, place: AgentPlace, listener: socket.socket, secret: str
    ) -> None:
        """Answer at ``listener``, which is taken over, from now on."""
        self._mux, self._place, self._secret = session.mux, place, secret
        self._listener, self._status = listener, place.socket.stat()
        self._newcomer: _Newcomer | None = None
        self._last: tuple[stdio.ClientConnection | _Newcomer | None, ...] = ()
        self._yielding: list[socket.socket] = []  #: the agents that wait for the end of this one
        self._called = asyncio.Event()  #: one of both has come
        listener.setblocking(False)
        self._answering = asyncio.create_task(self._answer())

    async def serve(
        self, connection: stdio.ClientConnection, send_hello: SendHello, linger_s: float
    ) -> None:
        """Serve the first connection and all that follow, until the session is over."""
        newcomer: _Newcomer | None = None
        confirmed = 0
        try:
            while await self._carry(connection, confirmed):
                connection.close()
                if newcomer is not None:
                    newcomer.close()
                bound_all([self._place.log])
                newcomer = await self._next(linger_s)
                if newcomer is None:
                    return
                connection, confirmed = newcomer.connection, newcomer.received
                hello = {"session": self._mux.session, "received": self._mux.received}
                with contextlib.suppress(OSError):  # it broke already, and the next one may come
                    await send_hello(connection.writer, {"resumed": True, **hello})
        finally:
            self._last = connection, newcomer

    async def aclose(self) -> None:
        """Leave the place, once the session holds nothing any more; then the connection ends."""
        self._answering.cancel()
        await asyncio.gather(self._answering, return_exceptions=True)
        self._listener.close()
        if self._place.stands(self._status):
            self._place.socket.unlink(missing_ok=True)
            self._place.leave()
        for waiting in self._yielding:
            with waiting, contextlib.suppress(OSError):
                waiting.send(_line(ok=True))
        for last in (*self._last, self._newcomer):
            if last is not None:
                last.close()

    async def _carry(self, connection: stdio.ClientConnection, confirmed: int) -> bool:
        """Carry a connection until it ends or another one comes; False: the session is over."""
        carried = self._mux.carry(connection.reader, connection.writer, confirmed)
        async with first_of(carried, self._called.wait()):
            pass
        return self._mux.farewell is None and bool(self._mux.session)

    async def _next(self, linger_s: float) -> _Newcomer | None:
        """Wait for the next connection; None: the agent is to end."""
        deadline = Deadline(linger_s)
        while not self._yielding and not deadline.expired and self._place.stands(self._status):
            if (found := self._newcomer) is not None:
                self._newcomer = None
                self._called.clear()
                return found
            async with first_of(self._called.wait(), within_s=deadline.at_most(LOOK_S)):
                pass
        return None

    async def _answer(self) -> None:
        """Answer other agents until cancelled."""
        while True:
            other, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            try:
                async with asyncio.timeout(REQUEST_WAIT_S):
                    granted = await self._handle(other)
                if not granted:
                    other.send(_line(ok=False))
                    other.close()
            except (OSError, TimeoutError, ValueError, ColoctlError) as error:
                log.error("Another agent asked in vain: %s.", error)
                other.close()

    async def _handle(self, other: socket.socket) -> bool:
        """Handle one request; returns whether it is granted. Raises OSError and ValueError."""
        other.setblocking(False)
        await until_readable(other.fileno())
        line, passed, _, _ = socket.recv_fds(other, LINE_MAX, 2, socket.MSG_CMSG_CLOEXEC)
        with contextlib.ExitStack() as unused:
            for one in passed:
                unused.callback(os.close, one)
            request = json.loads(line)
            if not isinstance(request, dict) or _user(other) != os.geteuid():
                return False
            if request.get("do") == "yield":
                self._yielding.append(other)
            elif request.get("do") == "resume" and len(passed) == 2 and self._fits(request):
                unused.pop_all()
                connection = await stdio.connect(*passed)
                other.send(_line(ok=True))
                if self._newcomer is not None:
                    self._newcomer.close()
                self._newcomer = _Newcomer(connection, int(request["received"]), other)
            else:
                return False
            self._called.set()
            return True

    def _fits(self, request: Mapping[str, Any]) -> bool:
        """Return whether that client began this session, and can go on with it."""
        secret, session, received = (request.get(key) for key in ("secret", "session", "received"))
        return (
            isinstance(secret, str)
            and bool(self._secret)
            and hmac.compare_digest(secret.encode(), self._secret.encode())
            and bool(session)
            and session == self._mux.session
            and isinstance(received, int)
            and self._mux.resumable(received)
        )


def detach(log_file: Path) -> None:
    """Leave the session of the login and its output; raises OSError.

    The end of that session sends SIGHUP. A handler stands for it, and not "ignored", which the
    programs that are launched would inherit.
    """
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: None)
    with contextlib.suppress(PermissionError):  # it leads a session already, as under ssh's server
        os.setsid()
    how = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    log_descriptor = os.open(log_file, how, 0o600)
    try:
        os.dup2(log_descriptor, 1)
        os.dup2(log_descriptor, 2)
    finally:
        os.close(log_descriptor)


def _line(*, ok: bool) -> bytes:
    return json.dumps({"ok": ok}).encode() + b"\n"


def _user(other: socket.socket) -> int:
    data = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(data)[1])
