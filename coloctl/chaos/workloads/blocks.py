"""The guest's service of blocks on its disk, asked over one connection."""

from __future__ import annotations

from coloctl.chaos.workloads.client import Broken, Line
from coloctl.lab.guest import BLOCKS_PORT


class Blocks(Line):
    """An open connection to that service; whatever is wrong with it is a `Broken`."""

    def __init__(self, host: str) -> None:
        super().__init__(host, BLOCKS_PORT)

    def write(self, client: int, at: int, data: bytes) -> str:
        """The bytes are on the guest's disk, at that place of the client's file.

        Answers "" then, and otherwise what the guest says about it.
        """
        self.send(f"write {client} {at} {len(data)}\n".encode() + data)
        said = self._line()
        return "" if said == "ok" else said.removeprefix("error ")

    def read(self, client: int) -> bytes:
        """That client's file, as the guest's disk holds it: what the guest remembers is dropped."""
        return self._bytes(f"read {client}")

    def append_only_file(self) -> bytes:
        """The append-only file of redis, read in the same way."""
        return self._bytes("aof")

    def boot_id(self) -> str:
        """Which start of the guest this is."""
        self.send(b"boot-id\n")
        return self._line()

    def _bytes(self, request: str) -> bytes:
        self.send(request.encode() + b"\n")
        said = self._line()
        if not said.startswith("ok "):
            raise Broken(f"the guest cannot read: {said}")
        return self.receive(int(said.removeprefix("ok ")))

    def _line(self) -> str:
        return self.receive_until(b"\n").decode("latin-1").rstrip("\n")
