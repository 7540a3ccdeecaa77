"""Connect to a supervisor's control socket, execute commands and receive events.

Used by `control.acts` for every verb, opened by `cli.reach`, `api.pair`, `control.daemon.spawn` and
`chaos.evidence.listener`; encodes with `control.wire`. Synchronous, standard library only, quick to
import.

Invariant: an answer belongs to the request with its id; events between them are kept or passed on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from coloctl.control import wire
from coloctl.errordocument import error_from
from coloctl.errors import (
    ColoctlError,
    DeadlineMissed,
    NoSuchPair,
    OutcomeUnknown,
    PreconditionFailed,
    StillAtWork,
    Unreachable,
)

if TYPE_CHECKING:
    from coloctl.model.pairevent import PairEvent

#: Events kept for `ControlClient.events` while no caller asks for them; the oldest are dropped.
EVENTS_MAX = 10_000
_READ_BYTES = 1 << 16


class ControlEvent(NamedTuple):
    """An event of the supervisor."""

    name: str
    data: dict[str, Any]
    at_s: float  #: seconds since the epoch, by the supervisor's clock
    seq: int = 0  #: grows by one per event of one supervisor; 0: it belongs to this client alone

    @property
    def happened(self) -> PairEvent | None:
        """The event as a value; None for one that this version does not understand."""
        from coloctl.model import pairevent  # not cheap, and many verbs look at no event

        return pairevent.read(self.name, self.data)


OnEvent = Callable[[ControlEvent], None]


class ControlClient:
    """One connection to a supervisor; close it, or use it with ``with``.

    ``on_event`` is called for events that arrive while `execute` waits; without it they are kept
    for `events`.
    """

    def __init__(
        self,
        connection: socket.socket,
        pair: str,
        on_event: OnEvent | None = None,
    ) -> None:
        self.pair = pair
        self.version = ""
        self.events_lost = 0
        self.on_event = on_event
        self._connection = connection
        self._path = Path(pair)
        self._buffer = bytearray()
        self._events: deque[ControlEvent] = deque()
        self._requests = 0
        #: Names of events that give what is being executed its whole time once more.
        self.renewed_by: frozenset[str] = frozenset()

    @classmethod
    def connect(
        cls,
        path: Path,
        timeout_s: float,
        on_event: OnEvent | None = None,
    ) -> Self:
        """Connect to the supervisor at ``path``; the client is ready to execute.

        Raises `NoSuchPair` where there is no socket, `Unreachable` where no process serves it,
        `DeadlineMissed` after ``timeout_s``.
        """
        pair = path.parent.name
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            _connect(connection, path, pair)
            client = cls(connection, pair, on_event)
            client._path = path
            client._negotiate(timeout_s)
        except BaseException:
            connection.close()
            raise
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; an act that was asked for goes on."""
        self._connection.close()

    def hang_up(self) -> None:
        """Shut the connection, so that another thread that waits for an answer stops waiting."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def execute(self, name: str, timeout_s: float, /, **arguments: Any) -> Any:
        """Execute a command and return its answer. An argument that is None is left out.

        Argument names are sent with dashes, which supervisors of every version understand.

        Raises the supervisor's own `ColoctlError`; `StillAtWork` after ``timeout_s``, when the
        act may still go on; `OutcomeUnknown` when the supervisor went away before it answered.
        `DeadlineMissed` when it does not read the command, `Unreachable` when it is gone already or
        its answer is not QMP.
        """
        given = {k.replace("_", "-"): v for k, v in arguments.items() if v is not None}
        self._requests += 1
        number = self._requests
        request: dict[str, Any] = {"execute": name, "id": number}
        if given:
            request["arguments"] = given
        deadline = time.monotonic() + timeout_s
        self._send(request, name, timeout_s)
        while True:
            answer = self._next(deadline)
            if answer is None:
                raise StillAtWork(
                    f"The supervisor of {self.pair} did not answer {name} within {timeout_s:g} s.",
                    hint=f"it may still be at work; coloctl status {self.pair} shows it",
                )
            if not answer:
                raise OutcomeUnknown(name, f"The supervisor of {self.pair} closed the connection.")
            if "event" in answer:
                event = _event(answer)
                if event.name in self.renewed_by:
                    deadline = time.monotonic() + timeout_s
                self._keep(event)
            # Without an id: the server could not even read the request.
            elif answer.get("id", number) == number:
                if "error" in answer:
                    raise error_from(answer["error"])
                return answer.get("return")

    def events(self, timeout_s: float | None = None) -> Iterator[ControlEvent]:
        """Iterate over events as they come, those kept by `execute` first.

        Ends after ``timeout_s`` in all.

        Raises `Unreachable` when the supervisor goes away.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            while self._events:
                yield self._events.popleft()
            message = self._next(deadline)
            if message is None:
                return
            if not message:
                raise Unreachable(
                    f"The supervisor of {self.pair} closed the connection.",
                    hint=f"coloctl status {self.pair} shows whether it still runs",
                )
            if "event" in message:
                yield _event(message)

    def _negotiate(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        greeting = self._next(deadline)
        if greeting is None:
            raise _silent(self._path, self.pair, f"did not greet within {timeout_s:g} s.")
        if not greeting:
            raise Unreachable(
                f"The supervisor of {self.pair} accepts no more clients.", hint="try again"
            )
        try:
            self.version = greeting["QMP"]["version"]["package"]
        except (KeyError, TypeError):
            raise Unreachable(
                f"What answers for {self.pair} is not a supervisor of coloctl."
            ) from None
        self.execute("qmp_capabilities", max(0.001, deadline - time.monotonic()))

    def _send(self, request: dict[str, Any], name: str, timeout_s: float) -> None:
        self._connection.settimeout(timeout_s)
        try:
            self._connection.sendall(wire.encode(request))
        except TimeoutError:
            raise DeadlineMissed(
                f"The supervisor of {self.pair} did not read {name} within {timeout_s:g} s."
            ) from None
        except OSError as error:
            raise Unreachable(
                f"The supervisor of {self.pair} is gone: {error.strerror}.", hint=_gone(self.pair)
            ) from None

    def _next(self, deadline: float | None) -> dict[str, Any] | None:
        """Read the next message; None when the deadline passed, empty at the end of the stream."""
        looked = 0
        while (end := self._buffer.find(b"\n", looked)) < 0:
            looked = len(self._buffer)
            if looked > wire.ANSWER_MAX:
                raise Unreachable(f"What answers for {self.pair} does not come to an end.")
            if not self._wait(deadline):
                return None
            try:
                data = self._connection.recv(_READ_BYTES)
            except TimeoutError:
                return None
            except ConnectionError:
                data = b""
            if not data:
                return {}
            self._buffer += data
        raw = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            return wire.decode(raw)
        except wire.WireError as error:
            raise Unreachable(f"What answers for {self.pair} does not speak QMP: {error}") from None

    def _wait(self, deadline: float | None) -> bool:
        """Bound reads by ``deadline``; return False when it has passed already."""
        if deadline is None:
            self._connection.settimeout(None)
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        self._connection.settimeout(left)
        return True

    def _keep(self, event: ControlEvent) -> None:
        if self.on_event is not None:
            self.on_event(event)
            return
        if len(self._events) >= EVENTS_MAX:
            self._events.popleft()
            self.events_lost += 1
        self._events.append(event)


def _connect(connection: socket.socket, path: Path, pair: str) -> None:
    try:
        connection.connect(os.fspath(path))
    except (FileNotFoundError, NotADirectoryError):
        raise NoSuchPair(
            f"No pair called {pair} runs here.", hint="coloctl list shows those that do"
        ) from None
    except ConnectionRefusedError:
        raise Unreachable(
            f"The supervisor of {pair} is gone and left its socket behind.", hint=_gone(pair)
        ) from None
    except PermissionError:
        raise PreconditionFailed(
            f"You may not use {path}.", hint="run as the user who started the pair"
        ) from None
    except (TimeoutError, BlockingIOError):
        raise _silent(path, pair, "accepts no connection.") from None
    except OSError as error:
        raise ColoctlError(f"{path} cannot be used: {error.strerror or error}.") from None


def _silent(path: Path, pair: str, sentence: str) -> DeadlineMissed:
    """Make the error for the supervisor at ``path``; ``sentence`` says what it did not do.

    It names the process and how it stands, and what can be typed about it.
    """
    pid, state, watched = _supervisor(path)
    if not pid:
        return DeadlineMissed(f"The supervisor of {pair} {sentence}", hint="try again")
    again = "its watcher starts" if watched else "`coloctl start SPEC --adopt` starts"
    ends = f"`kill -KILL {pid}` ends it alone, the guest runs on, and {again} another"
    if state == "T":
        return DeadlineMissed(
            f"The supervisor of {pair} (process {pid}) is stopped and answers nothing.",
            hint=f"`kill -CONT {pid}` lets it go on (after Ctrl-Z `fg` does); {ends}",
        )
    return DeadlineMissed(
        f"The supervisor of {pair} (process {pid}) {sentence}",
        hint=f"it may be very busy: try again; {ends}",
    )


def _supervisor(path: Path) -> tuple[int, str, bool]:
    """Find its pid, its state, and whether a watcher has started it; 0 where it is unknown.

    Both serve ``path``: the watcher holds the socket too, and is the supervisor's parent.
    """
    from coloctl import procfs  # seldom needed, and it looks at every process

    names = {procfs.socket_name(inode) for inode in procfs.listeners([path]).values()}
    found = {pid: procfs.read_stat(pid) for pid in procfs.holding(names)} if names else {}
    for pid, stat in found.items():
        if stat is not None and (stat.parent in found or len(found) == 1):
            return pid, stat.state, stat.parent in found
    return 0, "", False


def _gone(pair: str) -> str:
    return f"`coloctl start SPEC --adopt` takes its pair, `coloctl stop {pair} --force` ends it"


def _event(message: dict[str, Any]) -> ControlEvent:
    stamp = message.get("timestamp") or {}
    at_s = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
    return ControlEvent(message["event"], message.get("data") or {}, at_s, message.get("seq", 0))
