"""How far an act is, drawn on standard error as its supervisor tells it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from coloctl.control.client import ControlEvent, OnEvent

#: The steps of `coloctl start`, in words.
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
    "agent": "asking the guest's agent to shut the guest down",
    "guest": "asking the guest to shut down",
}


def in_words(step: str, limit_s: float | None = None) -> str:
    """Describe the step for people, and how long it may take yet where that is told."""
    limit = "" if limit_s is None else f" and waiting for that, {limit_s:.0f} s at most"
    return WORDS.get(step, step) + limit


class PlainProgress:
    """One line per step: for logs and pipes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take away."""

    def on_event(self, event: ControlEvent) -> None:
        """The step or change of state is on standard error."""
        if line := plain_line(event.name, event.data):
            print(line, file=sys.stderr, flush=True)


def plain_line(name: str, data: Mapping[str, Any]) -> str | None:
    """An event of the supervisor as a line; None for those that say nothing to people."""
    if name == "STEP":
        at = f" ({data['at-ms']:.1f} ms)" if "at-ms" in data else ""
        return f"{data['act']}: {in_words(data['step'], data.get('limit-s'))}{at}"
    if name == "STATE_CHANGED":
        return f"{data['before']} -> {data['after']}: {data['reason']}"
    if name == "NODE_DEAD":
        return f"node {data['node']}: {data['how']}"
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
        """The drawing follows the event."""
        data = event.data
        if event.name == "STEP" and "at-ms" not in data:
            words = in_words(data["step"], data.get("limit-s"))
            if self._task is not None and data["step"] == self._step:
                self._progress.update(self._task, description=words)
                return
            self._finish("[green]✔[/]")
            self._step, self._began = data["step"], time.monotonic()
            self._task = self._progress.add_task(words, total=None)
        elif event.name == "PROGRESS" and self._task is not None:
            self._progress.update(self._task, completed=data["done"], total=data["total"])
        elif event.name == "NODE_DEAD":
            self._console.print(f"[red]✘[/] node {data['node']}: {data['how']}")

    def _finish(self, mark: str) -> None:
        if self._task is None:
            return
        self._progress.remove_task(self._task)
        took = time.monotonic() - self._began
        self._console.print(f"{mark} {in_words(self._step)} [dim]{took:.1f} s[/]")
        self._task = None


def _bytes_columns() -> Any:
    """Bar, bytes, rate and time left; empty for a step whose length is not known."""
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
    """What draws the events of an act: lines where there is no terminal, nothing under JSON."""
    if as_json:
        yield None
        return
    with LiveProgress() if sys.stderr.isatty() else PlainProgress() as drawn:
        yield drawn.on_event
