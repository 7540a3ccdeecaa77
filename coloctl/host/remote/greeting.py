"""Exchange the first lines and the HELLOs with the other machine, until its agent serves.

Called by `host.remote.contact` on a new connection; `host.remote.loader` or `host.agent.main`
answers. Invariant: an answer that is not an agent of this version is one sentence that names the
machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coloctl import __version__
from coloctl.errordocument import error_from
from coloctl.errors import HostOutOfReach
from coloctl.host.records import Machine
from coloctl.host.remote.loader import LOADER_VERSION
from coloctl.host.remote.parcel import parcel
from coloctl.host.wire.frames import PROTOCOL, receive_hello, send_hello
from coloctl.model.revive import revive_as

#: How long an agent may take for its HELLO; its client has a deadline of its own.
_HELLO_WAIT_S = 60.0

#: Login shells may print a message of the day first; of more than this, the rest is no greeting.
SKIPPED_MAX = 4096

_SAME = "install the same version of coloctl on both machines, or remove it there"


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
    """Wait for the agent's greeting, and send the agent first where it is wanted.

    Raises `HostOutOfReach`, and EOFError or OSError where the connection ends before.
    """
    word, rest = await _answer(reader, name)
    if word == "LOADER":
        version, _, _ = rest.partition(" ")
        if version != str(LOADER_VERSION):
            raise HostOutOfReach(f"The loader on {name} has version {version}.", hint=_SAME)
        packed = parcel()
        writer.write(f"{packed.digest} {len(packed.content)}\n".encode())
        word, rest = await _answer(reader, name)
        if word == "WANT":
            writer.write(packed.content)
        elif word != "HAVE":
            raise _refusal(word, rest, name)
        word, rest = await _answer(reader, name)
    if word != "AGENT":
        raise _refusal(word, rest, name)
    protocol, _, version = rest.partition(" ")
    if (protocol, version) != (str(PROTOCOL), __version__):
        raise HostOutOfReach(
            f"The agent on {name} is coloctl {version} with protocol {protocol}, and this is"
            f" {__version__} with {PROTOCOL}.",
            hint=_SAME,
        )


async def _answer(reader: asyncio.StreamReader, name: str) -> tuple[str, str]:
    """Read the next line of the dialogue, after other output; raises `HostOutOfReach`, EOFError."""
    skipped = 0
    last = ""
    while True:
        try:
            line = (await reader.readuntil(b"\n")).decode(errors="replace").strip()
        except asyncio.LimitOverrunError:
            raise _stray(name, last or "a line without an end") from None
        except asyncio.IncompleteReadError as error:
            last = error.partial.decode(errors="replace").strip() or last
            if last:
                raise _stray(name, last) from None
            raise EOFError from None
        before, found, after = line.partition("COLOCTL-")
        # The last line of other output may have no end of its own.
        if found and (not before or len(before) < SKIPPED_MAX):
            word, _, rest = after.partition(" ")
            return word, rest.strip()
        last, skipped = line or last, skipped + len(line) + 1
        if skipped > SKIPPED_MAX:
            raise _stray(name, last)


def _stray(name: str, line: str) -> HostOutOfReach:
    return HostOutOfReach(
        f'No agent answers on {name}, but "{line[:200]}".',
        hint="look at the login shell and at the forced command of this key there",
    )


def _refusal(word: str, rest: str, name: str) -> HostOutOfReach:
    """Make the error for an answer that ends the dialogue."""
    if word == "PYTHON":
        return HostOutOfReach(
            f"{name} has Python {rest}, and coloctl needs 3.11.",
            hint="install python3.11 or newer there; it may stand beside the other one",
        )
    if word == "NOPYTHON":
        return HostOutOfReach(
            f"{name} has no Python on the PATH of its login shell.",
            hint="install python3 (3.11 or newer) there",
        )
    if word == "NOROOM":
        return HostOutOfReach(
            f"{name} cannot keep the agent: {rest}.",
            hint="free some space there, or set COLOCTL_CACHE_DIR for that login",
        )
    return HostOutOfReach(f'No agent answers on {name}, but "{word} {rest}".', hint=_SAME)


@dataclass(frozen=True)
class AgentHello:
    """The HELLO of an agent; ``received`` counts the frames of a session that it ``resumed``."""

    machine: Machine
    session: str
    resumed: bool
    received: int


async def exchange_hello(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    name: str,
    document: Mapping[str, Any],
) -> AgentHello:
    """Send ``document`` as our HELLO, and return the agent's.

    Raises `HostOutOfReach` where the agent refuses or sends nonsense, and what `receive_hello`
    raises.
    """
    await send_hello(writer, {"proto": PROTOCOL, "version": __version__, **document})
    hello = await receive_hello(reader, _HELLO_WAIT_S)
    if "error" in hello:
        error = error_from(hello["error"])
        raise HostOutOfReach(f"{name}: {error.message}", hint=error.hint)
    try:
        return AgentHello(
            revive_as(Machine, hello["machine"], "machine"),
            str(hello["session"]),
            bool(hello["resumed"]),
            int(hello["received"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise HostOutOfReach(f"{name} sent a damaged HELLO: {error}.") from None
