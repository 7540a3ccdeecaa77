"""Hold one session of an agent with its client: the host, what is held, the beat and the relays.

Made by `host.agent.main`; performs the operations of `host.agent.work` and calls `host.wire.mux` to
carry them. Invariant: a request is answered exactly once, with the operation's result or with
one sentence; an error in the agent's own code ends that request alone.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.host.agent.beat import Beat
from coloctl.host.agent.holds import Holds
from coloctl.host.agent.relays import Relays
from coloctl.host.agent.work import OPERATIONS, Work
from coloctl.host.beacon import DatagramBeacon
from coloctl.host.local import LocalHost
from coloctl.host.program import Program
from coloctl.host.wire.codec import decode_arguments, encode
from coloctl.host.wire.mux import Mux

log = logging.getLogger(__name__)


class AgentSession(Work):
    """One client and all that it has made here."""

    def __init__(self, host: LocalHost, beat_ms: int) -> None:
        """Begin the session; nothing is sent before a connection is carried."""
        self.host = host
        self.holds = Holds()
        self.beat = Beat(beat_ms, self._send_beat)
        self.mux = Mux(self._serve, self._pushed, odd=False, beaten=self.beat.note)
        self.relays = Relays(self.mux, self.holds.descriptor)
        self._beating = asyncio.create_task(self.beat.run())

    async def aclose(self) -> None:
        """End the session: its requests are cancelled, what it holds is released.

        Programs that it launched run on. Those of `run` and `converse` are killed.
        """
        await self.mux.aclose()
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)
        await self.relays.aclose()
        await self.holds.aclose()

    async def _serve(self, do: str, arguments: Mapping[str, Any], deadline_s: float) -> Any:
        """Perform one operation; raises `ColoctlError` alone."""
        operation = OPERATIONS.get(do)
        if operation is None:
            raise PreconditionFailed(f"This agent has no operation {do!r}.")
        try:
            wanted = decode_arguments(operation, arguments)
        except ValueError as error:
            raise PreconditionFailed(f"The agent cannot perform {do}: {error}.") from None
        try:
            return encode(await operation(self, **wanted))
        except ColoctlError:
            raise
        except Exception as error:
            log.exception("%s failed.", do)
            raise ColoctlError(f"The agent failed at {do}: {error!r}.") from None

    def _pushed(self, of: str, document: Mapping[str, Any]) -> None:
        """Handle what the client pushes; what does not fit is logged and ignored."""
        try:
            self._handle(of, document)
        except PreconditionFailed:
            return  # released in between
        except Exception:
            log.exception("The client pushed %r, which cannot be handled.", of)

    def _handle(self, of: str, document: Mapping[str, Any]) -> None:
        hold = int(document["hold"])
        if of == "release":
            self.beat.drop(hold)
            self.holds.release(hold)
        elif of == "watch":
            console, threads = document["console"], document["threads"]
            self.holds.find(hold, Program).watch(
                threads=None if threads is None else tuple(map(int, threads)),
                console=None if console is None else Path(console),
            )
        elif of == "meet":
            session = base64.b64decode(document["session"], validate=True)
            self.holds.find(hold, DatagramBeacon).meet(session)
        else:
            raise ValueError(of)

    def _send_beat(self, document: Mapping[str, Any]) -> None:
        self.mux.beat(document)
