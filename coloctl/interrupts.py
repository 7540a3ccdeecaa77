"""Defer Ctrl-C in a block that makes something, until its maker knows how to end it again.

Called by `control.daemon.spawn`, `chaos.run.testbed` and `lab.netns`. Example: a supervisor is
started, and the next line keeps it in a variable. A Ctrl-C between the two would leave a process
that no clean-up knows; on a busy machine that time is long.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def deferred(*, raise_after: bool = True) -> Iterator[None]:
    """Defer a Ctrl-C in the block to its end; with ``raise_after=False`` ignore it.

    Several are one. At the end the handler from before is called, which raises `KeyboardInterrupt`
    by default: in the place of an error of the block, too, which stays its context. Has no effect
    in another thread, as Python interrupts the main thread alone, nor where a handler was set that
    is not Python's.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came and raise_after and callable(before):
            before(signal.SIGINT, None)
