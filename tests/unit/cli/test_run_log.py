"""The log of `coloctl run`, as a terminal and as systemd's journal read it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_LOGS = """
import logging
from coloctl.cli import handed_over
handed_over.prepare()
logging.getLogger("pair").warning("the link is slow\\nand lossy")
logging.getLogger("pair").info("taking over")
logging.getLogger("pair").debug("not said")
"""


def logged(to: Path, journal: str) -> list[str]:
    """What a process wrote whose stderr is ``to`` and whose environment names that journal."""
    environment = {**os.environ, "JOURNAL_STREAM": journal}
    with to.open("w") as stream:
        subprocess.run([sys.executable, "-c", _LOGS], stderr=stream, env=environment, check=True)
    return to.read_text().splitlines()


def test_the_journal_gets_the_level_of_each_line_and_no_second_time(tmp_path: Path) -> None:
    (to := tmp_path / "stderr").touch()
    there = to.stat()
    said = logged(to, f"{there.st_dev}:{there.st_ino}")
    assert said == ["<4>the link is slow", "<4>and lossy", "<6>taking over"]


def test_who_inherits_only_the_variable_has_no_journal(tmp_path: Path) -> None:
    first, second, last = logged(tmp_path / "stderr", "8:15")
    assert first.endswith("WARNING the link is slow") and first[:2] == "20"
    assert second == "and lossy" and last.endswith("INFO taking over")
