"""The supervisors that are broken on purpose are broken, and nobody else is who finds them there.

What they do to a real pair, and that judges see it, is shown by the scenarios in docs/chaos.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

BROKEN = Path(__file__).parents[2] / "broken"
ASKS = """
import importlib, inspect
from pathlib import Path
from coloctl.ha.failover import Failover
from coloctl.supervisor.state import PairState
act = importlib.import_module("coloctl.supervisor.acts.failover")
book = act.FailoverBook
seams = (Failover.fence, book.fenced, act.end, book.claim, PairState.note)
print(*(Path(inspect.getsourcefile(seam)).name == "sitecustomize.py" for seam in seams))
"""
UNFENCED, HASTY, WHOLE = "True True True False False", "False False False True True", "False " * 5


@pytest.mark.parametrize(
    ("kind", "argument", "expected"),
    [
        ("unfenced", "--control-fd", UNFENCED),
        ("hasty", "--control-fd", HASTY),
        ("hasty", "coloctl.control.daemon.watcher --control-fd", WHOLE.strip()),
    ],
)
def test_only_a_supervisor_is_broken(kind: str, argument: str, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASKS, *argument.split()],
        env={**os.environ, "PYTHONPATH": str(BROKEN / kind)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (expected, "")
