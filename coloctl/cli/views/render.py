"""Draw tables, bars and the timeline of a failover; pure.

Called by the verbs that draw, such as `cli.verbs.history` and `cli.acting`, and by
`cli.views.pair`. Nothing is asked here, nothing is printed.
"""

from __future__ import annotations

import io
import re
import sys

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from coloctl.model.timeline import FailoverStep, FenceRecord, Timeline

#: Width of the longest bar of a timeline, characters.
BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_FILLING = re.compile(r" +$", re.MULTILINE)


class _Trimmed(io.StringIO):
    """Standard output, without the blanks that fill lines up."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        sys.stdout.write(_FILLING.sub("", text))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()


def console() -> Console:
    """Return standard output as rich sees it; no colour under NO_COLOR or without a terminal."""
    return Console(highlight=False, file=None if sys.stdout.isatty() else _Trimmed())


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


def plain_table(*columns: str) -> Table:
    """Make a table without lines, its heads dim."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def plain_grid() -> Table:
    """Make a grid of mark, name and sentence; no sentence is cut off, however narrow it gets."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_column(overflow="fold")
    return grid


def milliseconds(value: float | None, digits: int = 1) -> str:
    """Format a length of time that may not be known."""
    return "-" if value is None else f"{value:.{digits}f} ms"


def timeline(pair: str, done: Timeline) -> RenderableType:
    """Draw a failover: the survivor, and the steps as bars on one time axis."""
    line = Text.assemble(
        (pair, "bold"), f" runs on node {done.survivor}, which was the "
        f"{done.role_before}; node {done.lost} is fenced.",
    )  # fmt: skip
    return Group(line, *occasion(done), Text(), timeline_steps(done))


def occasion(done: Timeline) -> list[Text]:
    """Return the cause of a failover, as far as its timeline names it."""
    said = [f"cause {done.cause}"] if done.cause else []
    if done.fault_ms is not None:
        said.append(f"noticed {-done.fault_ms:.1f} ms after the fault")
    return [Text(", ".join(said), style="dim")] if said else []


def timeline_steps(done: Timeline) -> RenderableType:
    """Draw the steps of a failover, when each was done and how long it took."""
    steps = sorted(done.steps.items(), key=lambda step: step[1])
    whole = max((at for _, at in steps), default=0.0)
    table = plain_table("STEP")
    table.add_column("AT", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("", style="dim", overflow="fold")
    before = 0.0
    for step, at in steps:
        beyond = "; the point of no return" if step == done.point_of_no_return else ""
        table.add_row(
            step,
            f"{at:.1f} ms",
            Text(bar(before, at, whole), style="green" if step == FailoverStep.RUNNING else "cyan"),
            step_meaning(step, done.fence) + beyond,
        )
        before = at
    return Padding(table, (0, 0, 0, 0))


def step_meaning(step: str, fence: FenceRecord | None = None) -> str:
    """Return what a step of a failover means; empty for one that this version does not know.

    ``fence`` names the ground of the fence, where it is known.
    """
    if step == FailoverStep.FENCED and fence is not None:
        return fence.ground
    known = FailoverStep.__members__.values()
    return FailoverStep(step).meaning if step in known else ""


def bar(begin: float, end: float, whole: float, width: int = BAR_WIDTH) -> str:
    """Draw a bar from ``begin`` to ``end`` on an axis of ``whole``, at least an eighth wide."""
    if whole <= 0:
        return ""
    cells = round(begin / whole * width)
    eighths = max(1, round((end - begin) / whole * width * 8))
    full, part = divmod(eighths, 8)
    return " " * cells + "█" * full + (_EIGHTHS[part] if part else "")
