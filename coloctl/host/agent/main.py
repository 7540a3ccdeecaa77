"""Run the agent: greet the client on standard output, exchange HELLOs, and serve one session.

Started on the machine of a node over ssh, or by `cli.verbs.agent`; calls `host.agent.session` to
serve, and `urgency` to beat in time; `host.local` makes the host that it serves.

The first line is ``COLOCTL-AGENT PROTOCOL VERSION``; frames of `host.wire.frames` follow. The HELLO
of the client has {proto, version, client, pair, session, secret, received, beat_ms, linger_s}; that
of the agent has {proto, version, machine, session, resumed, received}, or {proto, version, error}.
With ``pair`` the agent stays, by `host.agent.place` and `host.agent.stay`.

Invariant: the standard library is enough, and nothing but frames follows the first line.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import coloctl
from coloctl import __version__
from coloctl.errordocument import error_document
from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.host.agent import stdio
from coloctl.host.agent.place import AgentPlace
from coloctl.host.agent.session import AgentSession
from coloctl.host.agent.stay import StayingAgent, detach
from coloctl.host.blocking import keep_ready
from coloctl.host.local import LocalHost
from coloctl.host.records import Machine
from coloctl.host.wire.codec import encode
from coloctl.host.wire.frames import PROTOCOL, FrameError, receive_hello, send_hello
from coloctl.urgency import has_started, hurry

log = logging.getLogger(__name__)

#: How the first line begins.
GREETING = "COLOCTL-AGENT"
#: How long a client may take for its HELLO: a round trip of 2 s is served.
HELLO_WAIT_S = 30.0
#: An agent stays no longer than this without a connection, seconds.
LINGER_MAX_S = 86400.0
#: The rhythm of a client that names none, milliseconds.
BEAT_MS = 20


def main() -> int:
    """Serve the client at standard input and output until it is gone; returns the exit code."""
    logging.basicConfig(stream=sys.stderr, format="coloctl agent: %(message)s")
    try:
        asyncio.run(_serve_standard())
    except ColoctlError as error:
        log.error("%s", error.message)
        return error.exit_code
    return 0


async def _serve_standard() -> None:
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    connection = await stdio.connect(*stdio.take_standard())
    try:
        await serve(connection)
    except asyncio.CancelledError:  # a signal: what is half-done has been undone
        return
    finally:
        connection.close()


async def serve(connection: stdio.ClientConnection) -> None:
    """Serve one connection to its end; raises `PreconditionFailed` for what is no client."""
    connection.writer.write(f"{GREETING} {PROTOCOL} {__version__}\n".encode())
    hello = await _hello_of_client(connection.reader)
    host = LocalHost()
    try:
        try:
            _require_equal(hello)
            described = {"machine": encode(_described(host.machine))}
            if not hello.get("pair"):
                await _serve_once(connection, hello, host, described)
            else:
                await _serve_pair(connection, hello, host, described)
        except ColoctlError as error:
            await _send(connection.writer, {"error": error_document(error)})
        except OSError:
            return  # the client hung up
    finally:
        await host.aclose()


async def _serve_once(
    connection: stdio.ClientConnection,
    hello: Mapping[str, Any],
    host: LocalHost,
    described: Mapping[str, Any],
) -> None:
    """Serve a client for as long as its connection lasts; raises OSError."""
    session = AgentSession(host, _beat_ms(hello))
    try:
        await _send(connection.writer, {**described, **_begun(session)})
        await session.mux.carry(connection.reader, connection.writer)
    finally:
        await session.aclose()


async def _serve_pair(
    connection: stdio.ClientConnection,
    hello: Mapping[str, Any],
    host: LocalHost,
    described: Mapping[str, Any],
) -> None:
    """Serve the client of a pair over any number of connections.

    Raises OSError and `PreconditionFailed`, and `FencingFailed` where an earlier agent does not
    die.
    """
    place = AgentPlace(host.machine.state_dir, str(hello["pair"]), str(hello.get("client")))
    listener = await place.take(hello, connection)
    if listener is None:
        return
    detach(place.log)
    hurry()
    has_started()
    keep_ready()
    session = AgentSession(host, _beat_ms(hello))
    staying = StayingAgent(session, place, listener, str(hello.get("secret") or ""))

    async def send_hello(writer: asyncio.StreamWriter, more: Mapping[str, Any]) -> None:
        await _send(writer, {**described, **more})

    try:
        await send_hello(connection.writer, _begun(session))
        await staying.serve(connection, send_hello, _linger_s(hello))
    finally:
        await session.aclose()
        await staying.aclose()


def _begun(session: AgentSession) -> dict[str, Any]:
    """Name the session, and return its members of HELLO."""
    session.mux.session = secrets.token_hex(16)
    return {"session": session.mux.session, "resumed": False, "received": 0}


def _described(machine: Machine) -> Machine:
    """Describe this machine; an agent that runs from its zip is not an installed coloctl."""
    archive = Path(coloctl.__file__).parents[1]
    if not archive.is_file():
        return machine
    python = ("env", f"PYTHONPATH={archive}", *machine.programs)
    return replace(machine, programs=python, installed="")


async def _hello_of_client(reader: asyncio.StreamReader) -> dict[str, Any]:
    try:
        return await receive_hello(reader, HELLO_WAIT_S)
    except TimeoutError:
        raise PreconditionFailed(f"No client sent anything for {HELLO_WAIT_S:g} s.") from None
    except (EOFError, OSError):
        raise PreconditionFailed("The client hung up before it sent anything.") from None
    except FrameError as error:
        raise PreconditionFailed(f"No coloctl is at the other end. {error}") from None


def _require_equal(hello: Mapping[str, Any]) -> None:
    """Refuse a client of another protocol or version; raises `PreconditionFailed`."""
    theirs = hello.get("proto"), hello.get("version")
    if theirs != (PROTOCOL, __version__):
        raise PreconditionFailed(
            f"The agent is coloctl {__version__} with protocol {PROTOCOL}; its client is coloctl "
            f"{theirs[1]} with protocol {theirs[0]}.",
            hint="install the same version of coloctl on both machines",
        )


def _beat_ms(hello: Mapping[str, Any]) -> int:
    wanted = hello.get("beat_ms")
    return wanted if isinstance(wanted, int) and 5 <= wanted <= 1000 else BEAT_MS


def _linger_s(hello: Mapping[str, Any]) -> float:
    wanted = hello.get("linger_s")
    return min(float(wanted), LINGER_MAX_S) if isinstance(wanted, int | float) else 0.0


async def _send(writer: asyncio.StreamWriter, document: Mapping[str, Any]) -> None:
    await send_hello(writer, {"proto": PROTOCOL, "version": __version__, **document})


if __name__ == "__main__":
    sys.exit(main())
