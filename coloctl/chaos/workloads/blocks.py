"""Ask the guest's service of blocks on its disk, over one connection.

Called by `chaos.workloads.disk_writer` and `chaos.workloads.guest_audit`; the port is that of
`lab.guest`.
"""

from __future__ import annotations

from coloctl.chaos.workloads.client import ConnectionLost, GuestConnection
from coloctl.lab.guest import BLOCKS_PORT


class Blocks(GuestConnection):
    """An open connection to that service; any error of it is a `ConnectionLost`."""

    def __init__(self, host: str) -> None:
        super().__init__(host, BLOCKS_PORT)

    def write(self, client: int, at: int, data: bytes) -> str:
        """Write the bytes to the guest's disk, at that place of the client's file.

        Returns "" when they are on the disk, and otherwise the guest's error.
        """
        self.send(f"write {client} {at} {len(data)}\n".encode() + data)
        said = self._line()
        return "" if said == "ok" else said.removeprefix("error ")

    def read(self, client: int) -> bytes:
        """Read that client's file from the guest's disk; the guest drops its caches first.

        Raises `ConnectionLost` when the guest cannot read, or as `receive` does.
        """
        return self._bytes(f"read {client}")

    def append_only_file(self) -> bytes:
        """Read the append-only file of redis in the same way; raises `ConnectionLost` as `read`."""
        return self._bytes("aof")

    def boot_id(self) -> str:
        """Return the identity of the guest's current boot."""
        self.send(b"boot-id\n")
        return self._line()

    def _bytes(self, request: str) -> bytes:
        self.send(request.encode() + b"\n")
        said = self._line()
        if not said.startswith("ok "):
            raise ConnectionLost(f"the guest cannot read: {said}")
        return self.receive(int(said.removeprefix("ok ")))

    def _line(self) -> str:
        return self.receive_until(b"\n").decode("latin-1").rstrip("\n")
