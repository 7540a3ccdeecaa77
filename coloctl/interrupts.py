"""Defer Ctrl-C where it would leave something half made that no code knows how to end.

Called by `control.daemon.spawn`, `lab.netns` and others that begin what has to be ended again.
Between its beginning and the line that knows how to end it there is always an instant, and on a
busy machine instants are long.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def deferred(*, raise_after: bool = True) -> Iterator[None]:
    """Defer Ctrl-C to the end of the block, or ignore it.

    Has no effect outside the main thread, which Python never interrupts, and where another language
    has set the handler.
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
