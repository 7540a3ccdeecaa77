"""Run a program of ours inside each supervisor of a run, before anything else.

`clock` and `reader` prepare their faults with this. Python imports one ``sitecustomize`` at its
start, so all of them share the one that is made here; a supervisor's environment leads there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from coloctl.chaos.faults.fault import Staging

#: Beside the pair file; what is in it belongs to this run.
FOLDER = "inside"


@contextlib.contextmanager
def inside(staging: Staging, program: str, variable: str, file: Path) -> Iterator[None]:
    """Have each supervisor run the file ``program``; ``variable`` names ``file`` to it.

    ``file`` lies in `FOLDER` of the run's home, which is made here and removed afterwards.
    """
    folder = file.parent
    folder.mkdir(exist_ok=True)
    try:
        with (folder / "sitecustomize.py").open("a") as begin:
            begin.write(f"import runpy\nrunpy.run_path({program!r}, run_name='__main__')\n")
        others = staging.environment.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
        if str(folder) not in others.split(os.pathsep):
            roads = [str(folder), *([others] if others else [])]
            staging.environment["PYTHONPATH"] = os.pathsep.join(roads)
        staging.environment[variable] = str(file)
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
