"""Draw the progress of downloads for the lab: bars on a terminal, lines elsewhere.

Called by `cli.verbs.lab_goods`, `cli.verbs.probe` and `cli.verbs.bench`, and by `cli.run_parts` for
runs of chaos; a `Bars.report` gets what `lab.progress` describes.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Drawing
from rich.text import Text

from coloctl.lab.progress import Progress
from coloctl.model.units import MIB

#: Work that is over by then is not worth showing: the second run says nothing.
SHOW_AFTER_S = 0.4
#: Between two lines of counted work, where nothing can be drawn.
LINE_EVERY_S = 5.0


class Bars:
    """The progress that `lab` reports, drawn on standard error while the ``with`` block lasts.

    Give `report` as the `Report` of lab's functions; it may be called from any thread.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._lock = threading.Lock()
        self._latest: Progress | None = None
        self._start = threading.Timer(SHOW_AFTER_S, self._begin)
        self._start.daemon = True
        self._shown = self._over = False
        self._drawing = Drawing(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Amount(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._line_due_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._start.cancel()
            if self._shown and self._console.is_terminal:
                self._drawing.stop()
            self._shown, self._over = False, True

    def report(self, progress: Progress) -> None:
        """Draw ``progress``, unless the whole step is over soon."""
        with self._lock:
            if self._latest is None:
                self._start.start()
            changed = self._latest is None or progress.what != self._latest.what
            self._latest = progress
            if self._shown:
                self._show(progress, changed)

    def _begin(self) -> None:
        with self._lock:
            if self._over or self._latest is None:
                return
            self._shown = True
            if self._console.is_terminal:
                self._drawing.start()
            self._show(self._latest, True)

    def _show(self, progress: Progress, changed: bool) -> None:
        if self._console.is_terminal:
            self._draw(progress)
            return
        counted = progress.done_bytes is not None
        now = time.monotonic()
        # Packages are unpacked by the hundred: counted work is printed by the clock.
        if now >= self._line_due_s if counted else changed:
            self._line_due_s = now + LINE_EVERY_S if counted else 0.0
            print(line(progress), file=sys.stderr, flush=True)

    def _draw(self, progress: Progress) -> None:
        total = progress.total_bytes
        if self._task is not None and self._drawing.tasks[0].total != total:
            self._drawing.remove_task(self._task)  # its rate was that of other work
            self._task = None
        if self._task is None:
            self._task = self._drawing.add_task(progress.what, total=total)
        self._drawing.update(
            self._task, description=progress.what, completed=progress.done_bytes or 0
        )


class _Amount(ProgressColumn):
    """Bytes, rate and time left; nothing for work whose length is not known."""

    def render(self, task: Task) -> Text:
        if not task.total:
            return Text("")
        said = f"{task.completed / MIB:.0f} of {task.total / MIB:.0f} MiB"
        if task.speed:
            said += f", {task.speed / MIB:.1f} MiB/s"
        if task.time_remaining:
            said += f", {task.time_remaining:.0f} s left"
        return Text(said)


def line(progress: Progress) -> str:
    """Format the step for a log: ``fetching 12 packages: 30 of 181 MiB``."""
    if progress.done_bytes is None:
        return progress.what
    done = progress.done_bytes / MIB
    if progress.total_bytes is None:
        return f"{progress.what}: {done:.0f} MiB"
    return f"{progress.what}: {done:.0f} of {progress.total_bytes / MIB:.0f} MiB"
