"""Pass the output of one Python process through a pipe whose reader can be taken away.

The ``sitecustomize`` of a supervisor, written by `chaos.faults.supervisor`, runs this file by its
path; standard library only. The reader is a thread that copies to where the output went before. A
file holds its order: it reads, it sleeps while the pipe fills up, or it is gone and the pipe is
broken.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

#: The orders for the reader.
READS, ASLEEP, GONE = "reads", "asleep", "gone"
LOOK_S = 0.05
#: The least that Linux makes of a pipe.
PIPE_BYTES = 4096


def divert(file: Path) -> None:
    """Make descriptors 1 and 2 a pipe; a thread reads it as ``file`` orders."""
    before = os.dup(1)
    reads, writes = os.pipe()
    fcntl.fcntl(reads, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(reads, False)
    for fd in (1, 2):
        os.dup2(writes, fd, inheritable=True)
    os.close(writes)
    threading.Thread(target=copy, args=(reads, before, file), daemon=True).start()


def copy(reads: int, to: int, file: Path) -> None:
    """Copy the pipe to ``to`` until it ends or ``file`` orders the reader to go.

    Asleep, it fills the pipe with newlines, so that each writer has to wait or to give up; they
    reach ``to`` when it reads again. A missing file or an unknown order counts as "reads".
    """
    while (order := _order(file)) != GONE:
        if order == ASLEEP:
            fill(reads)
        else:
            try:
                while data := os.read(reads, 65536):
                    os.write(to, data)
            except BlockingIOError:
                pass
            else:
                break
        time.sleep(LOOK_S)
    os.close(reads)


def fill(pipe: int) -> None:
    """Fill the pipe to its last byte; ``pipe`` is its read end."""
    # Another description of it: that of the output itself goes on to block.
    writes = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while os.write(writes, b"\n"):
            pass
    except BlockingIOError:
        pass
    finally:
        os.close(writes)


def _order(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return READS


def begin(file: str) -> None:
    """Divert the output of this process; its reader obeys ``file``."""
    divert(Path(file))


def write(file: Path, order: str) -> None:
    """Write an order for the reader."""
    file.write_text(order)
