"""The program that runs beside a replica: it tells the digests of an export, a line per batch.

Its first line on stdin says which: ``{"at": {"address": ..., "port": ..., "export": ...}, "key":
HEX}``. It answers with ``{"begin": 0, "end": 8388608, "digests": HEX}`` or ``{..., "zeros": true}``
in order and without a gap, then ``{"over": true}``, or ``{"failed": SENTENCE}`` anywhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from coloctl.nbd import wire
from coloctl.nbd.client import Client, connect
from coloctl.nbd.scan import Grain, allocation, digest, pieces

#: Digests in one line: 8 MiB of disk, 4 KiB of text.
BATCH = 128

Message = dict[str, Any]

#: The last line of a disk that was read to its end.
OVER: Message = {"over": True}


def lines(client: Client, key: bytes, grain: Grain) -> Iterator[Message]:
    """What the program says of an export. Raises `NBDFailed`."""
    begin, end, batch = 0, 0, bytearray()
    for piece in pieces(client, allocation(client, grain), grain):
        if batch and (piece.data is None or len(batch) >= BATCH * len(digest(b"", key))):
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


def main() -> int:
    """Tells an export's digests on stdout; 1 when it could not."""
    told = json.loads(sys.stdin.readline())
    try:
        client = connect(told["at"], [wire.BASE_ALLOCATION])
        try:
            for line in lines(client, bytes.fromhex(told["key"]), Grain()):
                print(json.dumps(line), flush=True)
        finally:
            client.close()
    except wire.NBDFailed as error:
        print(json.dumps({"failed": error.message}), flush=True)
        return 1
    except BrokenPipeError:  # nobody listens any more
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
