"""The sections of the page, from the top to the bottom; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from coloctl.chaos.checks.verdict import Validity
from coloctl.chaos.report import chart, legend
from coloctl.chaos.report.markup import Markup, tag
from coloctl.chaos.report.scale import duration
from coloctl.chaos.run.result import RunResult

SIGNS = {Validity.VALID: "✓", Validity.INVALID: "✗", Validity.UNKNOWN: "?"}
PROMISED = {
    Validity.VALID: "Every check that the scenario asks for holds.",
    Validity.INVALID: "A promise was broken.",
    Validity.UNKNOWN: "Too little happened to tell.",
}
#: Lines of a counterexample, and rows of faults, that a page shows.
LINES_MAX, ROWS_MAX = 20, 200


def head(outcome: RunResult, document: Mapping[str, Any]) -> Markup:
    """What was played, why, and how it ended."""
    validity, scenario = outcome.validity, outcome.scenario
    when = f" · {outcome.started_at}" if outcome.started_at else ""
    return tag(
        "header",
        tag("p", f"coloctl chaos · {scenario.name} · seed {outcome.seed}{when}", class_="kicker"),
        tag("h1", scenario.title),
        tag("p", scenario.why, class_="why"),
        tag(
            "div",
            tag("div", SIGNS[validity], class_="sign", aria_hidden="true"),
            tag(
                "div",
                tag("b", str(validity).capitalize()),
                tag("span", outcome.because() or PROMISED[validity], class_="because"),
            ),
            class_=f"verdict {validity}",
            role="status",
        ),
        _figures(document),
    )


def _figures(document: Mapping[str, Any]) -> Markup:
    works, faults = document["workloads"], document["faults"]
    pauses = document["checkpoint_pause_ms"]
    again = [
        (one["protected_again_s"] - one["struck_s"]) * 1000
        for one in faults
        if one["protected_again_s"] is not None
    ]
    kept = sum(one["connections"] for one in works) - sum(one["broken"] for one in works)
    missed = sum(bool(one["missed"]) for one in faults)
    cells = [
        ("Acknowledged", f"{sum(one['acknowledged'] for one in works):,}",
         f"of {sum(one['sent'] for one in works):,} operations"),
        ("Connections kept", str(max(kept, 0)),
         f"of {sum(one['connections'] for one in works)} opened"),
        ("Faults struck", str(len(faults) - missed),
         f"{missed} missed" if missed else "as planned"),
        ("Longest outage", duration(_most(one["outage_ms"] for one in faults)),
         "any client, around a fault"),
        ("Protected again", duration(_most(again)), "at the latest, after a fault"),
        ("Checkpoint pause", duration(pauses["p50"]),
         f"median of {pauses['n']}; longest {duration(pauses['max'])}"),
    ]  # fmt: skip
    return tag(
        "dl",
        [
            tag("div", tag("dt", name), tag("dd", value, tag("small", more)))
            for name, value, more in cells
        ],
        class_="figures",
    )


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def picture(outcome: RunResult) -> Markup:
    """The whole run on one axis, then each fault seen closely."""
    evidence = outcome.evidence
    album = chart.Album.of(evidence)
    drawn = album.whole()
    if drawn is None:
        return tag("section", tag("h2", "What happened"), tag("p", "Nothing was recorded."))
    parts = [
        legend.patterns(),
        tag("h2", "What happened"),
        tag("p", "Time runs from left to right, in seconds since the steady state. A dot is an "
            "operation when its client got the answer; its height is how long that took, on a "
            "logarithmic scale.", class_="note"),
        tag("figure", tag("div", drawn, class_="wide"), legend.legend()),
    ]  # fmt: skip
    near = evidence.faults[: chart.NEAR_MAX]
    if near:
        parts.append(tag("h2", "Each fault, seen closely"))
        if len(evidence.faults) > len(near):
            parts.append(tag("p", f"The first {len(near)} of {len(evidence.faults)} faults.",
                             class_="note"))  # fmt: skip
    for number, fault in enumerate(near):
        words = f"{fault.fault.name}: {fault.fault.kind} {fault.fault.target}"
        view = tag("div", album.near(number), class_="wide")
        parts += [tag("h3", words), tag("figure", view)]
    return tag("section", *parts, id="what-happened")


def verdicts(outcome: RunResult) -> Markup:
    """Every check, with what it rests on."""
    rows = [
        [
            tag("td", one.check, class_="name"),
            tag("td", tag("span", f"{SIGNS[one.validity]} {one.validity}",
                          class_=f"badge {one.validity}")),
            tag("td", one.because, _listed(one.counterexample)),
        ]
        for one in sorted(outcome.verdicts, key=lambda one: _ORDER[one.validity])
    ]  # fmt: skip
    return _table("Verdicts", "verdicts", ["check", "verdict", "because"], rows)


_ORDER = {Validity.INVALID: 0, Validity.UNKNOWN: 1, Validity.VALID: 2}


def _listed(lines: Sequence[str]) -> Markup | None:
    if not lines:
        return None
    more = len(lines) - LINES_MAX
    shown = [*lines[:LINES_MAX], *([f"… and {more} more"] if more > 0 else [])]
    return tag("ul", [tag("li", line) for line in shown])


def faults(document: Mapping[str, Any]) -> Markup:
    """Every fault as it was struck, and what clients felt of it."""
    rows = [
        [
            tag("td", one["name"], class_="name"),
            tag("td", _what(one)),
            tag("td", ", ".join(one["nodes"]) or "–", f" ({one['role']})" if one["role"] else None),
            _seconds(one["struck_s"]),
            _seconds(one["healed_s"]),
            tag("td", duration(one["outage_ms"]), class_="number"),
            _seconds(one["protected_again_s"]),
            tag("td", duration(one["join_ms"]), class_="number"),
            tag("td", tag("span", f"missed: {one['missed']}", class_="missed")
                if one["missed"] else None, one["note"]),
        ]
        for one in document["faults"][:ROWS_MAX]
    ]  # fmt: skip
    moments = ["#struck", "#healed", "#outage", "#protected again", "#felt of the join"]
    names = ["fault", "what", "node", *moments, "notes"]
    return _table("Faults", "faults", names, rows, of=len(document["faults"]))


def _what(fault: Mapping[str, Any]) -> str:
    when = f", at the next {fault['when']}" if fault["when"] else ""
    params = "".join(f", {key} {value}" for key, value in fault["params"].items())
    return f"{fault['kind']} {fault['target']}{params}{when}"


def _seconds(value: float | None) -> Markup:
    return tag("td", "–" if value is None else f"{value:.3f} s", class_="number")


def takeovers(document: Mapping[str, Any]) -> Markup | None:
    """Every takeover with the moments of its steps."""
    rows = [
        [
            tag("td", one["survivor"], f" (was {one['role_before']})"),
            tag("td", one["lost"]),
            tag("td", one["cause"]),
            _seconds(one["began_s"]),
            tag("td", " → ".join(f"{step} {at_ms:.0f}" for step, at_ms in
                sorted(one["steps_ms"].items(), key=lambda item: item[1]))),
        ]
        for one in document["takeovers"][:ROWS_MAX]
    ]  # fmt: skip
    if not rows:
        return None
    names = ["survivor", "lost", "cause", "#began", "steps, ms since then"]
    return _table("Takeovers", "takeovers", names, rows, of=len(document["takeovers"]))


def again(outcome: RunResult) -> Markup:
    """How to play the same run again, and on what it was played."""
    qemu = outcome.qemu
    parts: list[Markup] = [
        tag("h2", "Play it again"),
        tag(
            "div",
            tag("pre", tag("code", outcome.replay, id="replay")),
            tag("button", "Copy", type="button", data_copies="replay", hidden=True),
            class_="copy",
        ),
        tag("p", f"Played in {outcome.duration_s:.0f} s on QEMU {qemu.version or 'unknown'} "
            f"({qemu.accel or 'accelerator unknown'}), {qemu.binary}.", class_="note"),
    ]  # fmt: skip
    if outcome.artifacts is not None:
        parts.append(tag("p", f"Everything that was recorded: {outcome.artifacts}", class_="note"))
    if outcome.pair_file:
        words = tag("summary", "The pair file")
        parts.append(tag("details", words, tag("pre", outcome.pair_file)))
    return tag("section", *parts, id="play-it-again")


def _table(
    title: str, ident: str, names: Sequence[str], rows: Sequence[Sequence[Markup]], of: int = 0
) -> Markup:
    """A section with a table; a name that begins with # is that of numbers."""
    heads = [
        tag("th", name.lstrip("#"), scope="col", class_="number" if name[0] == "#" else None)
        for name in names
    ]
    if not rows:
        return tag("section", tag("h2", title), tag("p", "None.", class_="note"), id=ident)
    cut = tag("p", f"The first {len(rows)} of {of}.", class_="note") if of > len(rows) else None
    body = tag("tbody", [tag("tr", row) for row in rows])
    table = tag("table", tag("thead", tag("tr", heads)), body)
    return tag("section", tag("h2", title), tag("div", table, class_="wide"), cut, id=ident)
