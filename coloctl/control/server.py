"""Serve the control socket of one supervisor.

Made by `control.daemon.serve` with the handlers of `control.service`; parses requests with
`control.schema`, sends through `control.connection`.

Invariant: requests of one client are answered in order, and no client waits for another's. An act
that a client asked for goes on when the client leaves. No client can block `ControlServer.emit`, or
make the server keep more than its bounds allow. No client is refused: where there are too many, the
one that is least at work is dropped, so that a verb always gets in.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from coloctl.control import schema, wire
from coloctl.control.commands import ControlCommand, QueryCommands, QuerySchema, QueryVersion
from coloctl.control.connection import Connection
from coloctl.errordocument import error_document
from coloctl.errors import ColoctlError, UsageError
from coloctl.model.pairevent import PairEvent

#: Answers one command: gets a value of its class, returns what `wire.document_of` can encode.
Handler = Callable[[Any], Awaitable[Any]]

log = logging.getLogger(__name__)

CLIENTS_MAX = 64
#: Seconds that requests under way have to end when the supervisor ends.
FINISH_WAIT_S = 2.0
#: Sockets that are served at once: the one that was handed over, and those made since.
_LISTENERS_MAX = 3
_READ_BYTES = 1 << 16
_ACCEPT_PAUSE_S = 0.2


class CommandError(Exception):
    """A request that QMP itself refuses, with QMP's own error class."""

    def __init__(self, error_class: str, sentence: str) -> None:
        super().__init__(sentence)
        self.error_class = error_class


class ControlServer:
    """Serves the control socket on ``listener``, which its owner bound and unlinks.

    ``handlers`` maps commands of a pair to what answers them. The query commands about the server
    itself are answered here.
    """

    def __init__(
        self,
        listener: socket.socket,
        handlers: Mapping[type[ControlCommand], Handler],
        *,
        version: str,
    ) -> None:
        self._listener = listener
        self._version = version
        self._handlers: dict[str, Handler] = {
            QueryCommands.NAME: self._query_commands,
            QuerySchema.NAME: self._query_schema,
            QueryVersion.NAME: self._query_version,
            **{kind.NAME: handler for kind, handler in handlers.items()},
        }
        self._clients: set[Connection] = set()
        self._acts: set[asyncio.Task[Any]] = set()
        self.seq = 0  #: number of the last event that was emitted
        self._count = 0
        self._serving = False
        self._accepting: dict[socket.socket, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._closing = asyncio.Event()
        self._closed = asyncio.Event()

    async def serve(self) -> None:
        """Serve until `aclose`; when it returns, every connection is closed."""
        if self._closing.is_set():
            return
        self._serving = True
        try:
            async with asyncio.TaskGroup() as self._group:
                self.listen_too(self._listener)
                await self._closing.wait()
                for accepting in self._accepting.values():
                    accepting.cancel()
                await self._finish()
        finally:
            for listener in (self._listener, *self._accepting):
                listener.close()
            self._closed.set()

    def listen_too(self, listener: socket.socket) -> None:
        """Serve clients of ``listener`` as well; it is closed with the others. Only while serving.

        Of those that were added the last two stay: the path of an older one was removed.
        """
        assert self._group is not None
        listener.setblocking(False)
        self._accepting[listener] = self._group.create_task(self._accept(self._group, listener))
        while len(self._accepting) > _LISTENERS_MAX:
            older = next(one for one in self._accepting if one is not self._listener)
            self._accepting.pop(older).cancel()
            older.close()

    async def aclose(self) -> None:
        """Accept nothing new, await running requests for `FINISH_WAIT_S`, close every connection.

        Not for use inside a handler: its own answer is among what this waits for.
        """
        self._closing.set()
        if self._serving:
            await self._closed.wait()
        self._listener.close()

    def emit(self, event: PairEvent) -> None:
        """Queue an event for every client; never blocks, and never fails because of a client.

        Each event has a number, also one that no client receives, so that a gap means a loss.
        """
        self.seq += 1
        try:
            message = wire.encode({**wire.event_document(event), "seq": self.seq})
        except (TypeError, ValueError) as error:
            log.error("The event %s cannot be written as JSON: %s", event.NAME, error)
            return
        for client in self._clients:
            if client.negotiated:
                client.send(message)

    async def _accept(self, group: asyncio.TaskGroup, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of file descriptors or memory: clients that leave will free some.
                log.error("The control socket cannot accept a client: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            self._make_room()
            self._count += 1
            client = Connection(self._count, *await asyncio.open_unix_connection(sock=connection))
            self._clients.add(client)
            group.create_task(self._converse(client, group))

    def _make_room(self) -> None:
        """Drop the client that is least at work when there is no room for one more.

        First one that never greeted, then one that waits for nothing but events, then one whose
        request is under way (an act goes on without it); of equal ones the oldest.
        """
        staying = [client for client in self._clients if not client.leaving]
        if len(staying) >= CLIENTS_MAX:
            least = min(staying, key=lambda one: (one.negotiated, one.asking, one.number))
            least.drop(f"There are {CLIENTS_MAX} clients, and another one came.")

    async def _converse(self, client: Connection, group: asyncio.TaskGroup) -> None:
        """Serve one connection from its greeting to its end; acts of ``group`` outlive it."""
        version = {"version": _version(self._version), "capabilities": []}
        client.send(wire.encode({"QMP": version}))
        try:
            async with asyncio.TaskGroup() as pair:
                reading = pair.create_task(self._read(client, group))
                await client.write_out()
                reading.cancel()
        finally:
            self._clients.discard(client)

    async def _read(self, client: Connection, group: asyncio.TaskGroup) -> None:
        """Answer the client's requests one after the other, until it has no more."""
        splitter = wire.Splitter()
        try:
            while data := await client.reader.read(_READ_BYTES):
                try:
                    for raw in splitter.feed(data):
                        client.asking = True
                        client.send(await self._respond(client, group, raw))
                        client.asking = False
                        await asyncio.sleep(0)  # many at once must not keep other clients waiting
                except wire.MessageTooLong as error:
                    client.drop(str(error))
                    return
                except wire.WireError as error:
                    client.send(wire.encode(_error("GenericError", str(error))))
        except ConnectionError as error:
            log.debug("Control client %d is gone: %s", client.number, error)
        finally:
            client.end()

    async def _respond(self, client: Connection, group: asyncio.TaskGroup, raw: bytes) -> bytes:
        """Perform one request; return the encoded response."""
        identity: dict[str, Any] = {}
        try:
            request = wire.decode(raw)
            if "id" in request:
                identity = {"id": request["id"]}
            answer = await self._perform(client, group, request)
            return wire.encode({"return": answer, **identity})
        except (CommandError, wire.WireError) as error:
            kind = getattr(error, "error_class", "GenericError")
            return wire.encode({**_error(kind, str(error)), **identity})
        except ColoctlError as error:
            return wire.encode({"error": error_document(error), **identity})
        except Exception as error:
            log.exception("A control request failed")
            return wire.encode({"error": error_document(_internal(error)), **identity})

    async def _perform(
        self, client: Connection, group: asyncio.TaskGroup, request: Mapping[str, Any]
    ) -> Any:
        name, arguments = _parsed(request)
        if name == "qmp_capabilities":
            return _negotiate(client, arguments)
        if not client.negotiated:
            raise CommandError("CommandNotFound", "Send qmp_capabilities before other commands.")
        if name not in self._handlers:
            raise CommandError("CommandNotFound", f"The command {name} does not exist.")
        asked = schema.parse(name, arguments)
        if self._closing.is_set():
            raise UsageError("The supervisor is ending and takes no more requests.")
        act = group.create_task(_outcome(self._handlers[name](asked)))
        self._acts.add(act)
        act.add_done_callback(self._acts.discard)
        try:
            result, error = await asyncio.shield(act)
        except asyncio.CancelledError:
            ending = self._closing.is_set() or _being_cancelled()
            if ending or not act.cancelled():
                raise
            raise ColoctlError(
                f"{name} was interrupted by another request or the end of a QEMU, and is undone.",
                hint="query-pair shows the pair as it is now",
            ) from None
        if error is not None:
            raise error
        return wire.document_of(result)

    async def _finish(self) -> None:
        """Wait for requests under way, or cut them off; clients then see the end of the stream."""
        for client in self._clients:
            client.reader.feed_eof()
        if self._acts:
            _, cut_off = await asyncio.wait(self._acts, timeout=FINISH_WAIT_S)
            for act in cut_off:
                log.warning("A control request was cut off by the end of the supervisor.")
                act.cancel()

    async def _query_commands(self, asked: QueryCommands) -> Any:
        return [{"name": name} for name in ("qmp_capabilities", *sorted(self._handlers))]

    async def _query_schema(self, asked: QuerySchema) -> Any:
        return schema.document()

    async def _query_version(self, asked: QueryVersion) -> Any:
        return _version(self._version)


async def _outcome(answer: Awaitable[Any]) -> tuple[Any, Exception | None]:
    """Await ``answer`` and return its result or error: a failed request must not end the server."""
    try:
        return await answer, None
    except Exception as error:
        return None, error


def _being_cancelled() -> bool:
    """Return whether the current task itself was asked to end, not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _parsed(request: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return command name and arguments of ``request``; raises `CommandError`."""
    if strange := set(request) - {"execute", "arguments", "id"}:
        raise CommandError("GenericError", f"A request has no member {min(strange)}.")
    name, arguments = request.get("execute"), request.get("arguments", {})
    if not isinstance(name, str):
        raise CommandError("GenericError", "A request needs execute, the name of a command.")
    if not isinstance(arguments, dict):
        raise CommandError("GenericError", "The arguments of a request must be an object.")
    return name, arguments


def _negotiate(client: Connection, arguments: Mapping[str, Any]) -> dict[str, Any]:
    if client.negotiated:
        raise CommandError("CommandNotFound", "Capabilities are already negotiated.")
    if arguments.get("enable"):
        raise CommandError("GenericError", "This server offers no capabilities to enable.")
    client.negotiated = True
    return {}


def _internal(error: Exception) -> ColoctlError:
    return ColoctlError(
        f"The supervisor made a mistake: {type(error).__name__}: {error}",
        hint="its log has the details; please report them",
    )


def _version(version: str) -> dict[str, Any]:
    """Return coloctl's version in the shape of QEMU's, which clients of QMP take apart."""
    major, minor, micro = (int(part) for part in re.findall(r"\d+", version + ".0.0")[:3])
    return {
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": f"coloctl {version}",
    }


def _error(error_class: str, sentence: str) -> dict[str, Any]:
    return {"error": {"class": error_class, "desc": sentence}}
