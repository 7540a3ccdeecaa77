"""Define the verb `run`: a supervisor in the foreground; `start` runs the same in the background.

Calls `control.daemon.serve` for the pair until it ends; `control.daemon.spawn` starts this verb for
`start`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import click

from coloctl import paths
from coloctl.cli import complaint, streams
from coloctl.cli.options import free_address, metrics_option
from coloctl.cli.verbs.start import alone_option, load, preflight, spec_argument
from coloctl.cli.views.progress import plain_line
from coloctl.control.daemon.serve import serve
from coloctl.control.daemon.spawn import claim, end_stale, inherited, reclaim, stopped
from coloctl.control.listener import served
from coloctl.errors import ColoctlError, PairBusy
from coloctl.model.pairevent import PairEvent
from coloctl.supervisor.started import Started, remembered

log = logging.getLogger(__name__)

#: Python's levels and those of syslog(3), the gravest first.
_SYSLOG_LEVELS = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)


@click.command()
@spec_argument
@alone_option
@metrics_option
@click.option("--control-fd", type=int, hidden=True, help="A control socket that listens already.")
def run(spec_path: Path, alone: bool, metrics: str, control_fd: int | None) -> int:
    """Start the pair that SPEC describes and supervise it until it ends.

    For systemd and for watching. Ctrl-C (SIGINT) stops the pair: the guest is asked to shut down;
    a second Ctrl-C ends it at once. SIGTERM and SIGHUP end the supervisor alone; QEMU runs on.
    What an earlier supervisor left running is taken over as it is, and a stop that it began is
    finished.
    """
    streams.detach()  # a supervisor never waits for the reader of its output
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # nor is it stopped for saying it
    _log_to_stderr()
    if control_fd is not None:
        os.set_inheritable(control_fd, False)
        listener = socket.socket(fileno=control_fd)
        began = _started(listener, spec_path)
        asyncio.run(serve(began.pair, listener, facts=began.facts, metrics=metrics))
        return 0
    pair = load(spec_path)
    if served(paths.control_socket(pair.name)):
        raise PairBusy(
            f"A supervisor already serves pair {pair.name}.",
            hint=f"`coloctl status {pair.name}` shows it",
        )
    free_address(metrics)
    if (left := inherited(pair)) is not None:
        with reclaim(left.pair) as listener:
            serving = serve(left.pair, listener, facts=left.facts, tell=_tell, metrics=metrics)
            interrupted = asyncio.run(serving)
        return complaint.INTERRUPTED if interrupted else 0
    if stopped(pair):
        asyncio.run(end_stale(pair.name))
        print(f"Pair {pair.name} was being stopped when its supervisor died; it is stopped now.")
        return 0
    facts = asyncio.run(preflight(pair, protect=not alone))
    with claim(pair, facts) as listener:
        serving = serve(pair, listener, facts=facts, begin=not alone, tell=_tell, metrics=metrics)
        interrupted = asyncio.run(serving)
    return complaint.INTERRUPTED if interrupted else 0


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


def _started(listener: socket.socket, spec_path: Path) -> Started:
    """Return the pair as it was when it was started, also where its file was changed since.

    Where its folder does not hold that, its file is read: a guest is not left without supervisor.
    """
    try:
        began = remembered(Path(listener.getsockname()).parent)
    except ColoctlError as error:
        log.error("%s Now %s is read.", error, spec_path)
        began = None
    return began or Started(load(spec_path))


def _tell(event: PairEvent) -> None:
    if line := plain_line(event):
        print(line, flush=True)
