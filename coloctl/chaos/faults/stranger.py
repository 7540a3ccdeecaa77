"""Act as another local user on the pair's hosts: take ports, write half, flood the beacon.

Registered in `chaos.faults`. The stranger is the user with the number 65534, by setresuid in a
`child` of this run. It counts its gains, and prints them when it leaves: they are the result of the
fault, which the check `stranger_got_nothing` reads.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from pydantic import Field

from coloctl.chaos.evidence.records import FaultResult, StrangerGains
from coloctl.chaos.faults.child import ActedByChild
from coloctl.chaos.faults.fault import Injected, fault
from coloctl.chaos.scenario.tables import Params
from coloctl.model.pair import NODES
from coloctl.model.wires import Wires

NOBODY = 65534

#: Tries each address again and again and holds what it gets; on an export half a write as well.
#: Its last line on stdout is how many times it got each thing.
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


class StrangerParams(Params):
    """The number of datagrams a second to each beacon, as far as its host permits."""

    datagrams: int = Field(default=4000, ge=0, le=100_000)


@fault("stranger")
class StrangerFault(ActedByChild[StrangerParams]):
    """Another local user who tries the ports of the pair and floods its beacons, until healed."""

    targets = NODES
    params = StrangerParams
    missing = "there is no other user here"

    def begin(self) -> Injected:
        """Start the stranger on the host of the target; it tries the ports of both nodes."""
        pair = self.pair.spec()
        ports = tuple(Wires(pair, Path("/")).ports())
        at = [pair.nodes[node].address for node in NODES]
        addresses = [[address, port] for address in at for port in ports]
        exports = [[address, pair.replication.nbd_port()] for address in at]
        beacons = [[address, pair.replication.heartbeat_port()] for address in at]
        given = json.dumps([addresses, exports, beacons, self.given.datagrams, NOBODY])
        role = self.pair.lab.plan.hosts[0 if self.target == "a" else 1]
        argv = [sys.executable, "-I", "-c", PROGRAM, given]
        return Injected(
            self.start(partial(self.pair.lab.popen, where=role), argv), note=f"on {role}"
        )

    def result(self) -> FaultResult:
        """Return the gains of the stranger, once it has left."""
        if self.output is None:
            return ""
        try:
            return StrangerGains(**json.loads(self.output))
        except ValueError:
            return "it never reported what it got"
