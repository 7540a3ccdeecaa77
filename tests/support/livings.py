"""Processes that live like a QEMU of a pair, and others that only say that they are one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from coloctl import paths
from coloctl.host.adopting import adopt
from coloctl.host.launch import discard, spawn
from coloctl.host.process import LocalProcess, identity_of
from coloctl.machine.cmdline import console_option, monitor_sockets
from coloctl.model.launch import Launch

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


@contextlib.contextmanager
def living_qemu(
    folder: Path, node: str = "a", *words: str, wrapper: Sequence[str] = ()
) -> Iterator[LocalProcess]:
    """A process that holds the monitor sockets of that node, as coloctl starts one."""
    rundir = folder / node
    paths.make_private(rundir)
    sockets = monitor_sockets(rundir)
    argv = [*wrapper, *SLEEP, "-chardev", console_option(rundir), *words]
    process = spawn(Launch(tuple(argv), sockets), stderr=rundir / "qemu.log", node=node)
    try:
        yield process
    finally:
        with contextlib.suppress(ValueError):  # it was ended, and its hold given back
            discard(process, sockets.values())


@contextlib.contextmanager
def forged_qemu(
    folder: Path, node: str = "a", *words: str, uid: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of that user with every word of a QEMU of that node, and none of its sockets."""
    # Another user may not be able to run the Python that we are.
    argv = ["/bin/sh", "-c", "read line", "sh", "-chardev", console_option(folder / node), *words]
    with subprocess.Popen(argv, user=uid, stdin=subprocess.PIPE) as process:
        try:
            # The kernel tells of the exec a moment before it shows the command line.
            while os.fsencode(console_option(folder / node)) not in _words(process.pid):
                time.sleep(0.001)
            yield process
        finally:
            process.kill()


def _words(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@contextlib.contextmanager
def adopted_child(
    program: str, *arguments: str
) -> Iterator[tuple[LocalProcess, subprocess.Popen[bytes]]]:
    """A Python program that has written a line, held as an adopted process; ended afterwards."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program, *arguments], **pipes) as child:
        try:
            assert child.stdout is not None and child.stdout.readline()
            identity = identity_of(child.pid)
            assert identity is not None
            held = adopt(identity)
            assert held is not None
            yield held, child
        finally:
            child.kill()
