"""Run work beside a run, in a thread of its own, until its ``with`` block ends.

The base of `chaos.evidence.listener`, `chaos.evidence.lan`, `chaos.evidence.capture` and
`chaos.evidence.inventory`.
"""

from __future__ import annotations

import threading
from typing import Self


class Background:
    """`work` runs from `begin` to `end`, and looks at `ended` now and then."""

    def __init__(self, name: str) -> None:
        self.ended = False
        self._thread = threading.Thread(target=self.work, name=name, daemon=True)

    def work(self) -> None:
        """Run until ``ended`` is true, and return soon after that."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the work used, once it is over."""

    def begin(self) -> None:
        """Start the thread of the work."""
        self._thread.start()

    def end(self) -> None:
        """Stop the work and wait for its thread."""
        self.ended = True
        self._thread.join()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
