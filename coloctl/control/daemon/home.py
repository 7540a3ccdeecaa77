"""Keep a pair's folder in its place as long as its supervisor lives.

Called by `control.daemon.serve`; the files of `supervisor.started` are among its content.
A folder below /run or /tmp is removed by clean-up jobs and by people.

Invariant: as long as the supervisor lives, verbs find its control socket and the next supervisor
finds a journal within a second of their removal. What belongs to QEMU cannot be made again: its
monitors' sockets have no other path, so a later supervisor cannot reach those QEMUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

from coloctl import paths, wholefile
from coloctl.control.listener import listen, served
from coloctl.control.server import ControlServer
from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.host.records import Contact
from coloctl.journal import Journal
from coloctl.machine.cmdline import monitor_sockets
from coloctl.model import event
from coloctl.model.event import Kind
from coloctl.model.pair import NODES
from coloctl.supervisor.started import PAIR_FILE, SOURCE, STARTED
from coloctl.supervisor.state import PairState

log = logging.getLogger(__name__)

#: How often the folder is looked at, seconds.
PERIOD_S = 1.0


class Home:
    """The folder of one pair, as its supervisor found it."""

    def __init__(self, state: PairState, journal: Journal, server: ControlServer) -> None:
        self._state, self._journal, self._server = state, journal, server
        self._folder = state.ground.folder
        self._socket = paths.control_socket(state.spec.name)
        self._files: dict[str, bytes] = {}  # that say what the pair was started with
        for name in (PAIR_FILE, STARTED):
            with contextlib.suppress(OSError):
                self._files[name] = (self._folder / name).read_bytes()
        # The next supervisor inherits the first socket, whose path may have been removed before.
        self._served = _stamp(self._socket) if served(self._socket) else None
        self._said = ""
        self._remember_source()

    def _remember_source(self) -> None:
        """Record where the pair file lies: where no supervisor answers, advice names it."""
        source = str(self._state.pair_file.source or "")
        known = event.last_settings(self._journal.history.records).get(event.SOURCE)
        if source and known != source:
            with contextlib.suppress(PreconditionFailed):  # a supervisor without it does as well
                self._state.record(Kind.NOTE, data={event.SOURCE: source})

    async def keep(self) -> None:
        """Look at the folder until cancelled, and make again what is missing."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                self.look()
            except (ColoctlError, OSError) as error:
                if str(error) != self._said:
                    log.error("The folder of the pair cannot be made again: %s", error)
                self._said = str(error)

    def look(self) -> list[str]:
        """Make again what is missing, record and say it; answer what it was.

        Raises `ColoctlError` or OSError for what cannot be made.
        """
        gone = ["folder"] if not self._folder.is_dir() else []
        if self._journal.see_to_place():
            gone.append("journal")
        gone.extend(self._restored())
        if _stamp(self._socket) != self._served or self._served is None:
            self._rebind()
            gone.append("control socket")
        if gone:
            self._tell(gone)
        return gone

    def _restored(self) -> list[str]:
        """Write again which of the files of the start are missing; return their names."""
        missing = [name for name in self._files if not os.path.lexists(self._folder / name)]
        for name in missing:
            wholefile.replace(self._folder / name, self._files[name], mode=0o600)
        link, source = self._folder / SOURCE, self._state.pair_file.source
        if source is not None and PAIR_FILE in self._files and not os.path.lexists(link):
            link.symlink_to(source.absolute())
            missing = [PAIR_FILE, *(name for name in missing if name != PAIR_FILE)]
        return missing

    def _rebind(self) -> None:
        """Listen at a new control socket; clients of the old one stay."""
        listener = listen(paths.check_socket_path(self._socket))
        self._server.listen_too(listener)
        self._served = _stamp(self._socket)

    def _tell(self, gone: list[str]) -> None:
        state = self._state
        what = " and ".join(gone)
        said = f"The {what} of the pair was removed while it ran, and was made again."
        if not all(
            path.exists()
            for node in NODES
            if state.seats[node].vm is not None
            and state.ground.hosts[node].reach.contact is Contact.HERE
            for path in monitor_sockets(self._folder / node).values()
        ):
            said += (
                " The monitors of its QEMUs have no path any more: this supervisor watches them "
                "as before, one after it could not; a `coloctl switchover "
                f"{state.spec.name}` done twice replaces both."
            )
        log.warning("%s", said)
        state.record(Kind.OBSERVATION, data={"made-anew": gone})
        state.explain(said)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes the file at ``path`` from all others; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
