"""Answer the guest's fetches, and keep the numbers that it fetched.

Called by `sequence.py`. The guest's script (`COUNT`) comes from here too: it fetches the numbers 1,
2, 3, ... one a second, each over a connection of its own.
"""

from __future__ import annotations

import http.server
import itertools
import threading
import time
from typing import Any

from two_kernels.machines import CLIENT

#: What iPXE runs: a number that cannot be fetched is left out, and the next one follows.
COUNT = f"""\
#!ipxe
set n:int32 0
:again
inc n
imgfetch --name number http://{CLIENT}/${{n:int32}} || echo left out ${{n:int32}}
imgfree number ||
sleep 1
goto again
"""


class Fetches:
    """The client of the guest: answers its fetches, and keeps the numbers in their order."""

    def __init__(self) -> None:
        """Begin to serve."""
        self.numbers: list[tuple[float, int]] = []
        fetches = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                word = self.path.lstrip("/")
                if word.isdecimal():
                    fetches.numbers.append((time.monotonic(), int(word)))
                body = COUNT.encode() if word == "count.ipxe" else b"fetched\n"
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer((CLIENT, 80), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    @property
    def last(self) -> int:
        return self.numbers[-1][1] if self.numbers else 0

    def after(self, moment: float) -> int:
        """Return how many were fetched since ``moment``."""
        return sum(when > moment for when, _ in self.numbers)

    def longest_gap_s(self, since: float) -> float:
        """Return the longest time without a fetch since ``since``."""
        times = [since, *(when for when, _ in self.numbers if when > since), time.monotonic()]
        return max(b - a for a, b in itertools.pairwise(times))

    def went_back(self) -> list[tuple[int, int]]:
        """Return each pair of neighbours that is not in ascending order."""
        numbers = [number for _, number in self.numbers]
        return [(a, b) for a, b in itertools.pairwise(numbers) if b <= a]

    def left_out(self) -> list[int]:
        """Return the numbers that were never asked for, though later ones were."""
        seen = {number for _, number in self.numbers}
        return [number for number in range(1, self.last) if number not in seen]
