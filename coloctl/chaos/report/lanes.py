"""Draw the lanes of a picture, each as SVG that begins at its own top; pure.

Called by `chaos.report.chart`; calls `chaos.report.markup` for the elements.
Invariant: no meaning is in a colour alone. A mark has its row and its shape, a state its name or
pattern.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coloctl.chaos.evidence.chronicle import NodePeriod, Pause
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import FaultRecord
from coloctl.chaos.evidence.silences import Silence
from coloctl.chaos.report.markup import Markup, number, tag
from coloctl.chaos.report.operations import DrawnOperation, DrawnWorkload, thinned
from coloctl.chaos.report.scale import LEFT, WIDTH, Latency, Window, duration
from coloctl.chaos.report.strips import KINDS, Mark
from coloctl.chaos.workloads.history import OpStatus
from coloctl.model.timeline import FailoverStep

ROW = 22.0
LATENCY_HEIGHT, LATENCY_TOP = 148.0, 18.0
PAUSE_HEIGHT = 56.0
#: A name is written into a band that is wider than this, pixels per character.
CHARACTER = 7.0
#: An operation that is longer than this is drawn as a line to its end, pixels.
LINE_MIN = 6.0
LINES_MAX = 400

SHAPES = {
    "fault": "M-6 -6h12l-6 12z",
    "seen": "M0 -6l6 6l-6 6l-6 -6z",
    FailoverStep.FENCED: "M-5 -5h10v10h-10z",
    FailoverStep.PROMOTED: "M-6 5h12l-6 -11z",
    "protected": "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0z",
}


@dataclass(frozen=True)
class Lane:
    """``body`` is drawn ``height`` pixels high; ``name`` and ``more`` stand in the gutter."""

    name: str
    more: str
    height: float
    body: Markup
    about: str = ""  #: a sentence for readers who do not see it


def mark_rows(window: Window, marks: Sequence[Mark], *, timed: float | None) -> list[Lane]:
    """Draw a row per kind of mark; with ``timed`` each has its time after that moment."""
    lanes = []
    for kind, name in KINDS.items():
        here = [one for one in marks if one.kind == kind and window.holds(one.at_s)]
        drawn = [_mark(window, one, timed) for one in _apart(window, here)]
        about = f"{name}: " + ("; ".join(_when(window, one) for one in here[:20]) or "none")
        lanes.append(Lane(name, "", ROW, tag("g", *drawn, class_=f"mark {kind}"), about))
    return lanes


def _apart(window: Window, marks: Iterable[Mark]) -> list[Mark]:
    """Keep the first of marks of one kind on the same pixels."""
    kept: list[Mark] = []
    for mark in marks:
        if not kept or window.x(mark.at_s) - window.x(kept[-1].at_s) >= 3:
            kept.append(mark)
    return kept


def _when(window: Window, mark: Mark) -> str:
    return f"{mark.label}, at {mark.at_s - window.zero_s:.3f} s"


def _mark(window: Window, mark: Mark, timed: float | None) -> Markup:
    x = window.x(mark.at_s)
    said = Markup("")
    if timed is not None:
        after = (mark.at_s - timed) * 1000
        moment = "" if abs(after) < 0.05 else f"{'+' if after > 0 else '−'}{duration(abs(after))} "
        words = f"{moment} {mark.label}".strip()
        fits = x + 10 + len(words) * CHARACTER < WIDTH
        said = tag(
            "text", words, x=x + (10 if fits else -10), y=4.0,
            text_anchor=None if fits else "end", class_="said",
        )  # fmt: skip
    shape = tag("path", d=SHAPES[mark.kind], transform=f"translate({number(x)} 0)")
    return tag(
        "g", tag("title", _when(window, mark)), shape, said, transform=f"translate(0 {ROW / 2:g})"
    )


def latency(window: Window, work: DrawnWorkload, scale: Latency, most: int) -> Lane:
    """Draw one dot or line per operation, and the silences."""
    here = [one for one in work.operations if window.meets(one.began_s, one.ended_s)]

    def place(one: DrawnOperation) -> tuple[float, float]:
        return window.x(one.ended_s), scale.y(one.ms)

    shown = [one for one in here if window.holds(one.ended_s)]
    by = {kind: [one for one in shown if one.status is kind] for kind in OpStatus}
    dots = thinned(by[OpStatus.OK], place, most)
    long = sorted(
        (one for one in here if (one.ended_s - one.began_s) * window.px_per_s > LINE_MIN),
        key=lambda one: one.began_s - one.ended_s,
    )[:LINES_MAX]
    quiet = [one for one in work.silences if window.meets(one.from_s, one.to_s)]
    broken = [op for op in work.breaks if window.holds(op.at_s)]
    body = tag(
        "g",
        _grid(scale),
        _silences(window, quiet, scale.height),
        tag("path", d="".join(_line(window, one, scale) for one in long), class_="held"),
        tag("path", d="".join(f"M{number(x)} {number(y)}h0" for x, y in dots), class_="ok"),
        tag("path", d=_crosses(thinned(by[OpStatus.FAIL], place, 300)), class_="fail"),
        tag("path", d=_rings(thinned(by[OpStatus.INFO], place, 300)), class_="info"),
        [_broken(window, op.at_s, f"client {op.client}: {op.note}") for op in broken[:40]],
        class_="latency",
    )
    left_out = ", thinned" if len(by[OpStatus.OK]) > most else ""
    about = (
        f"{work.spec.name}: {len(shown)} operations, the slowest took "
        f"{duration(max((one.ms for one in shown), default=None))}; "
        + ("; ".join(f"silent for {duration(one.ms)}" for one in quiet[:20])
           or "no silence stands out")
    )  # fmt: skip
    more = f"{work.spec.clients} × {work.spec.kind}\n{len(shown):,} operations{left_out}"
    return Lane(work.spec.name, more, scale.height, body, about)


def _grid(scale: Latency) -> list[Markup]:
    return [
        tag(
            "g",
            tag("line", x1=LEFT, x2=WIDTH, y1=scale.y(ms), y2=scale.y(ms), class_="grid"),
            tag("text", name, x=LEFT - 6, y=scale.y(ms) + 3.5, text_anchor="end", class_="tick"),
        )
        for ms, name in scale.ticks()
    ]


def _silences(window: Window, found: Sequence[Silence], height: float) -> Markup:
    """Draw a band for each, with its length above it where that meets no longer one's."""
    bands, words = [], []
    taken: list[tuple[float, float]] = []
    for one in sorted(found, key=lambda one: -one.ms):
        x, width = window.span(one.from_s, one.to_s, 1.5)
        title = tag("title", f"no client was served for {duration(one.ms)}")
        bands.append(tag("rect", title, x=x, y=0.0, width=width, height=height))
        said = f"silent {duration(one.ms)}"
        half = len(said) * CHARACTER / 2
        at = min(max((x + window.x(one.to_s)) / 2, LEFT + half), WIDTH - half)
        if all(at + half <= left or at - half >= right for left, right in taken):
            taken.append((at - half, at + half))
            words.append(tag("text", said, x=at, y=13.0, text_anchor="middle"))
    return tag("g", *bands, *words, class_="silence")


def _line(window: Window, one: DrawnOperation, scale: Latency) -> str:
    y = number(scale.y(one.ms))
    return f"M{number(window.x(one.began_s))} {y}H{number(window.x(one.ended_s))}"


def _crosses(places: Iterable[tuple[float, float]]) -> str:
    return "".join(f"M{number(x - 3)} {number(y - 3)}l6 6m0 -6l-6 6" for x, y in places)


def _rings(places: Iterable[tuple[float, float]]) -> str:
    return "".join(f"M{number(x - 3.5)} {number(y)}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0" for x, y
                   in places)  # fmt: skip


def _broken(window: Window, at_s: float, words: str) -> Markup:
    where = f"translate({number(window.x(at_s))} 8)"
    return tag("g", tag("title", words), tag("path", d="M-5 -5l10 10m0 -10l-10 10"),
               class_="broken", transform=where)  # fmt: skip


def pauses(window: Window, found: Sequence[Pause]) -> Lane:
    """Draw a bar per checkpoint, as long as the guest was stopped."""
    here = [one for one in found if window.meets(one.began_s, one.ended_s)]
    top = max((one.ms for one in here), default=1.0)
    # Of those on one pixel the tallest is drawn.
    by_x = {int(window.x(one.began_s)): one for one in sorted(here, key=lambda one: one.ms)}
    spans = [(one.ms, *window.span(one.began_s, one.ended_s, 1.5)) for one in by_x.values()]
    bars = "".join(
        f"M{number(x)} {PAUSE_HEIGHT:g}v-{number(max(1.0, ms / top * (PAUSE_HEIGHT - 8)))}"
        f"h{number(width)}V{PAUSE_HEIGHT:g}z"
        for ms, x, width in spans
    )
    label = (
        tag("text", duration(top), x=LEFT - 6, y=12.0, text_anchor="end", class_="tick")
        if here
        else None
    )
    body = tag(
        "g",
        tag("line", x1=LEFT, x2=WIDTH, y1=PAUSE_HEIGHT, y2=PAUSE_HEIGHT, class_="grid"),
        label,
        tag("path", d=bars),
        class_="pauses",
    )
    about = f"{len(here)} checkpoints, the longest pause was {duration(top if here else None)}"
    return Lane("checkpoint pauses", f"{len(here)} checkpoints", PAUSE_HEIGHT, body, about)


def strip_row(window: Window, name: str, strips: Sequence[NodePeriod], *over: Markup) -> Lane:
    """Draw a band of states, with their names where there is room; ``over`` lies on it."""
    here = [one for one in strips if window.meets(one.from_s, one.to_s)]
    drawn = [_strip(window, one) for one in here]
    about = f"{name}: " + ", ".join(
        f"{one.what} from {one.from_s - window.zero_s:.2f} s" for one in here[:40]
    )
    return Lane(name, "", ROW + 6, tag("g", *drawn, *over, class_="strips"), about)


def _strip(window: Window, one: NodePeriod) -> Markup:
    x, width = window.span(one.from_s, one.to_s, 1.0)
    title = f"{one.what}, {one.from_s - window.zero_s:.3f} s to {one.to_s - window.zero_s:.3f} s"
    words = (
        tag("text", one.what, x=x + 6, y=15.5) if width > len(one.what) * CHARACTER + 8 else None
    )
    return tag(
        "g", tag("title", title), tag("rect", x=x, y=1.0, width=width, height=ROW - 2), words,
        class_=f"strip {one.what}",
    )  # fmt: skip


def heard(window: Window, evidence: Evidence, node: str) -> Markup:
    """Draw below a node's band when its frames reached the guest's LAN."""
    here = [s for s in evidence.frames if s.node == node and window.meets(s.first_s, s.last_s)]
    spans = [window.span(s.first_s, s.last_s, 1.5) for s in here[:2000]]
    path = "".join(f"M{number(x)} {ROW + 2:g}h{number(width)}" for x, width in spans)
    frames = sum(s.frames for s in here)
    return tag("path", tag("title", f"{frames} frames reached the LAN"), d=path, class_="heard")


def fault_bands(window: Window, faults: Sequence[FaultRecord], height: float) -> Markup:
    """Draw across all lanes from where a fault was injected to where it was healed."""
    bands = []
    for one in faults:
        end_s = one.healed_s if one.healed_s is not None else one.at_s
        if window.meets(one.at_s, end_s):
            x, width = window.span(one.at_s, end_s)
            if width > 2:
                bands.append(tag("rect", x=x, y=0.0, width=width, height=height))
            bands.append(tag("line", x1=x, x2=x, y1=0.0, y2=height))
    return tag("g", *bands, class_="faults")
