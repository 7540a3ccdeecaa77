"""Another local user on the pair's hosts: takes ports, writes half, floods the beacon.

The stranger is nobody, by setresuid in a process of this run. What it got is counted while it is
there, and told when it leaves; `stranger_got_nothing` judges that.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from pydantic import Field

from coloctl import pairfile
from coloctl.chaos.evidence.records import NOTHING
from coloctl.chaos.faults.child import Child
from coloctl.chaos.faults.fault import Ask, Blow, FaultKind, Ground, Params
from coloctl.chaos.scenario.values import Planned
from coloctl.model.pair import NODES
from coloctl.model.wires import Wires

NOBODY = 65534
#: How long it may take to tell what it got, seconds.
PATIENCE_S = 5.0

#: Tries each address again and again and holds what it gets; on an export half a write as well.
#: Its last word on stdout is how many of what it got.
PROGRAM = """
import encodings.idna, json, os, select, socket, struct, sys, time
doors, exports, beacons, rate, user = json.loads(sys.argv[1])
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
got, held, tried = {}, [], 0
flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
flood.setblocking(False)

def gain(what):
    got[what] = got.get(what, 0) + 1

def half_a_write(sock):
    name = b"parent0"
    data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    sock.recv(18)
    sock.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(data)) + data)
    if sock.recv(4096):
        sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 65536) + b"X" * 1000)
        gain("half a write")

print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    for where in doors:
        sock = socket.socket()
        sock.settimeout(0.02)
        tried += 1
        try:
            sock.connect(tuple(where))
            gain("a connection to port %d" % where[1])
            held.append(sock)
            sock.settimeout(0.5)
            if where in exports:
                half_a_write(sock)
        except OSError:
            sock.close() if sock not in held else None
    until = time.monotonic() + 0.1
    for _ in range(rate // 10):
        for where in beacons:
            try:
                flood.sendto(b"x" * 48, tuple(where))
            except OSError:
                pass
    time.sleep(max(0.0, until - time.monotonic()))
print(json.dumps({"got": got, "tried": tried}), flush=True)
"""


class Stranger(Params):
    """How many datagrams a second it sends to each beacon, as far as its host lets it."""

    datagrams: int = Field(4000, ge=0, le=100_000)


def strike(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """The stranger is on the host of the target, and tries the ports of both nodes."""
    params = Stranger.model_validate(dict(fault.params))
    pair = pairfile.load(ground.home / f"{ground.name}.toml")
    ports = tuple(Wires(pair, Path("/")).ports())
    at = [pair.nodes[node].address for node in NODES]
    addresses = [[address, port] for address in at for port in ports]
    exports = [[address, pair.replication.nbd_port()] for address in at]
    beacons = [[address, pair.replication.heartbeat_port()] for address in at]
    told = json.dumps([addresses, exports, beacons, params.datagrams, NOBODY])
    role = "host-a" if fault.target == "a" else "host-b"
    child = Child.begin(ground.lab, role, [sys.executable, "-I", "-c", PROGRAM, told])
    if child is None:
        return Blow(time.monotonic(), missed="there is no other user here")

    return Blow(
        time.monotonic(),
        lambda: child.end(PATIENCE_S),
        note=f"on {role}",
        outcome=lambda: "" if child.said is None else _what_it_got(child.said),
    )


def _what_it_got(said: str) -> str:
    try:
        told = json.loads(said)
    except ValueError:
        return "it never told what it got"
    if not told["got"]:
        return f"{NOTHING} in {told['tried']} tries"
    return "it got " + ", ".join(f"{times} x {what}" for what, times in told["got"].items())


FAULTS = {
    "stranger": FaultKind(
        "Another local user tries the ports of the pair, and floods its beacons, until healed.",
        strike,
        NODES,
        Stranger,
        lasting=True,
    )
}
