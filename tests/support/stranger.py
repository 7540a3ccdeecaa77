"""Another user, here or on a machine of the lab: programs that run as nobody, and what they try.

Each program is a text for `python -I -c`, needs only the standard library, prints one JSON line per
thing that it found out, and then holds what it got until it is ended.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from coloctl.lab import netns
from coloctl.lab.machine import LabMachine

NOBODY = 65534

_HEAD = """
import encodings.idna, fcntl, json, os, socket, ssl, struct, sys, tempfile, time
from concurrent.futures.thread import ThreadPoolExecutor

# The interpreter may lie where nobody can read: it is loaded before.
os.setgroups([])
os.setresgid(NOBODY, NOBODY, NOBODY)
os.setresuid(NOBODY, NOBODY, NOBODY)

def say(**found):
    print(json.dumps(found), flush=True)

def connect(where):
    kind = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    sock = socket.socket(kind)
    sock.settimeout(1.0)
    if source and not isinstance(where, str):
        sock.bind((source, 0))
    sock.connect(where if isinstance(where, str) else tuple(where))
    return sock

def hold():
    sys.stdin.read()
"""

#: Takes every address that it is given and keeps the connections.
TAKE = """
held = []

def take(where):
    try:
        held.append(connect(where))
        return dict(got=True)
    except OSError as error:
        return dict(got=False, why=str(error))

# At once: where packets are dropped, each attempt takes a second.
with ThreadPoolExecutor(len(given)) as pool:
    for where, found in zip(given, pool.map(take, given)):
        say(where=where, **found)
say(done=True)
hold()
"""

#: Opens the export, reads its first block, overwrites it, then sends half of one more write.
NBD = """
def receive(sock, length):
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data

def go(sock, export):
    receive(sock, 18)
    sock.sendall(struct.pack(">I", 3))
    name = export.encode()
    data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    sock.sendall(b"IHAVEOPT" + struct.pack(">II", 7, len(data)) + data)
    while True:
        _, _, kind, length = struct.unpack(">QIII", receive(sock, 20))
        receive(sock, length)
        if kind == 1:
            return
        if kind & 0x80000000:
            raise OSError("refused")

def request(sock, kind, offset, length):
    sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 1, offset, length))

for where in given:
    try:
        sock = connect(where)
        go(sock, "parent0")
        request(sock, 0, 0, 512)
        receive(sock, 16 + 512)
        say(where=where, got="read")
        if write:
            request(sock, 1, 0, 512)
            sock.sendall(b"X" * 512)
            receive(sock, 16)
            say(where=where, got="overwrote")
        request(sock, 1, 65536, 65536)
        sock.sendall(b"X" * 1000)
        say(where=where, got="half a write")
    except OSError as error:
        say(where=where, got=False, why=str(error))
say(done=True)
hold()
"""

#: Sends as many datagrams to every address as it can in `seconds`.
FLOOD = """
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if source:
    sock.bind((source, given[0][1]))  # a beacon has the same port at both ends
sent = refused = 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    for where in given:
        try:
            sock.sendto(b"x" * 32, tuple(where))
            sent += 1
        except OSError:
            refused += 1
    if rate and not (sent + refused) % 64:
        ahead = (sent + refused) / rate - (seconds - (end - time.monotonic()))
        if ahead > 0:
            time.sleep(ahead)
say(sent=sent, refused=refused, done=True)
"""


@contextlib.contextmanager
def stranger(
    program: str,
    given: list[Any],
    *,
    namespace: str | None = None,
    machine: LabMachine | None = None,
    **words: Any,
) -> Iterator[list[dict[str, Any]]]:
    """Run ``program`` as nobody, in ``namespace`` or on ``machine`` if named; yields what it said.

    It has said that it is done by then, holds what it got inside the block, and is gone behind it.
    """
    values = {"given": given, "source": "", **words}
    text = (
        f"NOBODY = {NOBODY}\n{_HEAD}"
        + "".join(f"{name} = {value!r}\n" for name, value in values.items())
        + program
    )

    argv = [sys.executable, "-I", "-c", text]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def launch() -> subprocess.Popen[str]:
        return subprocess.Popen(argv, cwd="/", **pipes)

    if machine is not None:
        child = machine.popen(argv, **pipes)
    else:
        child = netns.inside(namespace, launch) if namespace else launch()
    try:
        assert child.stdout is not None
        found: list[dict[str, Any]] = []
        for line in child.stdout:
            found.append(json.loads(line))
            if found[-1].pop("done", False):
                break
        yield [one for one in found if one]
    finally:
        child.kill()
        child.communicate()
