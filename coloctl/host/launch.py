"""Programs started detached, in the namespaces of the calling thread.

A program gets a session of its own, so that no Ctrl-C meant for us reaches it, and the sockets that
it serves: they listen before it starts, so nobody ever has to wait for a path to appear.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from coloctl.errors import LaunchError, PreconditionFailed
from coloctl.host.listen import listening
from coloctl.host.process import LocalProcess, identity_of
from coloctl.host.program import Program

#: How long `discard` waits for the kernel; SIGKILL needs milliseconds.
DISCARD_S = 2.0


def hold(pid: int, argv: Sequence[str], *, node: str = "") -> LocalProcess:
    """A child of ours that nobody has reaped yet, held from now on."""
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
) -> LocalProcess:
    """The program runs in a session of its own, in the namespaces of the calling thread.

    Raises `OSError` when it cannot be started. Blocks until the program's image is loaded.
    """
    child = subprocess.Popen(
        list(argv),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(pass_fds),
        start_new_session=True,
    )
    try:
        process = hold(child.pid, argv, node=node)
    except BaseException:
        child.kill()
        child.wait()
        raise
    # The exit status is taken through the pidfd; this keeps `subprocess` from reaping behind us.
    child.returncode = 0
    return process


@dataclass(frozen=True)
class Captured:
    """A program whose output goes to memory files of ours, so that no pipe can fill up."""

    process: LocalProcess
    stdout: int
    stderr: int

    def close(self) -> None:
        """The files and the hold on the process are released."""
        self.process.close()
        os.close(self.stdout)
        os.close(self.stderr)

    def discard(self) -> None:
        """The program is gone too."""
        try:
            discard(self.process)
        finally:
            self.close()


def start_captured(argv: Sequence[str], stdin: bytes = b"") -> Captured:
    """As `start`, with the output kept; the program reads ``stdin`` and then its end."""
    with ExitStack() as on_failure, _holding(stdin) as given:
        files = []
        for name in ("stdout", "stderr"):
            files.append(os.memfd_create(name))
            on_failure.callback(os.close, files[-1])
        process = start(argv, stdout=files[0], stderr=files[1], stdin=given)
        on_failure.pop_all()
        return Captured(process, *files)


@dataclass(frozen=True)
class Talking:
    """A program whose stdin and stdout are the other end of ``ours``."""

    process: LocalProcess
    ours: socket.socket
    stderr: int

    def close(self) -> None:
        """Our end, its stderr and the hold on the process are released."""
        self.process.close()
        self.ours.close()
        os.close(self.stderr)

    def discard(self) -> None:
        """The program is gone too."""
        try:
            discard(self.process)
        finally:
            self.close()


def start_talking(argv: Sequence[str]) -> Talking:
    """As `start`, with a stream to and from the program; it reads an end when ours is closed."""
    with ExitStack() as on_failure:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        on_failure.callback(ours.close)
        stderr = os.memfd_create("stderr")
        on_failure.callback(os.close, stderr)
        with its:
            process = start(argv, stdin=its.fileno(), stdout=its.fileno(), stderr=stderr)
        on_failure.pop_all()
        return Talking(process, ours, stderr)


@contextmanager
def _holding(content: bytes) -> Iterator[int]:
    """A descriptor from which ``content`` can be read; of memory, so that nobody has to feed it."""
    if not content:
        yield subprocess.DEVNULL
        return
    with os.fdopen(os.memfd_create("stdin"), "wb") as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()


def spawn(
    argv: Sequence[str],
    *,
    stderr: Path,
    listen: Mapping[str, Path],
    node: str = "",
    numbered: Collection[int] | None = None,
) -> Program:
    """`Host.launch`, for the namespaces of the calling thread."""
    with ExitStack() as parent_copies, ExitStack() as on_failure:
        numbers, inodes = {}, {}
        for name, path in listen.items():
            numbers[name] = parent_copies.enter_context(listening(path)).fileno()
            inodes[path] = os.fstat(numbers[name]).st_ino
            on_failure.callback(path.unlink, missing_ok=True)
        log = _appending(stderr)
        parent_copies.callback(os.close, log)
        command = with_numbers(argv, numbers, numbered)
        try:
            process = start(
                command, stdout=log, stderr=log, pass_fds=tuple(numbers.values()), node=node
            )
        except OSError as error:
            raise LaunchError(
                f"{argv[0]} could not be started: {error.strerror}.",
                node=node,
                argv=command,
                hint="check that the program exists and may be executed",
            ) from None
        on_failure.pop_all()
        return Program(process, inodes)


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
    """Replace each ``{fd:NAME}`` in the words at ``at``, or in all of them.

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


def discard(process: LocalProcess | Program, listen: Iterable[Path] = ()) -> None:
    """A process that nobody will get to hold is gone, with its group and its socket files.

    It must come from `start`, which made it the leader of a group, or from `spawn`. Blocks until
    the kernel has taken it away, at most `DISCARD_S`.
    """
    if isinstance(process, Program):
        process.discard(DISCARD_S)
        for path in listen:
            path.unlink(missing_ok=True)
        return
    try:
        if process.alive():
            with suppress(ProcessLookupError):
                os.killpg(process.identity.pid, signal.SIGKILL)
            process.wait_blocking(DISCARD_S)
    finally:
        process.close()
        for path in listen:
            path.unlink(missing_ok=True)
