"""Something that goes on beside a run, in a thread of its own, until its ``with`` block ends."""

from __future__ import annotations

import threading
from typing import Self


class Background:
    """`work` goes on from `begin` to `end`, and looks at `ended` now and then."""

    def __init__(self, name: str) -> None:
        self.ended = False
        self._thread = threading.Thread(target=self.work, name=name, daemon=True)

    def work(self) -> None:
        """What goes on; it returns soon after ``ended`` is true."""
        raise NotImplementedError

    def close(self) -> None:
        """What it used is given back; the work is over."""

    def begin(self) -> None:
        """The work goes on."""
        self._thread.start()

    def end(self) -> None:
        """The work is over."""
        self.ended = True
        self._thread.join()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
