"""Fill the folder that a run leaves for a closer look.

Called by `chaos.run.runner` while the pair is there and by `chaos.run.batch` at the end; calls
`chaos.report` for the page. What belongs to the pair must be kept before the pair is removed.
Invariant: a file that cannot be made keeps no other one out and fails no run; missing.json lists
what is not there, and why.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coloctl import paths
from coloctl.chaos import report
from coloctl.chaos.faults.fault import Ask
from coloctl.chaos.run.result import RunResult
from coloctl.chaos.run.site import Site
from coloctl.errors import ColoctlError
from coloctl.model.pair import NODES
from coloctl.regular import open_regular

#: One answer of a supervisor about itself.
ANSWER_WAIT_S = 5.0
#: Copied from the pair's own folder.
OF_THE_PAIR = ("supervisor.log", "history.jsonl")
#: Copied from the folder of each node.
OF_A_NODE = ("qemu.log", "console.log")
#: Not every pair has one: it never failed over, or ran without a supervisor of its own.
SOMETIMES = frozenset({"history.jsonl"})


def fresh(root: Path, name: str, seed: int) -> Path:
    """Create a new empty folder below ``root`` for one run; repeated runs get a number."""
    root.mkdir(parents=True, exist_ok=True)
    count = 1
    while True:
        folder = root / (f"{name}-{seed}" if count == 1 else f"{name}-{seed}-{count}")
        try:
            folder.mkdir()
        except FileExistsError:
            count += 1
        else:
            return folder


class Artifacts:
    """The content of ``folder`` so far, and what is missing there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: dict[str, str] = {}

    def keep_pair(self, name: str, site: Site, ask: Ask | None) -> None:
        """Keep the pair's logs, and the last messages between its supervisor and each QEMU.

        ``ask`` is None where no supervisor answers any more.
        """
        for part in OF_THE_PAIR:
            self.keep_file(paths.pair_dir(name) / part, part)
        for node in NODES:
            self._keep_logs(name, site, node)
            self._keep_recording(node, ask)

    def _keep_logs(self, name: str, site: Site, node: str) -> None:
        try:
            folder = site.folder(name, node)
        except ColoctlError as error:
            self.missing |= {f"{node}/{part}": error.message for part in OF_A_NODE}
            return
        for part in OF_A_NODE:
            self.keep_file(folder / part, f"{node}/{part}")

    def _keep_recording(self, node: str, ask: Ask | None) -> None:
        part = f"{node}/qmp.jsonl"
        if ask is None:
            self.missing[part] = "no supervisor answers"
            return
        try:
            lines = ask("query-recording", ANSWER_WAIT_S, node=node)
        except ColoctlError as error:
            self.missing[part] = error.message
        else:
            self.write(part, _lines(lines))

    def keep_file(self, source: Path, part: str) -> None:
        """Copy ``source`` under the name ``part``, such as a packet capture."""
        target = self.folder / part
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(open_regular(source), "rb") as file, target.open("wb") as copy:
                shutil.copyfileobj(file, copy)
        except FileNotFoundError:
            if part not in SOMETIMES:
                self.missing[part] = "it does not exist"
        except OSError as error:
            self.missing[part] = error.strerror or str(error)

    def write(self, part: str, text: str) -> None:
        """Write ``text`` to the file ``part``."""
        target = self.folder / part
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            self.missing[part] = error.strerror or str(error)

    def finish(self, result: RunResult, scenario_file: Path | None = None) -> None:
        """Write all that the result holds, its page for people, and what is missing.

        ``scenario_file`` is None where the scenario came from none.
        """
        evidence = result.evidence
        if scenario_file is None:
            self.missing["scenario.toml"] = "the scenario came from no file"
        else:
            self.keep_file(scenario_file.resolve(), "scenario.toml")
        if result.pair_file:
            self.write("pair.toml", result.pair_file)
        self.write("events.jsonl", _lines(asdict(one) for one in evidence.events))
        self.write("journal.jsonl", _lines(one.to_json() for one in evidence.journal))
        self.write("lan.jsonl", _lines(asdict(one) for one in evidence.frames))
        for work in evidence.works.values():
            history = "".join(f"{op.line()}\n" for op in work.history)
            self.write(f"history/{work.spec.name}.jsonl", history)
        self._made("outcome.json", lambda: _document(result.to_json()))
        self._made("report.html", lambda: report.page(result))
        if self.missing:
            self.write("missing.json", _document(self.missing))

    def _made(self, part: str, make: Callable[[], str]) -> None:
        """Write what ``make`` returns; an error in the drawing is no verdict on the pair.

        Each error is listed in missing.json, and the result stands.
        """
        try:
            text = make()
        except Exception as error:  # the run has its verdict already
            self.missing[part] = f"{type(error).__name__}: {error}"
        else:
            self.write(part, text)


def _document(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(row, separators=(',', ':'), default=str)}\n" for row in rows)
