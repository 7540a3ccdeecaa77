"""Find the agent that stays on this machine for one client of one pair, and take its place.

Called by `host.agent.main` on a new connection; `host.agent.stay` answers in the other agent, which
listens in the pair's folder. A later agent passes its connection on, where that resumes the
session, and has the other one end otherwise. A request is one line of JSON, and so is its answer,
the same in all versions: ``{"do": "resume", "session", "secret", "received"}`` with two
descriptors, ``{"do": "yield"}``, and ``{"ok": true}``.

Invariant: at most one agent listens. The one that takes the place holds the lock from its first
request until it listens itself. An agent that does not answer is killed first, with a proof.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coloctl import flocks, paths
from coloctl.errors import PreconditionFailed, Unreachable
from coloctl.host.adopting import adopt
from coloctl.host.agent.stdio import ClientConnection
from coloctl.host.holders import holders
from coloctl.host.listen import connect_unix, listening

#: How long an agent that stays may take to answer, and to release all that it holds.
ANSWER_WAIT_S = 2.0
YIELD_WAIT_S = 5.0
#: How long one that does not answer may take to die.
KILL_WAIT_S = 10.0
#: How long another agent that takes the place at the same moment is waited for.
LOCK_WAIT_S = 30.0
#: The longest request or answer, bytes.
LINE_MAX = 4096

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class AgentPlace:
    """The socket of the agent that stays for ``client`` of ``pair``, in this network namespace.

    Two namespaces of one machine share its files, and each may have an agent of its own.
    """

    def __init__(self, folder: Path, pair: str, client: str) -> None:
        """Name the place below the state folder; raises `PreconditionFailed` for strange names."""
        if not (_NAME.fullmatch(pair) and _NAME.fullmatch(client)):
            raise PreconditionFailed(f"No agent can stay for {client!r} of pair {pair!r}.")
        namespace = Path("/proc/self/ns/net").stat().st_ino
        self.folder = folder / pair
        self.socket = self.folder / f"agent-{client}-{namespace}.sock"
        self.log = self.socket.with_suffix(".log")
        self._lock = self.socket.with_suffix(".lock")

    async def take(
        self, hello: Mapping[str, Any], connection: ClientConnection
    ) -> socket.socket | None:
        """Take the place and return the socket that listens there; None: the session was resumed.

        Then the agent that stays serves the connection, and this returns when that is over. Raises
        `PreconditionFailed`, and `FencingFailed` where an agent does not answer and does not die.
        """
        with await asyncio.to_thread(self._locked):
            resumed = await self._resume(hello, connection) if hello.get("session") else None
            if resumed is None:
                await self._clear()
                return listening(self.socket)
        with resumed, contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_recv(resumed, 1)
        return None

    def leave(self) -> None:
        """Remove the files of an agent that ends, but a log with something in it.

        The folder goes too where nothing else is in it.
        """
        with contextlib.suppress(PreconditionFailed, OSError), self._locked(within_s=0.0):
            self.socket.unlink(missing_ok=True)
            if self.log.stat().st_size == 0:
                self.log.unlink()
            self._lock.unlink()
            self.folder.rmdir()

    def stands(self, listener: os.stat_result) -> bool:
        """Return whether the socket file is still there that was made with that status."""
        with contextlib.suppress(OSError):
            status = self.socket.stat()
            # A filesystem gives the number of a file that is gone to the next one.
            return (status.st_ino, status.st_mtime_ns) == (listener.st_ino, listener.st_mtime_ns)
        return False

    def _locked(self, within_s: float = LOCK_WAIT_S) -> _Lock:
        """Hold the lock file; blocks. Raises `PreconditionFailed` and OSError."""
        how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            paths.make_private(self.folder)
            lock = _Lock(os.open(self._lock, how, 0o600))
            if not flocks.acquire(lock.fd, within_s):
                lock.close()
                raise PreconditionFailed(
                    f"Another process has held {self._lock} for {within_s:g} s.",
                    hint=f"find it with `fuser {self._lock}`",
                )
            with contextlib.suppress(OSError):
                if os.fstat(lock.fd).st_ino == self._lock.stat().st_ino:
                    return lock
            lock.close()  # it was removed in between

    async def _resume(
        self, hello: Mapping[str, Any], connection: ClientConnection
    ) -> socket.socket | None:
        """Have the agent that stays serve the connection; None: it does not."""
        request = {key: hello.get(key) for key in ("session", "secret", "received")}
        passed = connection.pause()
        try:
            found = await self._asked({"do": "resume", **request}, passed, ANSWER_WAIT_S)
        except TimeoutError:
            found = None
        if found is None:
            connection.resume()
        return found

    async def _clear(self) -> None:
        """Have the agent that stays end; one that does not answer is killed.

        What it has launched runs on. Raises `FencingFailed` and `PreconditionFailed`.
        """
        try:
            found = await self._asked({"do": "yield"}, (), YIELD_WAIT_S)
        except TimeoutError:
            for stray in holders([self.socket]).get(self.socket, ()):
                # This process alone: all that it has launched is its child.
                if (held := adopt(stray.identity, node="the agent")) is not None:
                    await held.kill(KILL_WAIT_S)
            return
        if found is not None:
            found.close()

    async def _asked(
        self, request: Mapping[str, Any], passed: Sequence[int], within_s: float
    ) -> socket.socket | None:
        """Send a request and return the connection where it is granted, else None.

        Raises TimeoutError where no answer comes.
        """
        try:
            other = await connect_unix(self.socket, within_s)
        except Unreachable:
            return None
        try:
            async with asyncio.timeout(within_s):
                socket.send_fds(other, [json.dumps(request).encode() + b"\n"], passed)
                answer = await asyncio.get_running_loop().sock_recv(other, LINE_MAX)
            if json.loads(answer).get("ok") is True:
                return other
        except (TimeoutError, asyncio.CancelledError):
            other.close()
            raise
        except (OSError, ValueError, AttributeError):
            pass
        other.close()
        return None


class _Lock:
    """A lock file that is held until it is closed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> None:
        return

    def __exit__(self, *exc_info: object) -> None:
        self.close()
