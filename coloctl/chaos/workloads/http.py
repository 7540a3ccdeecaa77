"""Ask a web server over and over, each client over one connection that is kept alive.

Called by `chaos.workloads` as a process of its own; the port is that of `lab.guest`.
"""

from __future__ import annotations

from coloctl.chaos.workloads import PacedParams
from coloctl.chaos.workloads.client import Client, ClientKind, ConnectionLost, GuestConnection, main
from coloctl.chaos.workloads.history import OpStatus
from coloctl.lab.guest import WEB_PORT

REQUEST = "GET /boot-id HTTP/1.1\r\nHost: {host}\r\n\r\n"


def get(line: GuestConnection, host: str) -> tuple[int, str]:
    """Send one GET and return status and body; raises `ConnectionLost` for what is no answer."""
    line.send(REQUEST.format(host=host).encode())
    head = line.receive_until(b"\r\n\r\n").decode("latin-1")
    status, length = answered(head)
    return status, line.receive(length).decode("latin-1").strip()


def answered(head: str) -> tuple[int, int]:
    """Parse status and length of the body from the head of an answer.

    Raises `ConnectionLost` for what is no answer.
    """
    first, *fields = head.splitlines() or [""]
    named = {
        name.strip().lower(): value.strip()
        for name, _, value in (field.partition(":") for field in fields)
    }
    try:
        version, status, *_ = first.split()
        if version != "HTTP/1.1" or named.get("connection", "").lower() == "close":
            raise ConnectionLost(f"not kept alive: {first}")
        return int(status), int(named["content-length"])
    except (ValueError, KeyError) as error:
        raise ConnectionLost(f"no answer of a web server: {first[:60]!r}") from error


def work(client: Client[PacedParams]) -> None:
    """Send one request after the other until the load ends."""
    with GuestConnection(client.host, WEB_PORT) as line:
        client.opened(line.identity())
        while client.paused(client.params.pause_ms):
            with client.under_way():
                status, boot_id = get(line, client.host)
            client.note(OpStatus.OK if status == 200 else OpStatus.FAIL, value=[status, boot_id])
            client.n += 1
        client.closed(line.identity())


if __name__ == "__main__":
    main(ClientKind(PacedParams, work))
