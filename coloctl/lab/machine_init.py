"""Be the first process of a lab machine: build its root, reap its orphans, answer its ssh port.

Started by `lab.machine` as a program of its own; calls `lab.machine_root`. The listening socket is
made before, so a client that connects while the machine boots is served and never refused.

Invariant: when this process ends, the kernel ends every other one of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from coloctl.lab.kernel import (
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUTS,
    PR_SET_NAME,
    call,
)
from coloctl.lab.machine_root import Root, enter

READY = "ready"
#: The environment of the machine's programs; nothing of the caller's comes in.
ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


@dataclass(frozen=True, slots=True)
class Order:
    """The order to boot a machine, as it travels on the command line."""

    root: Root
    members: Path  #: the file of the machine's control group that processes join by
    listener: int  #: the descriptor of the socket on which ssh is answered
    report: int  #: the descriptor on which `READY` or a sentence is written
    ahead_s: int  #: seconds by which the machine's monotonic clock is ahead of this system's
    sshd: tuple[str, ...]  #: the words that serve one connection, inside the machine

    def to_json(self) -> str:
        """Write the order, as `from_json` reads it."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read an order; raises `ValueError` or `KeyError` for what `to_json` did not write."""
        document: dict[str, Any] = json.loads(text)
        root = document.pop("root")
        return cls(
            Root(
                root["name"],
                Path(root["store"]),
                tuple(map(Path, root["shown"])),
                tuple(map(Path, root["hidden"])),
            ),
            Path(document["members"]),
            document["listener"],
            document["report"],
            document["ahead_s"],
            tuple(document["sshd"]),
        )


def main(argv: list[str]) -> int:
    """Start the machine of the order in ``argv``; return at once, while its first process goes on.

    That process reports `READY` or a sentence of failure.
    """
    order = Order.from_json(argv[0])
    for descriptor in (order.listener, order.report):
        os.set_inheritable(descriptor, False)
    try:
        order.members.write_text("0")
        call("unshare", CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID)
        if order.ahead_s:
            _set_clock(order.ahead_s)
        if os.fork():
            return 0
    except OSError as error:
        return _fail(order, error)
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        call("prctl", PR_SET_NAME, f"coloctl-{order.root.name}".encode()[:15], None, None, None)
        enter(order.root)
        os.write(order.report, READY.encode())
        os.close(order.report)
    except OSError as error:
        return _fail(order, error)
    return _serve(socket.socket(fileno=order.listener), order.sshd)


def _set_clock(ahead_s: int) -> None:
    """Put the children of this process into a time namespace (time_namespaces(7)).

    Only before the first of them may its offsets be written.
    """
    call("unshare", CLONE_NEWTIME)
    offsets = "".join(f"{clock} {ahead_s} 0\n" for clock in ("monotonic", "boottime"))
    Path("/proc/self/timens_offsets").write_text(offsets)


def _fail(order: Order, error: OSError) -> int:
    os.write(order.report, f"{error.strerror} ({error.filename or 'no file'})".encode())
    return 1


def _serve(listener: socket.socket, sshd: tuple[str, ...]) -> NoReturn:
    """Serve connections and reap children, for as long as the machine is on."""
    listener.setblocking(False)
    woken, waking = socket.socketpair()
    for end in (woken, waking):
        end.setblocking(False)
    signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is woken:
                    _reap(woken)
                else:
                    _answer(listener, sshd)


def _reap(woken: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        woken.recv(4096)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _answer(listener: socket.socket, sshd: tuple[str, ...]) -> None:
    """Start a server for one connection, as inetd does."""
    with contextlib.suppress(OSError):  # the client left, or no process can be made now
        connection, _ = listener.accept()
        with connection:
            connection.setblocking(True)
            both = [(os.POSIX_SPAWN_DUP2, connection.fileno(), end) for end in (0, 1)]
            os.posix_spawn(
                sshd[0],
                sshd,
                ENVIRONMENT,
                file_actions=both,
                setsid=True,
                setsigdef=[signal.SIGINT, signal.SIGPIPE],
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
