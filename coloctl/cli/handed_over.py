"""Supervise a pair at a control socket that was handed over, as a watcher starts a supervisor.

Called by `cli.main` for ``run SPEC --control-fd N``, the command that `control.daemon.spawn` gives
to a watcher; `cli.verbs.run` takes `prepare`. Reads the pair by `supervisor.started`, and has its
machines dialled while `control.daemon.serve` is imported.

Invariant: a supervisor that follows a killed one may begin in the middle of a failover. Until it is
at work it imports no click and no pydantic, and reads no pair file whose content its folder has.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from coloctl.cli import complaint, streams
from coloctl.control.daemon.early import serve_early
from coloctl.errors import ColoctlError, UsageError
from coloctl.supervisor.started import Started, remembered

log = logging.getLogger(__name__)

#: The option by which a control socket that listens already is named: its descriptor.
CONTROL_FD = "--control-fd"
_METRICS = "--metrics"

#: Python's levels and those of syslog(3), the gravest first.
_SYSLOG_LEVELS = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)


def supervise(arguments: Sequence[str]) -> int:
    """Supervise the pair until it ends; return the exit code. Errors are printed on standard error.

    ``arguments`` are those of the command, from ``run`` on.
    """
    try:
        source, listener, metrics = _read(arguments)
        prepare()
        began = _started(listener, Path(source))
        asyncio.run(serve_early(began, listener, metrics=metrics))
    except (ColoctlError, OSError) as error:
        return complaint.say(complaint.from_any(error), as_json=False)
    return 0


def _read(arguments: Sequence[str]) -> tuple[str, socket.socket, str]:
    """Return pair file, control socket and address of metrics; raises `UsageError`, OSError."""
    match arguments:
        case ["run", str(source), option, str(number), *more] if option == CONTROL_FD:
            match more:
                case []:
                    metrics = ""
                case [option, str(metrics)] if option == _METRICS:
                    pass
                case _:
                    raise UsageError(f"{more[0]} does not fit beside {CONTROL_FD}.")
            if not number.isdecimal():
                raise UsageError(f"{CONTROL_FD} must be the number of a descriptor.")
            os.set_inheritable(int(number), False)
            return source, socket.socket(fileno=int(number)), metrics
    raise UsageError(f"{CONTROL_FD} follows `run SPEC`.", hint="only coloctl itself uses it")


def _started(listener: socket.socket, spec_path: Path) -> Started:
    """Return the pair as it was when it was started, also where its file was changed since.

    Where its folder does not hold that, its file is read: a guest is not left without supervisor.
    """
    try:
        began = remembered(Path(listener.getsockname()).parent)
    except ColoctlError as error:
        log.error("%s Now %s is read.", error, spec_path)
        began = None
    if began is not None:
        return began
    from coloctl.cli.verbs.start import load

    return Started(load(spec_path))


def prepare() -> None:
    """Make output and log those of a supervisor, which never waits for their reader."""
    streams.detach()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # nor is it stopped for saying it
    _log_to_stderr()


def _log_to_stderr() -> None:
    """Log records go to stderr, each with its time and level as the reader of stderr knows them.

    The journal of systemd has a time of its own, and takes the level from a prefix (sd-daemon(3)).
    """
    handler = logging.StreamHandler(sys.stderr)
    journal = _is_journal(sys.stderr.fileno())
    shape = "%(message)s" if journal else "%(asctime)s %(levelname)s %(message)s"
    handler.setFormatter(_JournalFormatter(shape) if journal else logging.Formatter(shape))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _JournalFormatter(logging.Formatter):
    """Begin each line of a record with its level in angle brackets, as systemd reads it."""

    def format(self, record: logging.LogRecord) -> str:
        level = next(n for least, n in _SYSLOG_LEVELS if record.levelno >= least)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())


def _is_journal(fd: int) -> bool:
    """Return whether ``fd`` leads to systemd's journal.

    The environment variable alone proves nothing: other processes inherit it too.
    """
    there = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"
