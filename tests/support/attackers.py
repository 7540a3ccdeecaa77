"""Attackers in every place from which a pair can be reached, and what they try on each wire.

Each attempt runs as nobody. The certificates are handed over in the program's text, because no
attacker can read a folder of a test. An attempt counts as a gain when anything comes back but a
refusal, or when the connection is still open after `ANSWER_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from support.stranger import stranger

from coloctl.lab import layout, netns
from coloctl.lab.link import index_of, netlink
from coloctl.lab.machine import LabMachine
from coloctl.lab.machine_layout import MACHINES
from coloctl.lab.machines import Machines

#: How long a wire may take to refuse what came, seconds.
ANSWER_S = 5.0
_PERMANENT = 0x80  # NUD_PERMANENT of linux/neighbour.h

#: Tries each `[wire, kind, address, port, identity, source]` of ``given``; an empty source is any.
_ATTEMPT = (
    f"""
ANSWER_S = {ANSWER_S}
"""
    + """
def receive(sock, length):
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data

def encrypted(sock, identity):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(identities[identity])
        file.flush()
        context.load_cert_chain(file.name)
    return context.wrap_socket(sock)

def option(sock, number, data=b""):
    sock.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)

def reply(sock):
    _, _, kind, length = struct.unpack(">QIII", receive(sock, 20))
    receive(sock, length)
    if kind & 0x80000000:
        raise OSError(f"refused: {kind:#x}")
    return kind

def nbd(sock, identity):
    receive(sock, 18)
    sock.sendall(struct.pack(">I", 3))
    if identity != "plain":
        option(sock, 5)
        reply(sock)
        sock = encrypted(sock, identity)
    option(sock, 7, struct.pack(">I", 7) + b"parent0" + struct.pack(">H", 0))
    while reply(sock) != 1:
        pass
    return sock

def stream(sock, identity):
    if identity != "plain":
        sock = encrypted(sock, identity)
    sock.sendall(struct.pack(">I", 4) + b"evil")
    try:
        if not sock.recv(1):
            raise OSError("closed")
    except TimeoutError:
        pass  # it waits for more
    return sock

def datagrams(sock, identity):
    for _ in range(200):
        try:
            sock.send(b"x" * 64)
        except OSError:
            pass
    sock.settimeout(0.3)
    sock.recv(1)
    return sock

def request(sock, identity):
    sock.sendall(b"POST /metrics HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\n\\r\\n")
    if b"HTTP/1.1 2" in sock.recv(64) + b" ":
        return sock
    raise OSError("refused")

KINDS = dict(nbd=nbd, stream=stream, datagrams=datagrams, request=request)

def attempt(one):
    wire, kind, address, port, identity, source = one
    sock = socket.socket(type=socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_STREAM)
    try:
        sock.settimeout(1.0)
        # A beacon has the same port at both ends.
        sock.bind((source, port if source and kind == "datagrams" else 0))
        sock.connect((address, port))
        sock.settimeout(ANSWER_S)
        KINDS[kind](sock, identity)
        return dict(wire=wire, where=one, got=True)
    except OSError as error:
        return dict(wire=wire, where=one, got=False, why=str(error))
    finally:
        sock.close()

with ThreadPoolExecutor(8) as pool:
    for found in pool.map(attempt, given) if together else map(attempt, given):
        say(**found)
say(done=True)
"""
)

#: Connects to unix sockets and asks them something, and opens files for reading.
_FILES = """
for wire, path in given:
    try:
        if wire == "a file":
            os.close(os.open(path, os.O_RDONLY))
        else:
            with connect(path) as sock:
                sock.sendall(b'{"execute": "qmp_capabilities"}\\n')
                sock.recv(1)
        say(wire=wire, where=path, got=True)
    except OSError as error:
        say(wire=wire, where=path, got=False, why=str(error))
say(done=True)
"""

#: Connects to every address, again whenever it is turned away, and says nothing there.
INSIST = """
import threading
say(done=True)
held = {}
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
end = time.monotonic() + 600
while time.monotonic() < end:
    for where in map(tuple, given):
        if where in held:
            try:
                if held[where].recv(1, socket.MSG_DONTWAIT):
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            held.pop(where).close()
        sock = socket.socket()
        sock.settimeout(0.2)
        try:
            sock.connect(where)
            held[where] = sock
        except OSError:
            sock.close()
    time.sleep(0.02)
"""


@dataclass(frozen=True)
class Place:
    """Where an attacker is: a machine of the lab with its files, or a network namespace."""

    name: str
    machine: LabMachine | None = None
    namespace: str | None = None
    source: str = ""  #: the address that it claims to have
    targets: tuple[str, ...] = (layout.REPLICATION_A, layout.REPLICATION_B)

    def runs(self, program: str, given: Sequence[Any], **words: Any) -> Any:
        """The context of that program in this place."""
        where = {"machine": self.machine} if self.machine else {"namespace": self.namespace}
        return stranger(  # type: ignore[arg-type]
            program, list(given), **where, **{"source": self.source, **words}
        )


@dataclass
class Table:
    """What was tried and what it gained, by wire and place."""

    identities: Mapping[str, str]  #: certificate and key by name, as PEM
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    gained: list[tuple[str, Any]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)  #: of the last place

    async def attack(
        self, place: Place, wires: Sequence[tuple[str, str, int]], *, together: bool = True
    ) -> None:
        """Try every wire ``(name, kind, port)`` from that place, as every identity."""
        given = [
            [name, kind, address, port, identity, place.source]
            for address in place.targets
            for name, kind, port in wires
            for identity in ("plain", *(self.identities if kind in ("nbd", "stream") else ()))
        ]
        words = {"identities": dict(self.identities), "together": together}
        await self._note(place, _ATTEMPT, given, words)

    async def files(self, place: Place, paths: Sequence[tuple[str, str]]) -> None:
        """Try each unix socket and file ``(wire, path)`` from that place."""
        await self._note(place, _FILES, [list(one) for one in paths], {})

    async def _note(
        self, place: Place, program: str, given: Sequence[Any], words: Mapping[str, Any]
    ) -> None:
        def run() -> list[dict[str, Any]]:
            with place.runs(program, given, **words) as said:
                return list(said)

        found = await asyncio.to_thread(run)
        assert len(found) == len(given), found[-1:]
        self.said = found
        for one in found:
            self.tried[one["wire"], place.name] += 1
            if one["got"]:
                self.gained.append((place.name, one))

    def __str__(self) -> str:
        wires = list(dict.fromkeys(wire for wire, _ in self.tried))
        places = list(dict.fromkeys(place for _, place in self.tried))
        rows = [["", *places]]
        rows += [[w, *(str(self.tried[w, p] or "-") for p in places)] for w in wires]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join((*lines, f"{self.tried.total()} attempts, {len(self.gained)} succeeded"))


@contextlib.contextmanager
def legs(lab: Machines, address: str) -> Iterator[None]:
    """The third machine is on the replication network too, with ``address`` there.

    That network is one cable: a leg at either end of it is a second device on that end's port.
    """
    made = []
    for end in MACHINES.wires["replication"].ends:
        # What is plugged in beside hv2's device reaches hv1, and the other way round.
        far = next(one for one in MACHINES.wires["replication"].ends if one is not end)
        name = f"leg-{end.device}"
        with netns.path(lab.third).open("rb") as there:

            def plug(ip: Any, name: str = name, port: str = end.device, to: int = 0) -> None:
                ip.link(
                    "add", ifname=name, kind="macvlan", macvlan_mode="bridge",
                    link=index_of(ip, port),
                )  # fmt: skip
                ip.link("set", index=index_of(ip, name), net_ns_fd=to)

            netlink(MACHINES.namespace(lab.name, end.role), partial(plug, to=there.fileno()))
        made.append(name)
        netlink(lab.third, partial(_join, name, address, str(far.address)))
    try:
        yield
    finally:
        for name in made:
            netlink(lab.third, partial(_unplug, name))


def _join(device: str, address: str, far: str, ip: Any) -> None:
    index = index_of(ip, device)
    ip.link("set", index=index, state="up")
    ip.addr("add", index=index, address=address, prefixlen=32)
    ip.route("add", dst=f"{far}/32", oif=index, scope="link", prefsrc=address)


def _unplug(device: str, ip: Any) -> None:
    ip.link("del", index=index_of(ip, device))


@contextlib.contextmanager
def also(namespace: str, device: str, address: str) -> Iterator[None]:
    """That device has one more address, and answers no question of Ethernet about it."""
    netns.inside(namespace, lambda: _arp_ignore(8))
    netlink(namespace, lambda ip: _address(ip, "add", device, address))
    try:
        yield
    finally:
        netlink(namespace, lambda ip: _address(ip, "del", device, address))
        netns.inside(namespace, lambda: _arp_ignore(0))


def _arp_ignore(value: int) -> None:
    Path("/proc/sys/net/ipv4/conf/all/arp_ignore").write_text(str(value))


def _address(ip: Any, what: str, device: str, address: str) -> None:
    ip.addr(what, index=index_of(ip, device), address=address, prefixlen=32)


def known(namespace: str, device: str, address: str, mac: str) -> None:
    """Who is at ``address`` need not be asked on that device; a route leads there."""

    def note(ip: Any) -> None:
        index = index_of(ip, device)
        ip.neigh("replace", dst=address, lladdr=mac, ifindex=index, state=_PERMANENT)
        ip.route("replace", dst=f"{address}/32", oif=index, scope="link")

    netlink(namespace, note)


@contextlib.contextmanager
def believed(namespace: str, device: str, address: str, mac: str) -> Iterator[None]:
    """A machine takes ``mac`` for the owner of ``address``, as a forger of ARP could have it."""
    netlink(
        namespace,
        lambda ip: ip.neigh(
            "replace", dst=address, lladdr=mac, ifindex=index_of(ip, device), state=_PERMANENT
        ),
    )
    try:
        yield
    finally:
        netlink(namespace, lambda ip: ip.neigh("del", dst=address, ifindex=index_of(ip, device)))


def mac_of(namespace: str, device: str) -> str:
    """The address of that device on Ethernet."""
    return str(
        netlink(
            namespace,
            lambda ip: ip.link("get", index=index_of(ip, device))[0].get_attr("IFLA_ADDRESS"),
        )
    )
