"""Hold the frames of an impaired wire where the kernel cannot; a program.

Started by `lab.link`. All that leaves either end of the wire is redirected into a tap, whose frames
the pump reads, keeps or loses as the impairment says, and sends out of the same end, past the
redirection. It uses the standard library only, so that it starts quickly.

It ends by itself when the process that started it is gone. Its taps go with it on every path; the
redirection stays until the wire is healed, and until then nothing passes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from coloctl.errors import LabError
from coloctl.lab import netns
from coloctl.lab.impairment import Impairment, WireDirection
from coloctl.lab.kernel import CLONE_NEWNET, PR_SET_NAME, call

# Numbers from linux/if_tun.h, linux/sockios.h, linux/if.h and linux/if_packet.h.
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP = 0x2
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_TUN_F_CSUM_TSO = 0x1 | 0x2 | 0x4 | 0x8  # checksums, TSO4, TSO6, with ECN
_SIOCSIFTXQLEN = 0x8943
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_QDISC_BYPASS = 20

_HEADER = 10  # struct virtio_net_hdr
_FRAME_MAX = _HEADER + 14 + 65536
_QUEUE = 10_000  # frames that wait in a tap while the pump is not scheduled
_BURST = 64  # frames read from one end before the other gets its turn
_SENDBUF = 8 << 20
_START_WAIT_S = 10.0
_END_WAIT_S = 5.0


def tap_of(device: str) -> str:
    """Name the tap into which the frames of that end of a wire go."""
    return f"{device}~"


def _name_of(wire: str) -> str:
    return f"pump-{wire}"[:15]  # TASK_COMM_LEN


def start(wire: str, ends: Sequence[tuple[str, str]], impairment: Impairment) -> None:
    """Start a pump on the tap of each end, a namespace and a device; it is our child.

    Raises `LabError` when it cannot; then there is none.
    """
    order = {"wire": wire, "ends": list(ends), "impairment": impairment.document()}
    child = subprocess.Popen(
        [sys.executable, "-m", "coloctl.lab.pump", json.dumps(order)],
        stdin=subprocess.PIPE,  # its end shows the pump that we are gone
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdout and child.stderr
    ready, _, _ = select.select([child.stdout], [], [], _START_WAIT_S)
    if not ready or child.stdout.readline() != b"ready\n":
        child.kill()
        said = child.communicate()[1].decode(errors="replace").strip().splitlines()
        raise LabError(f"The wire {wire} cannot be impaired: {(said or ['no answer'])[-1]}.")
    child.stdout.close()
    child.stderr.close()
    # Holds the pipe, and takes note of the end; no process waits for this thread.
    threading.Thread(target=child.wait, name=f"pump {wire}", daemon=True).start()


def end(wire: str, namespace: str) -> None:
    """End every pump of that wire, with any parent; raises `LabError` when one will not end.

    ``namespace`` is that of an end of the wire; a pump runs at the first end that it serves.
    """
    for pid, command in netns.processes(namespace).items():
        if command != _name_of(wire):
            continue
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                if netns.runs_in(pid, namespace):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)  # it has nothing to save
                gone, _, _ = select.select([handle], [], [], _END_WAIT_S)
            finally:
                os.close(handle)
            if not gone:
                raise LabError(f"The pump {pid} of the wire {wire} does not end.")


class _End:
    """One end of the wire, with the frames that wait to leave it."""

    def __init__(self, device: str, lane: WireDirection, *, whole: bool) -> None:
        """Open the tap and the device in the namespace that the process is in now."""
        self.tap = _open_tap(tap_of(device), whole=whole)
        self._out = _open_out(device)
        self._lane = lane
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._bytes = 0

    def take(self) -> None:
        """Read the frames that have come: each is sent, lost, or waits."""
        for _ in range(_BURST):
            try:
                frame = os.read(self.tap, _FRAME_MAX)
            except BlockingIOError:
                return
            now_s = time.monotonic()
            size = len(frame) - _HEADER
            due_s = self._lane.due(now_s, size, self._bytes)
            if due_s is None:
                continue
            if due_s <= now_s:
                self._send(frame)
            else:
                self._waiting.append((due_s, frame))
                self._bytes += size

    def release(self, now_s: float) -> None:
        """Send the frames whose time has come; on a wire that is down they are lost."""
        down = self._lane.is_down(now_s)
        while self._waiting and self._waiting[0][0] <= now_s:
            frame = self._waiting.popleft()[1]
            self._bytes -= len(frame) - _HEADER
            if not down:
                self._send(frame)

    def next_s(self) -> float | None:
        return self._waiting[0][0] if self._waiting else None

    def _send(self, frame: bytes) -> None:
        with contextlib.suppress(OSError):  # a device that is down loses frames too
            self._out.send(frame)


def _open_tap(name: str, *, whole: bool) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    raw = os.fsencode(name)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", raw, flags))
    # Without these the kernel cuts frames to size, and computes checksums, before the tap.
    fcntl.ioctl(tap, _TUNSETOFFLOAD, _TUN_F_CSUM_TSO if whole else 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFTXQLEN, struct.pack("16si20x", raw, _QUEUE))
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH22x", raw, 0))
        up = struct.unpack_from("H", answer, 16)[0] | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", raw, up))
    return tap


def _open_out(device: str) -> socket.socket:
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    out.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    out.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)  # past the redirection as well
    out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SENDBUF)
    out.bind((device, 0))
    return out


def _open_ends(order: dict[str, Any], impairment: Impairment) -> list[_End]:
    """Open all ends. The last namespace entered is that of the first end: there the pump runs."""
    since_s = time.monotonic()
    ends = []
    for number, (namespace, device) in reversed(list(enumerate(order["ends"]))):
        entry = os.open(netns.path(namespace), os.O_RDONLY | os.O_CLOEXEC)
        call("setns", entry, CLONE_NEWNET)
        os.close(entry)
        lane = WireDirection(impairment, str(number), since_s)
        ends.append(_End(device, lane, whole=impairment.whole))
    return ends


def _pump(ends: Sequence[_End]) -> None:
    by_tap = {end.tap: end for end in ends}
    waited = [*by_tap, sys.stdin.fileno()]
    while True:
        due = [at_s for end in ends if (at_s := end.next_s()) is not None]
        wait_s = max(0.0, min(due) - time.monotonic()) if due else None
        ready, _, _ = select.select(waited, [], [], wait_s)
        for descriptor in ready:
            if descriptor not in by_tap:
                return
            by_tap[descriptor].take()
        now_s = time.monotonic()
        for one in ends:
            one.release(now_s)


def main(argument: str) -> None:
    """Pass the wire's frames through this process, until it or its parent ends."""
    order = json.loads(argument)
    call("prctl", PR_SET_NAME, _name_of(order["wire"]).encode())
    with contextlib.suppress(OSError):
        # A pump that waits for a processor would delay by itself.
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    ends = _open_ends(order, Impairment(**order["impairment"]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    _pump(ends)


if __name__ == "__main__":
    main(sys.argv[1])
