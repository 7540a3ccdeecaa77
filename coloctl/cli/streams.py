"""Make the three standard streams safe to use, also where they are closed, full or slow.

`cli.main` calls `install` before anything else, `cli.verbs.run_verb` calls `lost`, and
`cli.handed_over` calls `detach`.

Invariants: writing to standard output or error never raises; the first error is kept (`lost`); and
after `detach` it never waits either, because a thread writes from a bounded queue. Without that a
full disk, an ASCII terminal, a reader that has gone or a journal that blocks would end a verb
half-way, or hold the supervisor while its guest waits for a failover.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import select
import sys
import threading
from collections import deque
from typing import Any, Final

from coloctl.errors import ColoctlError

#: Writes that wait for the reader of a supervisor's output; lines of about 100 bytes.
WAITING_MAX: Final = 1000
#: How long the end of the program waits for the rest to be written, seconds.
SETTLE_WAIT_S: Final = 1.0

#: A terminal that reports less, columns or lines, is one of unknown size.
NARROWEST: Final = 10

#: What drawings consist of, for encodings that have no such characters.
_PLAIN: Final = {
    **dict.fromkeys("█▉▊▋▌▍▎▏▐▇▆▅▄▃▂▁", "#"),
    **dict.fromkeys("─━═╴╶╸╺", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯", "+"),
    "✔": "+", "✘": "x", "●": "*", "→": "->", "…": "...", "–": "-", "—": "-", "’": "'",
}  # fmt: skip
_ERRORS: Final = "coloctl"


class OutputLost(ColoctlError):
    """Standard output did not take all output."""

    code = "output-lost"


class Chatter:
    """A thread that writes to ``fd`` what was queued, however long that takes."""

    def __init__(self, fd: int, most: int = WAITING_MAX) -> None:
        self.dropped = 0  #: writes that had to make room, or failed
        self._fd, self._most = fd, most
        self._waiting: deque[bytes] = deque()
        self._wake = threading.Condition()
        self._busy = False
        threading.Thread(target=self._run, name="output", daemon=True).start()

    def put(self, data: bytes) -> None:
        """Queue ``data``; the oldest that waits makes room for it."""
        with self._wake:
            if len(self._waiting) >= self._most:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(data)
            self._wake.notify()

    def settle(self, wait_s: float) -> None:
        """Wait until all is written, for ``wait_s`` at most."""
        with self._wake:
            self._wake.wait_for(lambda: not self._waiting and not self._busy, wait_s)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._busy = False
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._waiting)
                data, self._busy = self._waiting.popleft(), True
                lost, self.dropped = self.dropped, 0
            note = f"({lost} messages were lost here.)\n".encode() if lost else b""
            try:
                _write_all(self._fd, note + data)
            except OSError:  # a full disk may have room again, and a reader may come back
                with self._wake:
                    self.dropped += lost + 1


class _Raw(io.RawIOBase):
    """The write end of a standard stream."""

    def __init__(self, fd: int, *, missing: bool) -> None:
        self.fd, self.missing = fd, missing
        self.lost: OSError | None = None
        self.chatter: Chatter | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.fd

    def isatty(self) -> bool:
        return os.isatty(self.fd)

    def write(self, data: Any) -> int:
        content = bytes(data)
        if self.chatter is not None:
            self.chatter.put(content)
        elif self.lost is None:
            try:
                if self.missing:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                _write_all(self.fd, content)
            except OSError as error:
                self.lost = error
        return len(content)


class Stream(io.TextIOWrapper):
    """A standard stream of text; made by `install`."""

    def __init__(self, raw: _Raw, encoding: str) -> None:
        self.raw = raw
        buffer = io.BufferedWriter(raw)
        lines = raw.isatty() or raw.fd == 2
        super().__init__(buffer, encoding, _ERRORS, line_buffering=lines)


def install() -> None:
    """Replace standard output and error, and open what was closed.

    A closed descriptor would be taken by the first socket, which would then get what is printed.
    """
    codecs.register_error(_ERRORS, _spelled)
    for name in ("COLUMNS", "LINES"):
        if (size := os.environ.get(name, "")).isdigit() and int(size) < NARROWEST:
            del os.environ[name]  # nothing at all would be shown
    missing = [fd for fd in (0, 1, 2) if _opened(fd)]
    if sys.stdin is None or 0 in missing:
        sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    for fd, name in ((1, "stdout"), (2, "stderr")):
        encoding = getattr(getattr(sys, name), "encoding", None) or "utf-8"
        setattr(sys, name, Stream(_Raw(fd, missing=fd in missing), encoding))


def detach() -> None:
    """Write to both streams from threads of their own from here on; neither is waited for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Stream):
            stream.flush()
            stream.raw.chatter = Chatter(stream.raw.fd)
            stream.reconfigure(line_buffering=True)


def settle() -> None:
    """Flush both streams, and give threads that write a moment for the rest."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, AttributeError):
            stream.flush()
        if isinstance(stream, Stream) and stream.raw.chatter is not None:
            stream.raw.chatter.settle(SETTLE_WAIT_S)


def lost() -> OSError | None:
    """Return the error by which output was lost on standard output; None where all was taken."""
    with contextlib.suppress(ValueError):
        sys.stdout.flush()
    return sys.stdout.raw.lost if isinstance(sys.stdout, Stream) else None


def require() -> None:
    """Flush standard output; raises `BrokenPipeError` or `OutputLost` once it cannot be written."""
    if (error := lost()) is None:
        return
    if error.errno == errno.EPIPE:
        raise error
    raise complaint_about(error)


def complaint_about(error: OSError) -> OutputLost:
    """Return ``error`` of standard output as a sentence."""
    return OutputLost(
        f"Standard output cannot be written: {error.strerror}.",
        hint="its output is lost; free some space, or write it somewhere else",
    )


def _opened(fd: int) -> bool:
    """Return whether ``fd`` was closed; it leads to /dev/null then."""
    try:
        os.fstat(fd)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != fd:
            os.dup2(null, fd)
            os.close(null)
        os.set_inheritable(fd, True)
        return True
    return False


def _write_all(fd: int, data: bytes) -> None:
    """Write ``data``, also where another process has made ``fd`` non-blocking."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that the encoding does not have by ASCII.

    Drawings are replaced by characters that look alike, the rest as JSON does.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    said = "".join(
        _PLAIN.get(one) or _escaped(one) for one in error.object[error.start : error.end]
    )
    return said, error.end


def _escaped(character: str) -> str:
    number = ord(character)
    if number <= 0xFFFF:
        return f"\\u{number:04x}"
    high, low = divmod(number - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
