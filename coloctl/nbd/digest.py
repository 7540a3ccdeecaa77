"""Print the digests of an export, a line per batch; the program that runs beside a replica.

Started by `colo.programs` for `colo.difference` and `colo.verify`; reads with `nbd.scan`.

Its first line on stdin names the export: ``{"at": {"address": ..., "port": ..., "export": ...},
"key": HEX}``. With ``"ranges": [[BEGIN, END], ...]``, whole chunks, only those are read; with
``"gentle": true`` in smaller portions, beside a guest that works. It answers with ``{"begin": 0,
"end": 8388608, "digests": HEX}`` or ``{..., "zeros": true}`` in order, without a gap where no
ranges were asked for, then ``{"over": true}``, or ``{"failed": SENTENCE}`` anywhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from coloctl.nbd import wire
from coloctl.nbd.client import NbdClient, connect
from coloctl.nbd.output import print_all
from coloctl.nbd.scan import GENTLE, Grain, Range, allocation, digest, pieces

#: Digests in one line: 8 MiB of disk, 4 KiB of text.
BATCH = 128

Message = dict[str, Any]

#: The last line of a disk that was read to its end.
OVER: Message = {"over": True}


def lines(
    client: NbdClient, key: bytes, grain: Grain, ranges: Iterable[Range] | None = None
) -> Iterator[Message]:
    """Yield the messages about an export, or about some ``ranges`` of it. Raises `NBDFailed`."""
    begin, end, batch = 0, 0, bytearray()
    for piece in pieces(client, ranges or allocation(client, grain), grain):
        gap = piece.data is None or piece.begin != end
        if batch and (gap or len(batch) >= BATCH * len(digest(b"", key))):
            yield {"begin": begin, "end": end, "digests": batch.hex()}
            batch = bytearray()
        if piece.data is None:
            yield {"begin": piece.begin, "end": piece.end, "zeros": True}
            continue
        if not batch:
            begin = piece.begin
        end = piece.end
        for at in range(0, len(piece.data), grain.chunk):
            batch += digest(piece.data[at : at + grain.chunk], key)
    if batch:
        yield {"begin": begin, "end": end, "digests": batch.hex()}
    yield OVER


def run(order: Message) -> Iterator[Message]:
    """Read the export that ``order`` names. Raises `NBDFailed`."""
    client = connect(order["at"], [wire.BASE_ALLOCATION])
    try:
        some = [Range(begin, end, zeros=False) for begin, end in order.get("ranges", ())]
        grain = GENTLE if order.get("gentle") else Grain()
        yield from lines(client, bytes.fromhex(order["key"]), grain, some or None)
    finally:
        client.close()


if __name__ == "__main__":
    sys.exit(print_all(run(json.loads(sys.stdin.readline()))))
