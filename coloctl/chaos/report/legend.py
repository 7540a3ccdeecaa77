"""What the signs of a picture mean, and the patterns that it is drawn with; pure."""

from __future__ import annotations

from coloctl.chaos.report.lanes import SHAPES
from coloctl.chaos.report.markup import Markup, tag
from coloctl.chaos.report.strips import KINDS


def patterns() -> Markup:
    """Fills that differ without colour; they are there once for all pictures of the page."""
    return tag(
        "svg",
        tag(
            "defs",
            _pattern("hatch", "M-2 8L8 -2M0 10L10 0", 8),
            _pattern("gone", "M0 0l6 6M6 0l-6 6", 6),
            _pattern("coming", "M3 2v2", 6),
        ),
        width=0,
        height=0,
        style="position:absolute",
        aria_hidden="true",
    )


def _pattern(name: str, path: str, size: int) -> Markup:
    return tag(
        "pattern",
        tag("path", d=path),
        id=name,
        width=size,
        height=size,
        patternUnits="userSpaceOnUse",
    )


def legend() -> Markup:
    """A line of signs with their words."""
    signs = [
        *((_sign(tag("path", d=SHAPES[kind]), f"mark {kind}"), name) for kind, name in
          KINDS.items()),
        (_sign(tag("path", d="M-1 0h0", class_="ok")), "operation acknowledged"),
        (_sign(tag("path", d="M-12 0H8", class_="held"), "", tag("path", d="M8 0h0", class_="ok")),
         "a long one, from its begin"),
        (_sign(tag("path", d="M-3 -3l6 6m0 -6l-6 6", class_="fail")), "refused"),
        (_sign(tag("path", d="M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0", class_="info")),
         "nobody knows"),
        (_sign(tag("path", d="M-5 -5l10 10m0 -10l-10 10"), "broken"), "connection broke"),
        (_sign(tag("rect", x=-11, y=-6, width=22, height=12), "hurt"), "node held by a fault"),
        (_sign(tag("path", d="M-11 0h22", class_="heard")), "its frames reach the LAN"),
    ]  # fmt: skip
    return tag("ul", [tag("li", sign, words) for sign, words in signs], class_="legend")


def _sign(shape: Markup, kind: str = "", more: Markup | None = None) -> Markup:
    inner = tag("g", shape, more, class_=kind or None)
    return tag("svg", inner, viewBox="-13 -7 26 14", aria_hidden="true")
