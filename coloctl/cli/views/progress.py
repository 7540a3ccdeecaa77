"""Draw the progress of an act on standard error, from the events of its supervisor.

Called by `cli.acting` and `cli.verbs.start` while an act is under way, and by `cli.verbs.run` for
its log; `drawing` makes a handler for the events of `control.client`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from coloctl.control.client import ControlEvent, OnEvent
from coloctl.model.pairevent import NodeDead, PairEvent, ProgressMade, StateChanged, StepReached

#: The steps of `coloctl start`, as they are shown.
WORDS = {
    "images": "looking at the disks of both nodes",
    "primary": "starting the guest's QEMU",
    "boot": "letting the guest boot",
    "link": "trying the replication link",
    "secondary": "starting an empty QEMU on the other node",
    "connect": "connecting the nodes",
    "attach": "joining the disks",
    "compare": "copying what differs on the disks",
    "compare guests": "making sure that the secondary's guest is the guest",
    "mirror": "copying the disks",
    "migrate": "sending the guest's memory",
    "first checkpoint": "taking the first checkpoint",
    "checkpoint": "taking one more checkpoint",
    "merge": "waiting until the image has the guest's last writes",
    "overlays": "writing the guest's last writes into the image",
    "let go": "letting the secondary go",
    "left": "asking the machine that is out of reach once more",
    "agent": "asking the guest's agent to shut the guest down",
    "guest": "asking the guest to shut down",
}


def in_words(step: str, limit_s: float | None = None) -> str:
    """Describe the step for people, with the time that it may still take where that is known."""
    limit = "" if limit_s is None else f" and waiting for that, {limit_s:.0f} s at most"
    return WORDS.get(step, step) + limit


class PlainProgress:
    """One line per step: for logs and pipes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave all lines where they are."""

    def on_event(self, event: ControlEvent) -> None:
        """Write the step or change of state to standard error."""
        if line := plain_line(event.happened):
            print(line, file=sys.stderr, flush=True)


def plain_line(event: PairEvent | None) -> str | None:
    """Return an event of the supervisor as a line; None for one that is not for people."""
    match event:
        case StepReached(act=act, step=step, at_ms=at_ms, limit_s=limit_s):
            at = "" if at_ms is None else f" ({at_ms:.1f} ms)"
            return f"{act}: {in_words(step, limit_s)}{at}"
        case StateChanged(before=before, after=after, reason=reason):
            return f"{before} -> {after}: {reason}"
        case NodeDead(node=node, how=how):
            return f"node {node}: {how}"
    return None


class LiveProgress:
    """A spinner for the step under way, a bar with rate and time left where bytes are known."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn

        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✔[/]"),
            TextColumn("{task.description}"),
            _bytes_columns(),
            console=self._console,
            transient=True,
        )
        self._task: Any = None
        self._step = ""
        self._began = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish("[green]✔[/]" if kind is None else "[red]✘[/]")
        self._progress.stop()

    def on_event(self, event: ControlEvent) -> None:
        """Draw what ``event`` changes."""
        match event.happened:
            case StepReached(step=step, at_ms=None, limit_s=limit_s):
                self._begin(step, in_words(step, limit_s))
            case ProgressMade(done=done, total=total) if self._task is not None:
                self._progress.update(self._task, completed=done, total=total)
            case NodeDead(node=node, how=how):
                self._console.print(f"[red]✘[/] node {node}: {how}")

    def _begin(self, step: str, words: str) -> None:
        """Show ``step`` as the one under way; the one before it is finished."""
        if self._task is not None and step == self._step:
            self._progress.update(self._task, description=words)
            return
        self._finish("[green]✔[/]")
        self._step, self._began = step, time.monotonic()
        self._task = self._progress.add_task(words, total=None)

    def _finish(self, mark: str) -> None:
        if self._task is None:
            return
        self._progress.remove_task(self._task)
        took = time.monotonic() - self._began
        self._console.print(f"{mark} {in_words(self._step)} [dim]{took:.1f} s[/]")
        self._task = None


def _bytes_columns() -> Any:
    """Return bar, bytes, rate and time left; none for a step whose length is not known."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        ProgressColumn,
        Task,
        TimeRemainingColumn,
    )
    from rich.table import Table
    from rich.text import Text

    class SpeedColumn(ProgressColumn):
        def render(self, task: Task) -> Any:
            return Text("" if task.speed is None else f"{task.speed / 2**20:.0f} MiB/s")

    parts = (
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        SpeedColumn(),
        TimeRemainingColumn(compact=True),
    )

    class BytesColumn(ProgressColumn):
        def render(self, task: Task) -> Any:
            if not task.total:
                return Text("")
            grid = Table.grid(padding=(0, 1))
            grid.add_row(*(part.render(task) for part in parts))
            return grid

    return BytesColumn()


@contextlib.contextmanager
def drawing(*, as_json: bool) -> Iterator[OnEvent | None]:
    """Return a handler that draws events: lines without a terminal, nothing under JSON."""
    if as_json:
        yield None
        return
    with LiveProgress() if sys.stderr.isatty() else PlainProgress() as drawn:
        yield drawn.on_event
