"""Compare a primary's disk with a replica's digests, and print where they differ; a program.

Started by `colo.verify` beside the primary; reads with `nbd.scan` and writes nothing to a disk.

Its first line on stdin is ``{"compare": SOURCE, "key": HEX, "rate": BYTES_PER_S}``; the lines of
`nbd.digest` of the replica follow. It prints ``{"at": ..., "read": ...}`` now and then and
``{"done": true, "at": ..., "read": ..., "differs": [[BEGIN, END], ...], "chunks": N}`` at the end,
or ``{"failed": SENTENCE}``. Neighbouring chunks that differ are one range.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from coloctl.nbd import wire
from coloctl.nbd.client import NbdClient, connect
from coloctl.nbd.mend import PROGRESS_S, Comparison, SendLimit
from coloctl.nbd.output import print_all
from coloctl.nbd.scan import GENTLE, Grain

Message = dict[str, Any]

#: Ranges that are reported; of a disk that differs in more places, so many are enough to act upon.
RANGES_MAX = 4096


class Differences:
    """Ranges of chunks that differ, collected; bounded."""

    def __init__(self, grain: Grain) -> None:
        self.ranges: list[list[int]] = []
        self.chunks = 0
        self._grain = grain

    def put(self, begin: int, end: int, data: memoryview | None) -> None:
        """Note one chunk."""
        self.chunks += 1
        if self.ranges and self.ranges[-1][1] == begin:
            self.ranges[-1][1] = end
        elif len(self.ranges) < RANGES_MAX:
            self.ranges.append([begin, end])


def compare(
    source: NbdClient, key: bytes, digests: Iterable[Message], grain: Grain, rate: int = 0
) -> Iterator[Message]:
    """Yield the messages of the comparison. Raises `NBDFailed`."""
    found, pace = Differences(grain), SendLimit(rate)
    comparison = Comparison(source, found, key, grain)
    told_s, read = time.monotonic(), 0
    for line in digests:
        if "failed" in line:
            raise wire.NBDFailed(str(line["failed"]))
        if "over" in line:
            break
        theirs = None if "zeros" in line else bytes.fromhex(line["digests"])
        comparison.hear(line["begin"], line["end"], theirs)
        pace.sent(comparison.read - read)
        read = comparison.read
        if time.monotonic() - told_s >= PROGRESS_S:
            told_s = time.monotonic()
            yield {"at": comparison.at, "read": read}
    if not comparison.complete:
        raise wire.NBDFailed(f"the digests end at {comparison.at}")
    yield {
        "done": True,
        "at": comparison.at,
        "read": read,
        "differs": found.ranges,
        "chunks": found.chunks,
    }


def run(stdin: TextIO) -> Iterator[Message]:
    """Run the task of the first line. Raises `NBDFailed`."""
    told = json.loads(stdin.readline())
    source = connect(told["compare"], [wire.BASE_ALLOCATION])
    try:
        lines = (json.loads(line) for line in stdin)
        key, rate = bytes.fromhex(told["key"]), int(told.get("rate", 0))
        yield from compare(source, key, lines, GENTLE, rate)
    finally:
        source.close()


if __name__ == "__main__":
    sys.exit(print_all(run(sys.stdin)))
