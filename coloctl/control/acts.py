"""Ask a supervisor for everything that it can do: command, arguments and wait of each act.

Used by `cli.reach`, `api.pair` and `bench/`; asks through `control.client`. Standard library only,
and synchronous: a caller that must not block runs it in a thread.

Invariant: the wait for each act stands here and nowhere else.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping
from typing import Any, TypeVar

from coloctl import __version__, paths, procfs
from coloctl.control.client import ControlClient
from coloctl.control.daemon.watcher import watcher_of
from coloctl.errors import DeadlineMissed, PreconditionFailed, Unreachable
from coloctl.model.answers import (
    Change,
    CheckpointTaken,
    PauseAnswer,
    SettingsChanged,
)
from coloctl.model.explanation import Explanation
from coloctl.model.protection import Protection
from coloctl.model.revive import revive
from coloctl.model.timeline import Timeline
from coloctl.model.verified import Verified
from coloctl.model.view import PairView

#: A supervisor answers queries between two steps of its acts, within milliseconds.
QUERY_WAIT_S = 10.0
#: From nothing to COLO with equal images takes seconds; a big disk that is copied takes longer.
PROTECT_WAIT_S = 120.0
#: Fencing, yank, promotion and verification each have their own deadline; together less than this.
FAILOVER_WAIT_S = 120.0
#: A failover takes a moment; making the new secondary takes as long as protecting a guest.
SWITCHOVER_WAIT_S = 120.0
#: How long a guest may take to shut down when the caller names no time.
SHUTDOWN_WAIT_S = 60.0
#: What stopping takes on top of the guest's own time: fencing, killing, sweeping.
STOP_MARGIN_S = 60.0
#: A checkpoint has 30 s of its own in the supervisor, a QMP command as much.
KNOB_WAIT_S = 60.0

#: Disks are read from end to end; what takes longer goes on by itself.
VERIFY_WAIT_S = 86_400.0

Document = dict[str, Any]
Answer = TypeVar("Answer")


class Acts:
    """Asks the supervisor at the other end of one connection.

    Every act raises the supervisor's own `ColoctlError`, `StillAtWork` when it is not done in
    time (it may go on), `OutcomeUnknown` when the supervisor went away meanwhile.
    """

    def __init__(self, client: ControlClient, query_s: float = QUERY_WAIT_S) -> None:
        self.client = client
        self.query_s = query_s  #: patience for the status, the query that surveys repeat

    @property
    def pair(self) -> str:
        """The pair's name."""
        return self.client.pair

    def _ask(self, command: str, wait_s: float = QUERY_WAIT_S, /, **arguments: Any) -> Any:
        return self.client.execute(command, wait_s, **arguments)

    # -- looking

    def view(self) -> PairView:
        """Return the pair as last observed.

        Raises `PreconditionFailed` for a value that this version does not know.
        """
        return read_view(self.status_document())

    def status_document(self) -> Document:
        """Return the document of `status -f json`, as the supervisor sent it."""
        document: Document = self._ask("query-pair", self.query_s)
        return document

    def explanation(self) -> Explanation:
        """Explain the pair: the reasons, and what would happen next."""
        return read(Explanation, self.explanation_document())

    def explanation_document(self) -> Document:
        """Return the document of `explain -f json`, as the supervisor sent it."""
        document: Document = self._ask("query-explain")
        return document

    def dump(self) -> Document:
        """Return records of the pair as it is, and the number of the last event before them."""
        document: Document = self._ask("query-dump")
        return document

    def history_document(self) -> Document:
        """Return the document of `model.answers.PastFailovers`, as the supervisor sent it."""
        past: Document = self._ask("query-history")
        return past

    def plan(self, verb: str, **asked: Any) -> list[Document]:
        """List what the verb would send to each QEMU now; nothing is sent."""
        steps: list[Document] = self._ask("query-plan", verb=verb, **asked)
        return steps

    def wait_for(self, state: str, wait_s: float, generation: int = 0) -> str:
        """Wait until the pair is in ``state``, and of that generation or a later one.

        In ``colo`` its protection must also be beyond doubt (`PairView.doubt`). A pair that is
        stopped and gone meanwhile counts as down. Raises `DeadlineMissed`.
        """
        try:
            found, doubt = self._until(state, time.monotonic() + wait_s, generation)
        except Unreachable:
            if state != "down" or paths.pair_dir(self.pair).exists():
                raise
            found, doubt = state, ""
        if found != state or doubt:
            missed = f"{found}, but {doubt}," if doubt else f"{found} and not {state}"
            raise DeadlineMissed(
                f"{self.pair} is {missed} after {wait_s:g} s.",
                hint=f"`coloctl status {self.pair}` says why",
            )
        return found

    def _until(self, state: str, deadline_s: float, generation: int) -> tuple[str, str]:
        """Return ``state`` as soon as the pair is in it, else its state at the deadline.

        Returns beside it what puts the protection in doubt; empty: nothing.
        """
        view = read_view(self._ask("query-pair", _left(deadline_s)))
        found, doubt = str(view.protection), view.doubt
        if found == state and not doubt and view.generation >= generation:
            return found, ""
        for event in self.client.events(max(0.0, deadline_s - time.monotonic())):
            if event.name == "STATE_CHANGED":
                found, doubt = str(event.data["after"]), ""
                if found != state:
                    continue
                # It may be over by now, and counts all the same; but protection has to last.
                if state != Protection.COLO and not generation:
                    return found, ""
            elif not doubt:
                continue
            view = read_view(self._ask("query-pair", _left(deadline_s)))
            if state == Protection.COLO:
                found, doubt = str(view.protection), view.doubt
            if found == state and not doubt and view.generation >= generation:
                return found, ""
        earlier = found == state and not doubt
        return (f"{found} of an earlier generation" if earlier else found), doubt

    # -- acting

    def start(
        self, *, protect: bool = True, begin_on: str | None = None, wait_s: float = PROTECT_WAIT_S
    ) -> Document:
        """Start what does not run, protected if so asked; with the disks of ``begin_on``."""
        origin = {"from": begin_on} if begin_on else {}
        view: Document = self._ask("pair-start", wait_s, protect=protect, **origin)
        return view

    def protect(self, wait_s: float = PROTECT_WAIT_S) -> Document:
        """Make a new secondary for a guest that runs alone; the pair is in COLO afterwards."""
        view: Document = self._ask("pair-protect", wait_s)
        return view

    def unprotect(self) -> Document:
        """End the secondary; the supervisor does not protect the guest again by itself."""
        view: Document = self._ask("pair-unprotect", FAILOVER_WAIT_S)
        return view

    def failover(
        self, to: str | None = None, *, force: bool = False, wait_s: float = FAILOVER_WAIT_S
    ) -> Timeline:
        """Prove one node dead and let the other run the guest; return the timeline."""
        return read(Timeline, self._ask("pair-failover", wait_s, to=to, force=force or None))

    def switchover(self, *, force: bool = False, wait_s: float = SWITCHOVER_WAIT_S) -> Timeline:
        """Exchange the roles of the nodes and protect the pair again; return the timeline."""
        return read(Timeline, self._ask("pair-switchover", wait_s, force=force or None))

    def pause(self) -> bool:
        """Leave failovers to an operator from now on; return whether they were before."""
        return read(PauseAnswer, self._ask("pair-pause")).before

    def resume(self) -> bool:
        """Allow failovers by the supervisor again; return whether they were left to an operator."""
        return read(PauseAnswer, self._ask("pair-resume")).before

    def confirm_fence(self, node: str) -> Document:
        """Confirm as a person that the node is off."""
        view: Document = self._ask("pair-fence-confirm", node=node)
        return view

    def set(self, settings: Mapping[str, Any]) -> tuple[Change, ...]:
        """Change settings, given by name, at least one; all of them hold afterwards, or none."""
        return read(SettingsChanged, self._ask("pair-set", KNOB_WAIT_S, settings=settings)).changed

    def checkpoint(self) -> CheckpointTaken:
        """Take one checkpoint; return its number and its pause."""
        return read(CheckpointTaken, self._ask("pair-checkpoint", KNOB_WAIT_S))

    def verify(self, wait_s: float = VERIFY_WAIT_S, *, memory: bool | None = None) -> Verified:
        """Compare disks and memory of both nodes; return the report."""
        return read(Verified, self._ask("pair-verify", wait_s, memory=memory))

    def qmp(
        self, node: str, command: str, arguments: Mapping[str, Any] | None = None, *,
        oob: bool = False,
    ) -> Any:  # fmt: skip
        """Send one QMP command to the QEMU of that node; return its answer."""
        return self._ask(
            "node-qmp", KNOB_WAIT_S,
            node=node, execute=command, arguments=arguments or None, oob=oob or None,
        )  # fmt: skip

    def stop(self, *, force: bool = False, shutdown_s: float = SHUTDOWN_WAIT_S) -> str:
        """Stop the pair; return how the guest ended.

        Both QEMUs, the supervisor and the pair's folder are gone afterwards. Raises
        `DeadlineMissed` when the supervisor does not end after its answer.
        """
        pid = self.status_document()["supervisor_pid"]
        held = [fd for fd in map(_hold, filter(None, (pid, watcher_of(pid)))) if fd is not None]
        try:
            # As long again for a failover that is under way: it is not cut short.
            wait_s = 2 * shutdown_s + STOP_MARGIN_S
            # A merge of overlays on a slow disk has no fixed end, but reports its progress.
            self.client.renewed_by = frozenset({"PROGRESS"})
            how = self._ask("pair-stop", wait_s, force=force or None, timeout_s=shutdown_s)["how"]
            if not all(_ended(fd, STOP_MARGIN_S) for fd in held):
                raise DeadlineMissed(
                    f"The supervisor of {self.pair} (process {pid}) did not end within "
                    f"{STOP_MARGIN_S:g} s.",
                    hint=f"the guest is gone; `kill {pid}` ends the supervisor",
                )
        finally:
            for fd in held:
                os.close(fd)
        return str(how)


def read_view(document: Mapping[str, Any]) -> PairView:
    """Rebuild a view from the document that a supervisor of any version sent.

    Raises `PreconditionFailed` for a value that this version does not know.
    """
    try:
        return PairView.from_json(document)
    except ValueError as error:
        raise _unreadable(f"The status of {document.get('name', 'the pair')}", error) from None


def read(kind: type[Answer], document: Mapping[str, Any]) -> Answer:
    """Rebuild an answer from its document; earlier supervisors wrote ``-`` for ``_`` in its keys.

    Raises `PreconditionFailed` for a value that this version does not know.
    """
    try:
        return revive(kind, {name.replace("-", "_"): value for name, value in document.items()})
    except ValueError as error:
        raise _unreadable("The supervisor's answer", error) from None


def _unreadable(what: str, error: ValueError) -> PreconditionFailed:
    return PreconditionFailed(
        f"{what} cannot be read: {error}.",
        hint=f"use the coloctl that runs its supervisor; this one is {__version__}",
    )


def _left(deadline_s: float) -> float:
    """Return the time of one query before the deadline: 0.1 s at least, `QUERY_WAIT_S` at most."""
    return min(QUERY_WAIT_S, max(deadline_s - time.monotonic(), 0.1))


def _hold(pid: int) -> int | None:
    """Open a pidfd; None when the process is gone, or runs as another user."""
    try:
        held = os.pidfd_open(pid)
    except OSError:
        return None
    if procfs.ours(pid):
        return held
    os.close(held)
    return None


def _ended(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
