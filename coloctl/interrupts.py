"""Defer Ctrl-C in a block that makes something, until its maker knows how to end it again.

Called by `control.daemon.spawn`, `chaos.run.testbed` and `lab.netns`. Example: a supervisor is
started, and the next line keeps it in a variable. A Ctrl-C between the two would leave a process
that no clean-up knows; on a busy machine that time is long.

`interruptible` is called by verbs that build a lab (`cli.verbs.chaos`, `cli.verbs.bench`,
`cli.verbs.demo`) and by `chaos.run.worker`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


def interruptible() -> None:
    """Make Ctrl-C and SIGTERM break off what is under way; both clear it away.

    A CI that cancels a job sends SIGTERM; a shell starts what it puts into the background with
    SIGINT ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def deferred(*, raise_after: bool = True) -> Iterator[None]:
    """Defer a Ctrl-C in the block to its end; with ``raise_after=False`` ignore it.

    SIGTERM as well, where a handler of Python's is set for it. Several are one. At the end the
    handler from before is called, which raises `KeyboardInterrupt` by default: in the place of an
    error of the block, too, which stays its context. Has no effect in another thread, as Python
    interrupts the main thread alone, nor where a handler was set that is not Python's.
    """
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    if not callable(before[signal.SIGTERM]):
        del before[signal.SIGTERM]  # it ends the process at once
    if threading.current_thread() is not threading.main_thread() or None in before.values():
        yield
        return
    came: list[int] = []
    for one in before:
        signal.signal(one, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        if came and raise_after and callable(handler := before[signal.Signals(came[0])]):
            handler(came[0], None)
