"""Compare the digests of two exports of one size, as two runs of `nbd.digest` print them.

Called by `colo.digests`, which compares the disks of a pair that does not run; takes digests of
zeros from `nbd.scan`.

Invariant: two exports are called alike only after the digest of every chunk of both was compared,
and both programs have printed their last line.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass

from coloctl.nbd import wire
from coloctl.nbd.digest import OVER, Message
from coloctl.nbd.scan import DIGEST, Grain, zero_digest


@dataclass(frozen=True)
class _Part:
    """Neighbouring chunks of an export; ``digests`` is None where all of them are zeros."""

    begin: int
    end: int
    digests: bytes | None


class Alike:
    """The digests of two exports, 0 and 1, compared as they come."""

    def __init__(self, key: bytes, grain: Grain = Grain()) -> None:  # noqa: B008  # frozen
        self._key, self._chunk = key, grain.chunk
        self._parts: tuple[deque[_Part], deque[_Part]] = (deque(), deque())
        self._reached = [0, 0]
        self._over = [False, False]
        self.differ = False  #: a chunk was found that is not the same

    @property
    def over(self) -> bool:
        """True when both were read to their end, or a difference was found."""
        return self.differ or all(self._over)

    @property
    def behind(self) -> int:
        """The export of which less was heard, and which has not ended."""
        if any(self._over):
            return 1 if self._over[0] else 0
        return 0 if self._reached[0] <= self._reached[1] else 1

    def hear(self, which: int, line: str) -> None:
        """Take a line that the program beside an export printed.

        Raises `NBDFailed` where the program has failed, or leaves a gap.
        """
        message: Message = json.loads(line)
        if "failed" in message:
            raise wire.NBDFailed(str(message["failed"]))
        if message == OVER:
            self._over[which] = True
            if all(self._over) and self._reached[0] != self._reached[1]:
                self.differ = True
            return
        raw = None if "zeros" in message else bytes.fromhex(message["digests"])
        part = _Part(int(message["begin"]), int(message["end"]), raw)
        whole = -(-(part.end - part.begin) // self._chunk) * DIGEST
        if part.begin != self._reached[which] or (raw is not None and len(raw) != whole):
            raise wire.NBDFailed(f"digests of {part.begin} came after {self._reached[which]}")
        self._reached[which] = part.end
        self._parts[which].append(part)
        self._compare()

    def _compare(self) -> None:
        """Compare the chunks of which both digests are known."""
        one, two = self._parts
        while one and two and not self.differ:
            begin, end = one[0].begin, min(one[0].end, two[0].end)
            self.differ = self._digests(one[0], end) != self._digests(two[0], end)
            for parts in self._parts:
                first = parts.popleft()
                if first.end > end:
                    cut = (end - begin) // self._chunk * DIGEST
                    rest = None if first.digests is None else first.digests[cut:]
                    parts.appendleft(_Part(end, first.end, rest))

    def _digests(self, part: _Part, end: int) -> bytes | None:
        """Return the digests of ``part`` up to ``end``; None where all of that is zeros."""
        if part.digests is None:
            return None
        size = end - part.begin
        found = part.digests[: -(-size // self._chunk) * DIGEST]
        whole, rest = divmod(size, self._chunk)
        zeros = zero_digest(self._chunk, self._key) * whole
        zeros += zero_digest(rest, self._key) if rest else b""
        return None if found == zeros else found
