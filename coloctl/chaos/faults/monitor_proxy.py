"""Serve the monitors of a QEMU by processes of ours, which can be stopped without it.

Put in front of QEMU by `chaos.faults.monitors`. A program, standard library only:
``monitor_proxy.py qemu BINARY ARGUMENT...`` becomes that QEMU by exec, under the same pid. Before
that the listening socket of each monitor goes to a proxy, a child of the QEMU that dies with it.
QEMU finds a private socket under the same descriptor; only the proxy connects there. Raises OSError
where BINARY cannot be executed.
Invocations without such monitors just become QEMU.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

#: The word before the name of the monitor on the command line of a proxy.
SERVE = "serve-monitor"
#: Monitors by the id of their chardev, as `machine.cmdline` writes them.
MONITORS = ("qmp", "rescue")

_CHARDEV = re.compile(rf"socket,id=({'|'.join(MONITORS)})0,fd=(\d+),server=on,wait=off")
_BYTES = 1 << 16
#: As many descriptors as the kernel lets travel at once (SCM_MAX_FD).
_FDS = 253
_PR_SET_PDEATHSIG = 1


def monitors(argv: Sequence[str]) -> dict[str, int]:
    """Return the descriptors of the monitors of a pair's QEMU; none for a query of the binary."""
    words = list(itertools.pairwise(argv))
    if ("-machine", "none") in words:
        return {}
    found = (_CHARDEV.fullmatch(value) for option, value in words if option == "-chardev")
    return {match[1]: int(match[2]) for match in found if match}


def become(binary: str, argv: Sequence[str]) -> None:
    """Replace this process by that QEMU; never returns."""
    for name, number in monitors(argv).items():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as inner:
            inner.bind("")  # a free name of the abstract kind, which leaves no file
            inner.listen(4)
            address = inner.getsockname()
            subprocess.Popen(
                [
                    sys.executable, "-I", "-S", __file__,
                    SERVE, name, str(number), address.hex(), str(os.getpid()),
                ],
                pass_fds=(number,),
            )  # fmt: skip
            os.dup2(inner.fileno(), number, inheritable=True)
    os.execv(binary, [binary, *argv])


def serve(listening: int, address: bytes, parent: int) -> None:
    """Connect each client to the QEMU ``parent`` through this process, until QEMU ends."""
    # Also where this process is stopped, nothing of it outlives QEMU.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    with socket.socket(fileno=listening) as door:
        while True:
            outer, _ = door.accept()
            inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            inner.connect(address)
            threading.Thread(target=_join, args=(outer, inner), daemon=True).start()


def _join(outer: socket.socket, inner: socket.socket) -> None:
    """Carry bytes both ways until both ends have closed."""
    with outer, inner:
        back = threading.Thread(target=carry, args=(inner, outer), daemon=True)
        back.start()
        carry(outer, inner)
        back.join()


def carry(source: socket.socket, target: socket.socket) -> None:
    """Carry bytes and descriptors from one socket to the other, and then its end."""
    with contextlib.suppress(OSError):
        while True:
            data, fds, _, _ = socket.recv_fds(source, _BYTES, _FDS)
            try:
                if not data:
                    break
                sent = socket.send_fds(target, [data], fds) if fds else 0
                target.sendall(data[sent:])
            finally:
                for fd in fds:
                    os.close(fd)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        source.shutdown(socket.SHUT_RD)


def main() -> None:
    """Run the program."""
    what, *rest = sys.argv[1:]
    if what == SERVE:
        _, number, address, parent = rest
        serve(int(number), bytes.fromhex(address), int(parent))
    else:
        become(rest[0], rest[1:])


if __name__ == "__main__":
    main()
