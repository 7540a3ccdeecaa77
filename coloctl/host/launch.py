"""Start programs detached, in the namespaces of the calling thread.

Called by `host.local`, and by `host.remote.connection` for ssh; `host.listen` makes the sockets and
`host.program` holds the result. A program gets a session of its own, so that no Ctrl-C for coloctl
reaches it. The sockets that it serves listen before it starts, so no process waits for a path to
appear.

Invariant: a program that was started in another thread for a task that is cancelled meanwhile is
ended by that thread, also where the task's event loop is gone (`claimed`).
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from coloctl.errors import LaunchError, PreconditionFailed
from coloctl.host import ownership, systemd
from coloctl.host.listen import listening
from coloctl.host.process import LocalProcess, identity_of
from coloctl.host.program import Program
from coloctl.host.tap import attach
from coloctl.model.launch import Account, Launch

T = TypeVar("T")

#: How long `discard` waits for the kernel; SIGKILL needs milliseconds.
DISCARD_WAIT_S = 2.0


def hold(pid: int, argv: Sequence[str], *, node: str = "") -> LocalProcess:
    """Hold a child of this process that has not been reaped yet."""
    pidfd = os.pidfd_open(pid)
    identity = identity_of(pid)
    assert identity is not None, "an unreaped child has an entry in /proc"
    return LocalProcess(identity, pidfd, argv, node=node, launched=True)


def start(
    argv: Sequence[str],
    *,
    stdout: int,
    stderr: int,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    node: str = "",
    account: Account | None = None,
) -> LocalProcess:
    """Start the program in a session of its own, in the namespaces of the calling thread.

    With ``account`` it runs as that user from its first instruction, and has no capability.

    Raises `OSError` when it cannot be started. Blocks until the program's image is loaded.
    """
    child = subprocess.Popen(
        list(argv),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(pass_fds),
        start_new_session=True,
        **_identity(account),
    )
    try:
        process = hold(child.pid, argv, node=node)
    except BaseException:
        child.kill()
        child.wait()
        raise
    # The exit status is taken through the pidfd; this keeps `subprocess` from reaping it first.
    child.returncode = 0
    return process


def _identity(account: Account | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": account.groups}


async def claimed(future: Future[T], undo: Callable[[T], object] | None = None) -> T:
    """Return the result of a thread's work; once the caller is cancelled, ``undo`` gets it.

    The thread itself calls ``undo``, so that no event loop has to run for that.
    """
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if undo is not None:
            future.add_done_callback(_undoing(undo))
        raise


def _undoing(undo: Callable[[T], object]) -> Callable[[Future[T]], None]:
    def callback(future: Future[T]) -> None:
        if not future.cancelled() and future.exception() is None:
            undo(future.result())

    return callback


@dataclass(frozen=True)
class StartedProgram:
    """A program that was started; its standard error goes to a memory file of coloctl."""

    process: LocalProcess
    stderr: int

    def close(self) -> None:
        """Close the files and release the hold on the process."""
        self.process.close()
        self.close_files()

    def close_files(self) -> None:
        """Close the files that coloctl shares with the program."""
        os.close(self.stderr)

    def discard(self) -> bool:
        """Kill the program and close the files; returns as `discard` does."""
        try:
            return discard(self.process)
        finally:
            self.close_files()


@dataclass(frozen=True)
class CapturedProgram(StartedProgram):
    """A program whose output goes to memory files of coloctl, so that no pipe can fill up."""

    stdout: int

    def close_files(self) -> None:
        """Close the files that the program writes to."""
        super().close_files()
        os.close(self.stdout)


def start_captured(argv: Sequence[str], stdin: bytes = b"") -> CapturedProgram:
    """Start a program as `start` does and keep its output; it reads ``stdin`` and then the end."""
    with ExitStack() as on_failure, _holding(stdin) as given:
        stdout, stderr = (_memory_file(name, on_failure) for name in ("stdout", "stderr"))
        process = start(argv, stdout=stdout, stderr=stderr, stdin=given)
        on_failure.pop_all()
        return CapturedProgram(process, stderr, stdout)


@dataclass(frozen=True)
class ConversingProgram(StartedProgram):
    """A program whose stdin and stdout are the other end of ``ours``."""

    ours: socket.socket

    def close_files(self) -> None:
        """Close this end of the stream, and the program's stderr."""
        super().close_files()
        self.ours.close()


def start_talking(argv: Sequence[str]) -> ConversingProgram:
    """Start a program as `start` does, with a stream to and from it.

    The program reads an end of file when ``ours`` is closed.
    """
    with ExitStack() as on_failure:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        on_failure.callback(ours.close)
        stderr = _memory_file("stderr", on_failure)
        with its:
            process = start(argv, stdin=its.fileno(), stdout=its.fileno(), stderr=stderr)
        on_failure.pop_all()
        return ConversingProgram(process, stderr, ours)


def _memory_file(name: str, on_failure: ExitStack) -> int:
    """Create a memory file that is closed on failure."""
    fd = os.memfd_create(name)
    on_failure.callback(os.close, fd)
    return fd


@contextmanager
def _holding(content: bytes) -> Iterator[int]:
    """Hold a descriptor from which ``content`` can be read; in memory, so that no task has to feed
    it.
    """
    if not content:
        yield subprocess.DEVNULL
        return
    with os.fdopen(os.memfd_create("stdin"), "wb") as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()


def spawn(program: Launch, *, stderr: Path, node: str = "") -> Program:
    """Launch as `Host.launch` does, in the namespaces of the calling thread.

    Raises `LaunchError` when the program cannot be started, `PreconditionFailed` when ``stderr``
    cannot be written, or where the program's account cannot use a file.
    """
    with ExitStack() as parent_copies, ExitStack() as on_failure:
        log = _appending(stderr)  # before its folder is open to another user
        parent_copies.callback(os.close, log)
        if program.account is not None:
            on_failure.callback(ownership.take_back, stderr.parent)
            ownership.lend(stderr.parent, program, program.account)
        numbers, inodes = {}, {}
        for name, path in program.sockets.items():
            numbers[name] = parent_copies.enter_context(listening(path)).fileno()
            inodes[path] = os.fstat(numbers[name]).st_ino
            on_failure.callback(path.unlink, missing_ok=True)
        for name, end in program.taps.items():
            numbers[name] = attach(end.ifname, vnet_header=end.vnet_header)
            parent_copies.callback(os.close, numbers[name])
        command = with_numbers(program.argv, numbers, program.numbered)
        try:
            process = start(
                command,
                stdout=log,
                stderr=log,
                pass_fds=tuple(numbers.values()),
                node=node,
                account=program.account,
            )
        except OSError as error:
            raise LaunchError(
                f"{program.argv[0]} could not be started: {error.strerror}.",
                node=node,
                argv=command,
                hint="check that the program exists and may be executed",
            ) from None
        on_failure.pop_all()
        unplaced = ""
        if program.unit is not None:
            unplaced = systemd.place(process.identity.pid, program.unit)
        return Program(process, inodes, unplaced=unplaced)


def _appending(path: Path) -> int:
    try:
        return os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        raise PreconditionFailed(f"Cannot write {path}: {error.strerror}.") from None


def with_numbers(
    argv: Sequence[str], numbers: Mapping[str, int], at: Collection[int] | None = None
) -> list[str]:
    """Replace each ``{fd:NAME}`` in the arguments at ``at``, or in all of them.

    Raises `ValueError` for an unknown name.
    """

    def number(match: re.Match[str]) -> str:
        if match[1] not in numbers:
            raise ValueError(f"{match[0]} names no listening socket; known: {sorted(numbers)}")
        return str(numbers[match[1]])

    return [
        re.sub(r"\{fd:([^{}]+)\}", number, word) if at is None or i in at else word
        for i, word in enumerate(argv)
    ]


def discard(process: LocalProcess | Program, listen: Iterable[Path] = ()) -> bool:
    """Kill a process that no caller will hold, with its group, and remove its socket files.

    It must come from `start`, which made it the leader of a group, or from `spawn`. Blocks until
    the kernel has removed it, at most `DISCARD_WAIT_S`. Returns whether it is gone; the hold on it
    is released then, and stays where it is not.
    """
    try:
        if isinstance(process, Program):
            return process.discard(DISCARD_WAIT_S)
        if process.alive():
            with suppress(ProcessLookupError):
                os.killpg(process.identity.pid, signal.SIGKILL)
        gone = process.wait_blocking(DISCARD_WAIT_S)
        if gone:
            process.close()
        return gone
    finally:
        for path in listen:
            path.unlink(missing_ok=True)
