"""Keep processors busy, as a machine's other work does.

Called by `chaos.faults.machine` and `bench.soak`.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

#: Ends by itself when the process that started it is gone, however it went.
_BURN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(10_000))"


@contextlib.contextmanager
def burners(count: int) -> Iterator[None]:
    """Keep so many processors busy inside the block, if the machine has them."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-I", "-S", "-c", _BURN])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield
