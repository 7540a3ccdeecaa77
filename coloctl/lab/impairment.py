"""Describe the impairment of a wire that still carries, and compute each frame's fate; pure.

Called by `chaos.faults.links` through `lab.link`, and by `lab.pump` for each frame.

The terms are netem's. Where the two differ, `WireDirection` states what the lab's own pump does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from coloctl.errors import LabError

#: Bytes that may wait in one direction when no rate says better: 20 ms at 3 GB/s.
BACKLOG_BYTES = 64 << 20
#: With a rate, as much may wait as leaves within this time: a switch's buffer, not an ocean.
BACKLOG_S = 0.2
#: And never fewer bytes than this, so that a slow wire still takes a few frames at once.
BACKLOG_LEAST_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Impairment:
    """The effects of a wire on each frame. ``seed`` decides what chance does, frame by frame."""

    loss_percent: float = 0.0
    delay_ms: float = 0.0  #: each way
    jitter_ms: float = 0.0  #: the delay differs by up to this, both ways
    reorder_percent: float = 0.0  #: so many frames skip the delay and overtake those that wait
    rate_kbit: float = 0.0  #: 0: as fast as it goes
    up_s: float = 0.0  #: with ``down_s``: all passes that long, then nothing, and so on
    down_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values; raises `LabError` for a wire that cannot exist."""
        values = asdict(self)
        wrong = [name for name, value in values.items() if name != "seed" and value < 0]
        wrong += [name for name in ("loss_percent", "reorder_percent") if values[name] > 100]
        if wrong:
            raise LabError(f"A wire cannot have {wrong[0]} {values[wrong[0]]:g}.")
        if self.jitter_ms > self.delay_ms:
            raise LabError("The jitter of a wire cannot be greater than its delay.")
        if self.reorder_percent and not self.delay_ms:
            raise LabError("A wire without delay cannot change the order of its frames.")
        if bool(self.up_s) != bool(self.down_s):
            raise LabError("A wire that flaps needs both up_s and down_s.")

    @property
    def flaps(self) -> bool:
        return self.down_s > 0

    @property
    def whole(self) -> bool:
        """Frames may pass as large as they leave the sender's TCP, and be cut to size later.

        Losing, overtaking and counting bits are about frames as they are on a real wire.
        """
        return not (self.loss_percent or self.reorder_percent or self.rate_kbit)

    def document(self) -> dict[str, Any]:
        """Return a document for another process; `Impairment(**document)` is the same again."""
        return asdict(self)

    def netem(self) -> dict[str, Any] | None:
        """Return the arguments of a netem discipline, as pyroute2 takes them; None if it cannot.

        netem's chance is the kernel's own: ``seed`` does not decide it.
        """
        if self.flaps or self.rate_kbit:  # pyroute2 takes a rate for an estimator's (0.9.7)
            return None
        mapping: Mapping[str, Any] = {
            "loss": self.loss_percent,
            "delay": round(self.delay_ms * 1000),
            "jitter": round(self.jitter_ms * 1000),
            "prob_reorder": self.reorder_percent,
        }
        return {"limit": 10_000, **{key: value for key, value in mapping.items() if value}}


class WireDirection:
    """One direction of an impaired wire: the fate of each frame, in the order of their coming.

    Invariant: frames that wait leave in the order in which they came, so only those that skip the
    delay overtake; the same seed, times and sizes give the same fates.
    """

    def __init__(self, impairment: Impairment, name: str, since_s: float) -> None:
        """Begin with ``since_s`` as the time at which flapping began.

        ``name`` gives each direction a random sequence of its own.
        """
        self._wire = impairment
        self._random = Random(f"{impairment.seed}:{name}")
        self._since_s = since_s
        self._free_s = since_s  # when the last frame will have been sent at the wire's rate
        self._last_s = since_s
        self._byte_s = 8 / (impairment.rate_kbit * 1000) if impairment.rate_kbit else 0.0
        self.limit = BACKLOG_BYTES
        if self._byte_s:
            self.limit = max(BACKLOG_LEAST_BYTES, int(BACKLOG_S / self._byte_s))

    def is_down(self, now_s: float) -> bool:
        """Return whether a wire that flaps lets nothing pass at that time."""
        wire = self._wire
        return wire.flaps and (now_s - self._since_s) % (wire.up_s + wire.down_s) >= wire.up_s

    def due(self, now_s: float, size: int, waiting: int) -> float | None:
        """Compute when a frame of ``size`` bytes leaves; None when never.

        ``waiting`` is the number of bytes before it. A time that is not after ``now_s`` means at
        once, before all that wait.
        """
        wire = self._wire
        # Every frame draws the same numbers, so that the fate of one does not hang on another's.
        lost, skips, drift = (self._random.random() for _ in range(3))
        if lost * 100 < wire.loss_percent or self.is_down(now_s) or waiting + size > self.limit:
            return None
        leaves_s = now_s
        if self._byte_s:
            leaves_s = self._free_s = max(self._free_s, now_s) + size * self._byte_s
        if skips * 100 < wire.reorder_percent:
            return now_s
        delay_s = (wire.delay_ms + (2 * drift - 1) * wire.jitter_ms) / 1000
        self._last_s = max(self._last_s, leaves_s + delay_s)
        return self._last_s
