"""Clients that have the guest write blocks to its disk; each is on the disk when acknowledged.

What a block holds follows from its client and number. Its checksum is made here, of what was sent,
and made again here of what the guest read from its disk in the end.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any

from coloctl.chaos.workloads import BlocksParams
from coloctl.chaos.workloads.blocks import Blocks
from coloctl.chaos.workloads.client import Client, ClientKind, main
from coloctl.chaos.workloads.history import OpStatus


def block(client: int, n: int, size: int) -> bytes:
    """Block ``n`` of that client; never all zeros, which is what a hole in a file holds."""
    return hashlib.shake_128(f"block {client}:{n}".encode()).digest(size)


def checksums(held: bytes, size: int) -> dict[int, int]:
    """Compute the checksum of each block of a client's file that was ever written, by number."""
    blocks = {n: held[n * size : (n + 1) * size] for n in range(-(-len(held) // size))}
    return {n: zlib.crc32(data) for n, data in blocks.items() if data.strip(b"\0")}


def work(client: Client[BlocksParams]) -> None:
    """Write one block after the other until the load ends."""
    size = client.params.block_bytes
    with Blocks(client.host) as disk:
        client.opened(disk.identity())
        while client.paused(client.params.pause_ms):
            data = block(client.number, client.n, size)
            value = zlib.crc32(data)
            with client.under_way(value=value):
                refused = disk.write(client.number, client.n * size, data)
            if refused:
                # An error of the disk, not of the connection: its content here is unknown.
                client.note(OpStatus.INFO, note=refused, value=value)
            else:
                client.note(OpStatus.OK, value=value)
            client.n += 1
        client.closed(disk.identity())


def read_back(host: str, params: BlocksParams, numbers: Sequence[int]) -> Any:
    """Return the checksums of each client's blocks, as the guest's disk holds them."""
    with Blocks(host) as disk:
        return {n: checksums(disk.read(n), params.block_bytes) for n in numbers}


if __name__ == "__main__":
    main(ClientKind(BlocksParams, work, read_back))
