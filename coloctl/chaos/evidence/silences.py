"""Find when a client was not served, from the replies that it got; pure.

Called by `chaos.evidence.chronicle`, through which checks, reports and benches ask.
Note: a silence lies between two replies of one client. Only `Replies.spanning` returns silences
that never ended, with ``ended`` false.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import merge
from itertools import pairwise

from coloctl.chaos.workloads.history import Op, OpStatus


@dataclass(frozen=True)
class Silence:
    """A time without a reply to ``client``, from one reply to its next one.

    ``client`` -1 stands for all clients of the workload: none of them got a reply.
    """

    workload: str
    client: int
    from_s: float
    to_s: float
    ended: bool = True  #: false: no reply came any more, ``to_s`` is the end of the run

    @property
    def ms(self) -> float:
        return (self.to_s - self.from_s) * 1000


@dataclass(frozen=True)
class Outage:
    """Silences that ended after a moment, milliseconds.

    None when no client had two replies in a row of which the later one came after that moment.
    """

    longest_ms: float | None  #: the longest one of any client
    first_reply_ms: float | None  #: to the end of the first of the clients' longest ones


class Replies:
    """The times at which each client was served, for many questions about its silences."""

    def __init__(self, histories: Mapping[str, Iterable[Op]]) -> None:
        """Collect the acknowledgements by workload and client."""
        found: dict[tuple[str, int], list[float]] = defaultdict(list)
        self._closed: dict[tuple[str, int], float] = {}
        for workload, history in histories.items():
            for op in history:
                if op.outcome is OpStatus.OK:
                    found[workload, op.client].append(op.at_s)
                elif op.note.startswith("closed "):
                    self._closed.setdefault((workload, op.client), op.at_s)
        self._clients = {key: sorted(times) for key, times in sorted(found.items())}

    def of_workload(self, workload: str) -> list[float]:
        """Return when any client of the workload was served, in order."""
        return list(merge(*(t for (name, _), t in self._clients.items() if name == workload)))

    def longest(
        self,
        *,
        began_after_s: float = -math.inf,
        ended_after_s: float = -math.inf,
        began_before_s: float = math.inf,
        ended_by_s: float = math.inf,
        workload: str | None = None,
    ) -> list[Silence]:
        """Return the longest silence of each client among those within all limits.

        A client that has no such silence is left out.
        """
        found = []
        for (name, client), times in self._clients.items():
            if workload is not None and name != workload:
                continue
            begun = bisect_left(times, began_after_s) + 1
            first = max(begun, bisect_right(times, ended_after_s))
            end = min(bisect_left(times, began_before_s) + 1, bisect_right(times, ended_by_s))
            gaps = [(b - a, b, a) for a, b in pairwise(times[first - 1 : end])]
            if gaps:
                _, to_s, from_s = max(gaps)
                found.append(Silence(name, client, from_s, to_s))
        return found

    def outage(
        self,
        from_s: float,
        *,
        began_before_s: float = math.inf,
        ended_by_s: float = math.inf,
        workload: str | None = None,
    ) -> Outage:
        """Measure the longest silence of each client among those that ended after ``from_s``.

        A reply that was on its way at ``from_s`` ends a short one, so the longest is another.
        """
        longest = self.longest(
            ended_after_s=from_s,
            began_before_s=began_before_s,
            ended_by_s=ended_by_s,
            workload=workload,
        )
        if not longest:
            return Outage(None, None)
        return Outage(
            round(max(one.to_s - one.from_s for one in longest) * 1000, 1),
            round((min(one.to_s for one in longest) - from_s) * 1000, 1),
        )

    def longest_ms(self, from_s: float, to_s: float) -> float | None:
        """Measure the longest silence of which both replies came in that time; None without."""
        found = self.longest(began_after_s=from_s, ended_by_s=to_s)
        return max((round(one.ms, 1) for one in found), default=None)

    def spanning(self, at_s: float, until_s: float, workload: str | None = None) -> list[Silence]:
        """Return the silence at that moment of each client that was served before it.

        A client that had closed its connection by then is left out. One that gets no reply after
        ``at_s`` is silent until ``until_s``, with ``ended`` false.
        """
        found = []
        for (name, client), times in self._clients.items():
            place = bisect_right(times, at_s)
            closed = self._closed.get((name, client), math.inf) <= at_s
            if place == 0 or closed or (workload is not None and name != workload):
                continue
            ended = place < len(times)
            to_s = times[place] if ended else max(until_s, at_s)
            found.append(Silence(name, client, times[place - 1], to_s, ended))
        return found
