"""Draw a stretch of a run: all lanes above one another, on one axis of time; pure.

Called by `chaos.report.sections`; calls `chaos.report.lanes` for each lane, and reads periods and
effects from `chaos.evidence.chronicle`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from coloctl.chaos.evidence.chronicle import NodePeriod
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.report import lanes, operations, strips
from coloctl.chaos.report.lanes import Lane
from coloctl.chaos.report.markup import Markup, tag
from coloctl.chaos.report.operations import DrawnWorkload
from coloctl.chaos.report.scale import LEFT, WIDTH, Latency, Window
from coloctl.chaos.report.strips import KINDS, Mark

GAP = 10.0
AXIS = 26.0
#: Half of a label below the axis may reach out to the right.
MARGIN = 24.0
#: Dots of one workload in the picture of a whole run, and in that of one fault.
DOTS_MAX, DOTS_NEAR_MAX = 6000, 1500
#: Faults that get a picture of their own.
NEAR_MAX = 6
#: Such a picture shows at most so much after the fault.
NEAR_MAX_S = 12.0


@dataclass(frozen=True)
class Album:
    """The pictures of one run; what takes long to compute is held for all of them."""

    evidence: Evidence
    works: Sequence[DrawnWorkload]
    marks: Sequence[Mark]
    protection: Sequence[NodePeriod]
    nodes: Mapping[str, Sequence[NodePeriod]]
    place: Callable[[str], str]  #: a node's name, with its machine where it has one

    @classmethod
    def of(cls, evidence: Evidence, place: Callable[[str], str] = str) -> Album:
        """Compute what all pictures of the run share; ``place`` names a node."""
        last_s = max([evidence.ended_s, *(one.at_s for one in evidence.events[-1:])])
        return cls(
            evidence,
            operations.drawn(evidence),
            strips.marks(evidence, place),
            evidence.chronicle.protection(last_s),
            evidence.chronicle.nodes(last_s),
            place,
        )

    def whole(self) -> Markup | None:
        """Draw the whole run, from just before the steady state; None if it has no event."""
        evidence = self.evidence
        moments = [
            *(one.at_s for one in evidence.events),
            *(op.at_s for work in evidence.works.values() for op in work.history),
        ]
        if not moments:
            return None
        first, last = min(moments), max(*moments, evidence.ended_s)
        lead = max(2.0, (last - evidence.steady_s) * 0.08)
        began = max(first, evidence.steady_s - lead) if evidence.faults else first
        window = Window(began, max(last, began + 0.1), evidence.steady_s)
        return self._draw(window, DOTS_MAX, "The whole run", None)

    def near(self, number: int) -> Markup:
        """Draw one fault closely; times are given since it was injected."""
        fault = self.evidence.faults[number]
        ends_s = self.evidence.chronicle.effects[number].ends_s
        span = min(max(ends_s - fault.at_s, 0.25), NEAR_MAX_S) * 1.25
        window = Window(fault.at_s - 0.15 * span, fault.at_s + span, fault.at_s)
        return self._draw(window, DOTS_NEAR_MAX, f"Around {fault.fault.name}", fault.at_s)

    def _draw(self, window: Window, most: int, title: str, timed: float | None) -> Markup:
        stack = _lanes(self, window, most, timed)
        height = sum(lane.height + _gap(lane) for lane in stack)
        drawn: list[Markup] = []
        top = 0.0
        for lane in stack:
            drawn.append(_placed(lane, top))
            top += lane.height + _gap(lane)
        return tag(
            "svg",
            tag("title", title),
            tag("desc", ". ".join(lane.about for lane in stack)),
            _axis(window, height),
            lanes.fault_bands(window, self.evidence.faults, height),
            *drawn,
            tag("line", class_="cross", x1=0, x2=0, y1=0, y2=height),
            tag("text", class_="cross", y=height + 16),
            class_="chart",
            viewBox=f"0 0 {WIDTH + MARGIN:g} {height + AXIS:g}",
            role="img",
            data_from=f"{window.from_s - window.zero_s:.4f}",
            data_span=f"{window.to_s - window.from_s:.4f}",
            data_left=f"{LEFT:g}",
            data_width=f"{WIDTH:g}",
        )


def _gap(lane: Lane) -> float:
    """Return the space below a lane; the rows of marks stand together."""
    return GAP if lane.height > lanes.ROW or lane.name == KINDS["protected"] else 0.0


def _placed(lane: Lane, top: float) -> Markup:
    names = [tag("text", lane.name, x=0.0, y=15.0, class_="lane-name")]
    names += [
        tag("text", line, x=0.0, y=31.0 + 14 * n, class_="lane-more")
        for n, line in enumerate(lane.more.splitlines())
    ]
    return tag("g", names, lane.body, transform=f"translate(0 {top:g})", class_="lane")


def _axis(window: Window, height: float) -> Markup:
    return tag(
        "g",
        [
            tag(
                "g",
                tag("line", x1=window.x(at_s), x2=window.x(at_s), y1=0.0, y2=height, class_="grid"),
                tag("text", name, x=window.x(at_s), y=height + 16, text_anchor="middle"),
            )
            for at_s, name in window.ticks()
        ],
        class_="axis",
    )


def _lanes(album: Album, window: Window, most: int, timed: float | None) -> list[Lane]:
    evidence = album.evidence
    stack = lanes.mark_rows(window, album.marks, timed=timed)
    scale = _scale(album.works, window)
    stack += [lanes.latency(window, work, scale, most) for work in album.works]
    stack.append(lanes.pauses(window, evidence.chronicle.pauses))
    stack.append(lanes.strip_row(window, "protection", album.protection))
    for node, what in album.nodes.items():
        held, heard = _held(album, window, node, what), lanes.heard(window, evidence, node)
        stack.append(lanes.strip_row(window, f"node {album.place(node)}", what, held, heard))
    return stack


def _held(album: Album, window: Window, node: str, what: Sequence[NodePeriod]) -> Markup:
    """Draw on a node's band how long a fault held it, at most to the node's death."""
    bands = []
    for one in album.evidence.faults:
        if node not in one.nodes or one.healed_s is None:
            continue
        deaths = (strip.from_s for strip in what if strip.what == "dead")
        end_s = min([one.healed_s, *(at_s for at_s in deaths if at_s > one.at_s)])
        if window.meets(one.at_s, end_s):
            x, width = window.span(one.at_s, end_s, 1.0)
            title = tag("title", f"{one.fault.kind} of node {album.place(node)}")
            bands.append(tag("rect", title, x=x, y=1.0, width=width, height=lanes.ROW - 2))
    return tag("g", *bands, class_="hurt")


def _scale(works: Sequence[DrawnWorkload], window: Window) -> Latency:
    """Choose one scale for all workloads, so that they compare."""
    took = [
        one.ms
        for work in works
        for one in work.operations
        if window.meets(one.began_s, one.ended_s)
    ]
    low = max(min(took, default=0.1), 0.05)
    high = max(max(took, default=100.0), 10 * low)
    return Latency(low / 1.5, high * 1.8, lanes.LATENCY_HEIGHT, lanes.LATENCY_TOP)
