"""Views of pairs as tables; pure: nothing is asked, nothing is printed."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from coloctl.cli.documents import View, clock, node_state, sentence

#: What a state means to somebody who looks over from the other end of the room.
STATE_STYLE: Mapping[str, str] = {
    "colo": "green",
    "unprotected": "yellow",
    "resync": "cyan",
    "migrating": "cyan",
    "failover": "red",
    "failed": "red",
    "down": "dim",
}
#: Steps of a failover, in words.
FAILOVER_WORDS: Mapping[str, str] = {
    "fenced": "the other node is dead, proven",
    "recorded": "the generation is on disk",
    "yanked": "connections to it are cut",
    "promoted": "told to run on alone",
    "running": "the guest runs",
    "cleared": "the lost pair is cleared away",
    "merged": "what only the secondary held is in its image",
    "verified": "asked once more: it runs",
}
#: Width of the longest bar of a timeline, characters.
BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_NOTHING = Text("-", style="dim")
_FILLING = re.compile(r" +$", re.MULTILINE)
#: States in which the checkpoints that were counted are those of the pair as it is.
_COUNTING = ("colo", "failover")
#: What `status -e` says of each node.
_FACTS: Mapping[str, str] = {
    "host": "host",
    "pid": "process",
    "qemu_version": "QEMU",
    "presence": "presence",
    "run_state": "run state",
    "migration": "migration",
    "colo_mode": "COLO mode",
    "fencing": "fencing",
    "impairments": "impaired",
}


class _Trimmed(io.StringIO):
    """Standard output, without the blanks that fill lines up."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        sys.stdout.write(_FILLING.sub("", text))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()


def console() -> Console:
    """Standard output as rich sees it; without colour under NO_COLOR or without a terminal."""
    return Console(highlight=False, file=None if sys.stdout.isatty() else _Trimmed())


def statuses(looked: Sequence[View], *, extended: bool = False) -> RenderableType:
    """Pairs below each other; ``looked`` is the answer of `reach.survey`."""
    parts: list[RenderableType] = []
    for one in looked:
        if parts:
            parts.append(Text())
        parts.append(
            _unseen(one) if one["view"] is None else status(one["view"], extended=extended)
        )
    return Group(*parts)


def status(view: View, *, extended: bool = False) -> RenderableType:
    """One pair: what matters on top, its nodes below."""
    parts: list[RenderableType] = [headline(view), Text(sentence(view["reason"]), style="dim")]
    if view["progress"]:
        parts.append(_progress(view["progress"]))
    parts += [Text(), nodes(view)]
    if extended:
        parts += [Text(), details(view)]
    return Group(*parts)


def headline(view: View) -> Text:
    """Pair, protection and for how long, generation; the exposure clock while it runs."""
    state, exposed = view["protection"], view["exposed_s"]
    style = STATE_STYLE.get(state, "")
    alone = state == "unprotected" and exposed is not None
    lasting = exposed if alone else view["since_s"]
    line = Text.assemble(
        (view["name"], "bold"),
        "   ",
        ("● ", style),
        (state, f"bold {style}"),
        f" for {clock(lasting)}",
    )
    if exposed is not None and not alone:
        line.append(f"   unprotected for {clock(exposed)}", "yellow")
    return line.append("   generation ", "dim").append(str(view["generation"]))


def _progress(progress: View) -> Text:
    from coloctl.cli.progress import in_words

    line = Text.assemble(("→ ", "cyan"), f"{progress['act']}: {in_words(progress['step'])}")
    if progress["total"]:
        line.append(f", {100 * progress['done'] // progress['total']} %")
    return line


class Widest:
    """The first of several drawings that fits the terminal, or else the last."""

    def __init__(self, *drawings: RenderableType) -> None:
        self.drawings = drawings

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        *wide, last = self.drawings
        wanted = options.update(width=sys.maxsize)
        for one in wide:
            if Measurement.get(console, wanted, one).maximum <= options.max_width:
                yield one
                return
        yield last


def nodes(view: View) -> RenderableType:
    """One row per node; on a narrow terminal the figures of checkpoints but their number go."""
    figures = ("CHECKPOINTS", "PERIOD", "PAUSE p50/p99")
    return Widest(_nodes(view, figures), _nodes(view, figures[:1]))


def _nodes(view: View, figures: Sequence[str]) -> Table:
    """Checkpoints are counted at the primary."""
    table = plain_table("NODE", "ROLE", "STATE", "PROTECTION")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    for node in view["nodes"]:
        table.add_row(
            Text(node["name"], style="bold" if node["role"] == "primary" else ""),
            _NOTHING if node["role"] == "none" else Text(node["role"]),
            _state(node),
            _protection(view, node),
            *_checkpoints(view, node)[: len(figures)],
        )
    return table


def plain_table(*columns: str) -> Table:
    """A table without lines, its heads dim."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def plain_grid() -> Table:
    """A mark, a name and a sentence per row; no sentence is cut off, however narrow it gets."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_column(overflow="fold")
    return grid


def _state(node: View) -> Text:
    state = node_state(node)
    styles = {"dead": "red", "not answering": "red", "absent": "dim"}
    return Text("-" if state == "absent" else state, style=styles.get(state, ""))


def _protection(view: View, node: View) -> Text:
    """What the pair is, where it has a QEMU; a fence where that is the news."""
    if node["fencing"] not in ("clear", "fenced"):
        return Text(f"fencing {node['fencing']}", style="red")
    if node["role"] == "none":
        return Text("fenced", style="dim") if node["fencing"] == "fenced" else _NOTHING
    state = view["protection"]
    return Text(state, style=STATE_STYLE.get(state, ""))


def _checkpoints(view: View, node: View) -> list[Text]:
    counted = view["checkpoints"]
    counts = node["role"] == "primary" and view["protection"] in _COUNTING
    if not counts or not counted["count"]:
        return [_NOTHING] * 3
    pauses = f"{counted['pause_p50_ms']:.1f} / {milliseconds(counted['pause_p99_ms'])}"
    return [
        Text(str(counted["count"])),
        Text(milliseconds(counted["period_p50_ms"], digits=0)),
        Text(pauses),
    ]


def milliseconds(value: float | None, digits: int = 1) -> str:
    """A length of time that may not be known."""
    return "-" if value is None else f"{value:.{digits}f} ms"


def details(view: View) -> RenderableType:
    """All that is known: of the nodes side by side, then of the pair."""
    return Group(_node_facts(view["nodes"]), Text(), _pair_facts(view))


def _node_facts(nodes: Sequence[View]) -> Table:
    table = plain_table("")
    for node in nodes:
        table.add_column(f"NODE {node['name']}", overflow="fold")
    for key, label in _FACTS.items():
        table.add_row(Text(label, "dim"), *(_fact(node[key]) for node in nodes))
    return table


def _fact(value: object) -> Text:
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return _NOTHING if value in (None, "") else Text(str(value))


def _pair_facts(view: View) -> Table:
    counted = view["checkpoints"]
    table = plain_table("", "")
    table.show_header = False
    table.add_row(Text("checkpoint delay", "dim"), f"{counted['delay_ms']} ms")
    table.add_row(Text("last checkpoint", "dim"), _last(counted))
    table.add_row(Text("pair file", "dim"), view["spec_path"] or "-")
    table.add_row(Text("supervisor", "dim"), f"process {view['supervisor_pid']}")
    return table


def _last(counted: View) -> str:
    """The latest checkpoint's figures."""
    if counted["last_pause_ms"] is None:
        return "-"
    text = f"{milliseconds(counted['last_pause_ms'])} pause"
    if counted["last_period_ms"] is not None:
        text += f", {counted['last_period_ms']:.0f} ms after the one before"
    return text


def watched(drawn: RenderableType, every_s: float) -> RenderableType:
    """A status that renews itself, and how to leave it."""
    return Group(drawn, Text(), Text(f"every {every_s:g} s; Ctrl-C ends", style="dim"))


def _unseen(looked: View) -> RenderableType:
    """A pair whose supervisor did not answer, and what can be done."""
    name, gone = looked["name"], looked["supervisor"] == "gone"
    word = "no supervisor" if gone else "supervisor does not answer"
    hint = f"`coloctl stop {name} --force` clears what it left" if gone else "it may be frozen"
    line = Text.assemble((name, "bold"), "   ", ("● ", "red"), (word, "red"))
    return Group(line, Text(looked["error"], style="dim"), Text(hint, style="dim"))


def pairs(rows: Iterable[View]) -> Table:
    """One row per pair; ``rows`` are those of `documents.summary`."""
    table = plain_table("PAIR", "PROTECTION", "GUEST ON", "GENERATION", "EXPOSED")
    table.add_column("REASON")  # takes what room is left, on one line
    for row in rows:
        state = row["protection"]
        exposed = row["exposed_s"]
        table.add_row(
            Text(row["name"], style="bold"),
            Text(state, style=STATE_STYLE.get(state, ""))
            if state
            else Text(row["supervisor"], style="red"),
            Text(f"node {row['primary']}") if row["primary"] else _NOTHING,
            _NOTHING if row["generation"] is None else Text(str(row["generation"])),
            _NOTHING if exposed is None else Text(clock(exposed), style="yellow"),
            Text(row["reason"], style="dim", no_wrap=True, overflow="ellipsis"),
        )
    return table


def timeline(pair: str, document: Mapping[str, Any]) -> RenderableType:
    """A failover: its steps, when each was done, and what it took, as bars on one time axis."""
    steps = sorted(document["steps"].items(), key=lambda step: step[1])
    whole = max((at for _, at in steps), default=0.0)
    table = plain_table("STEP")
    table.add_column("AT", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("", style="dim", overflow="fold")
    before = 0.0
    for step, at in steps:
        table.add_row(
            step,
            f"{at:.1f} ms",
            Text(bar(before, at, whole), style="green" if step == "running" else "cyan"),
            FAILOVER_WORDS.get(step, ""),
        )
        before = at
    line = Text.assemble(
        (pair, "bold"), f" runs on node {document['survivor']}, which was the "
        f"{document['role_before']}; node {document['lost']} is fenced.",
    )  # fmt: skip
    return Group(line, Text(), Padding(table, (0, 0, 0, 0)))


def bar(begin: float, end: float, whole: float, width: int = BAR_WIDTH) -> str:
    """A bar from ``begin`` to ``end`` on an axis of ``whole``, never shorter than an eighth."""
    if whole <= 0:
        return ""
    cells = round(begin / whole * width)
    eighths = max(1, round((end - begin) / whole * width * 8))
    full, part = divmod(eighths, 8)
    return " " * cells + "█" * full + (_EIGHTHS[part] if part else "")
