"""Write SVG elements as text: what is put between two tags is escaped; pure.

Used by `chaos.report` for its page, `chaos.report.lanes` and `chaos.report.chart` for pictures, and
by `chaos.run.junit`.
"""

from __future__ import annotations

import html


class Markup(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()

    def __html__(self) -> str:
        """Return it for templates, which escape everything else."""
        return self


def text(value: object) -> Markup:
    """Escape the value; characters that neither HTML nor XML allows become visible."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(visible(str(value))))


def visible(raw: str) -> str:
    r"""Write control characters as ``\x1b``: XML 1.0 has no other way to hold them."""
    return "".join(one if _allowed(one) else ascii(one)[1:-1] for one in raw)


def _allowed(one: str) -> bool:
    code = ord(one)
    return (
        one in "\t\n\r"
        or 0x20 <= code < 0x7F
        or 0xA0 <= code < 0xD800
        or 0xE000 <= code < 0xFFFE
        or code > 0xFFFF
    )


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Write ``<name ...>children</name>``; ``class_`` is class, ``stroke_width`` is stroke-width.

    An attribute that is None is left out.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{said}>{join(children)}</{name}>")


def join(parts: object) -> Markup:
    """Join all parts, one after the other; lists are flattened."""
    if isinstance(parts, list | tuple):
        return Markup("".join(join(part) for part in parts))
    return Markup("") if parts is None else text(parts)


def number(value: float) -> str:
    """Format a coordinate with one digit after the point at most."""
    return f"{value:.1f}".removesuffix(".0")


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else text(value)
