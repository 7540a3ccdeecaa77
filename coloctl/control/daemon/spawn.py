"""Start a supervisor: claim the folder of its pair, bind its socket, start its process.

Used by `cli.verbs.start`, `cli.verbs.run` and `api.pair`; clears away with `supervisor.leftovers`,
and leaves to the supervisor what the pair is started with (`supervisor.started`).

Until `SpawnedSupervisor.keep` is called it belongs to the verb that made it: an error, or
Ctrl-C, ends it and all that it started, and removes its folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from coloctl import interrupts, paths
from coloctl.colo.ground import Facts
from coloctl.control.client import ControlClient, OnEvent
from coloctl.control.listener import folder_locked, listen, served
from coloctl.errors import ColoctlError, MonitorError, PairBusy, PreconditionFailed
from coloctl.host import DeathProof, tail
from coloctl.journal import replay
from coloctl.model.event import Kind
from coloctl.model.pair import PairSpec
from coloctl.supervisor import leftover, leftovers
from coloctl.supervisor.leftover import JOURNAL, Leftover
from coloctl.supervisor.pair_hosts import opened
from coloctl.supervisor.started import Started, remember, remembered

LOG = "supervisor.log"

#: From the start of Python to the greeting: loading from a cold disk, and under ``accel = "auto"``
#: the proof of KVM, take seconds on a busy machine.
GREETING_WAIT_S = 60.0
#: Killing two QEMUs and sweeping their folders.
END_WAIT_S = 30.0


def claim(spec: PairSpec, facts: Facts | None = None) -> socket.socket:
    """Make a new folder for the pair, and return the control socket that listens in it.

    ``facts`` are what the caller found out about the pair's hosts, for its supervisors. What a dead
    supervisor left is cleared away. Raises `PairBusy` when a supervisor serves the pair or QEMUs of
    a dead one may still run, and `PreconditionFailed` where there is no room.
    """
    folder = paths.pair_dir(spec.name)
    with folder_locked(paths.make_private(paths.state_dir())):
        if served(paths.control_socket(spec.name)):
            raise PairBusy(
                f"A supervisor already serves pair {spec.name}.",
                hint=f"`coloctl status {spec.name}` shows it",
            )
        _refuse(folder, leftovers.find_or_clear(folder))
        leftovers.discard(folder)
        paths.make_private(folder)
        try:
            remember(folder, Started(spec, facts))
            return listen(paths.control_socket(spec.name))
        except OSError as error:
            leftovers.discard(folder)
            raise PreconditionFailed(
                f"{folder} cannot be filled: {error.strerror}.",
                hint="free some space there, or set COLOCTL_STATE_DIR to another folder",
            ) from None
        except BaseException:
            leftovers.discard(folder)
            raise


def refuse_living(folder: Path) -> None:
    """Raise `PairBusy` where a process of the pair in ``folder`` lives."""
    _refuse(folder, leftovers.find(folder))


def _refuse(folder: Path, living: tuple[Leftover, ...]) -> None:
    if living:
        raise PairBusy(leftover.told(folder, living), hint=leftover.advice(folder, living))


def inherited(spec: PairSpec) -> Started | None:
    """Read the pair whose QEMUs live without a supervisor, as it was started; None: none do.

    Where its folder does not hold that any more, ``spec`` is taken for it. Raises `PairBusy` when
    they were started from another pair file than that of ``spec``, or when they cannot be reached,
    and `PreconditionFailed` where the file is damaged.
    """
    folder = paths.pair_dir(spec.name)
    if served(paths.control_socket(spec.name)) or not (living := leftovers.find(folder)):
        return None
    if not leftover.reachable(living):
        raise PairBusy(leftover.told(folder, living), hint=leftover.advice(folder, living))
    if (started := remembered(folder)) is None:
        started = Started(spec)
        remember(folder, started)
    source = started.pair.source
    if source != spec.source:
        raise PairBusy(
            f"A pair called {spec.name} already runs; it was started from {source}.",
            hint="give one of the two pairs another name",
        )
    return started


def stopped(spec: PairSpec) -> bool:
    """Return whether its supervisor died while it stopped the pair, or after; nothing lives.

    A pair that was started from another pair file is none of this one's. Raises
    `PreconditionFailed` when the journal is damaged.
    """
    folder = paths.pair_dir(spec.name)
    if spec.source is None or leftover.source_of(folder) != str(spec.source.absolute()):
        return False
    if served(paths.control_socket(spec.name)) or leftovers.find(folder):
        return False
    history = replay(folder / JOURNAL)
    if any(intent.act == "stop" for intent in history.open_intents):
        return True
    ends = [one for one in history.records if one.kind is Kind.OUTCOME and "outcome" in one.data]
    return bool(ends) and ends[-1].act == "stop" and ends[-1].data["outcome"] == "done"


def reclaim(spec: PairSpec) -> socket.socket:
    """Bind the control socket again in the folder of a pair whose supervisor is gone.

    Raises `PairBusy` when another supervisor was faster.
    """
    with folder_locked(paths.state_dir()):
        return listen(paths.control_socket(spec.name))


async def end_stale(name: str, without: Collection[str] = ()) -> list[DeathProof]:
    """End the rest of a pair whose supervisor is gone; return how its QEMUs ended.

    ``without`` names nodes whose machines are gone for good. Raises `PairBusy` when a supervisor
    serves it after all, and what `leftovers.end` raises.
    """
    folder = paths.pair_dir(name)
    with folder_locked(paths.make_private(paths.state_dir())):
        if served(paths.control_socket(name)):
            raise PairBusy(f"A supervisor serves pair {name} again.", hint="try once more")
        proofs = await _end_in(folder, without)
        leftovers.discard(folder)
    return [proof for _, proof in proofs]


async def _end_in(folder: Path, without: Collection[str] = ()) -> list[tuple[Leftover, DeathProof]]:
    async with opened(folder) as hosts:
        return await leftovers.end(folder, hosts, without)


class SpawnedSupervisor:
    """A supervisor that this verb has started, and the watcher that starts it again."""

    def __init__(
        self,
        spec: PairSpec,
        metrics: str = "",
        *,
        facts: Facts | None = None,
        adopts: bool = False,
    ) -> None:
        """Start the process; its socket accepts connections before it runs.

        With ``adopts`` it takes over what an earlier one left, and is kept from the beginning.
        """
        self.name = spec.name
        self.folder = paths.pair_dir(spec.name)
        self.kept = adopts
        with reclaim(spec) if adopts else claim(spec, facts) as listener:
            try:
                self._process = _spawn(spec, listener, self.folder / LOG, metrics)
            except BaseException:
                if not adopts:
                    leftovers.discard(self.folder)
                raise

    def keep(self) -> None:
        """Keep the supervisor also where this verb fails from now on."""
        self.kept = True

    def connect(self, on_event: OnEvent | None = None) -> ControlClient:
        """Connect to it; raises `ColoctlError` with its last output when the supervisor ended."""
        path = paths.control_socket(self.name)
        try:
            return ControlClient.connect(path, GREETING_WAIT_S, on_event)
        except MonitorError as error:
            raise self.exit_error() or error from error

    def exit_error(self) -> ColoctlError | None:
        """Return why the supervisor is dead; None when it lives."""
        try:
            code = self._process.wait(2)
        except subprocess.TimeoutExpired:
            return None
        words = tail(self.folder / LOG, 20).strip()
        last = words.splitlines()[-1] if words else "it wrote nothing"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if code > 128:
            how = f"was killed by signal {code - 128}"  # as its watcher reports it
        return ColoctlError(
            f"The supervisor of pair {self.name} {how}: {last}",
            hint="run `coloctl run` with the same pair file to watch it",
        )

    def end(self) -> None:
        """End the supervisor and all that it started, and remove its folder."""
        with contextlib.suppress(ColoctlError), self.connect() as client:
            client.execute("pair-stop", END_WAIT_S, force=True)
        try:
            self._process.wait(END_WAIT_S)
        except subprocess.TimeoutExpired:
            # The watcher leads a group of its own, and its supervisor is the only other in it.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self.folder.exists():
            asyncio.run(_end_in(self.folder))
            leftovers.discard(self.folder)


@contextlib.contextmanager
def spawned_supervisor(
    spec: PairSpec, metrics: str = "", facts: Facts | None = None
) -> Iterator[SpawnedSupervisor]:
    """Start a new supervisor; unless it is kept, an exception in the block ends it.

    ``metrics`` is the address at which it serves its metrics, if any; ``facts`` as for `claim`.
    """
    born: SpawnedSupervisor | None = None
    try:
        with interrupts.deferred():
            born = SpawnedSupervisor(spec, metrics, facts=facts)
        yield born
    except BaseException:
        if born is not None and not born.kept:
            with interrupts.deferred(raise_after=False):
                born.end()
        raise


def _argv(spec: PairSpec, control_fd: int, metrics: str) -> list[str]:
    source = str(spec.source.absolute()) if spec.source else ""
    # -P: the folder that the verb happens to be called in holds no modules of ours.
    python = [sys.executable, "-P", "-m"]
    watcher = [*python, "coloctl.control.daemon.watcher", str(paths.pair_dir(spec.name))]
    extra = ["--metrics", metrics] if metrics else []
    supervisor = [*python, "coloctl.cli.main", "run", source, "--control-fd", str(control_fd)]
    return [*watcher, *supervisor, *extra]


def _spawn(
    spec: PairSpec, listener: socket.socket, log: Path, metrics: str
) -> subprocess.Popen[bytes]:
    fd = listener.fileno()
    environment = {
        **os.environ,
        "COLOCTL_STATE_DIR": str(paths.state_dir()),
        "COLOCTL_CACHE_DIR": str(paths.cache_dir()),
        "COLOCTL_REGISTRY_DIR": str(paths.registry_dir()),
        "COLOCTL_CONFIG_DIR": str(paths.config_dir()),
    }
    log_fd = os.open(
        log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    try:
        return subprocess.Popen(
            _argv(spec, fd, metrics),
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            pass_fds=(fd,),
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    finally:
        os.close(log_fd)
