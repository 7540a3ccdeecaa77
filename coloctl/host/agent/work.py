"""List the operations of an agent: the names, arguments and results of what a client may ask for.

Called by `host.agent.session`; the host of another machine reads the results by the same methods.
Their annotations say how each value travels.

An ASK names a method of `OPERATIONS` in ``do``; its ``with`` has a value for every parameter. The
agent opens the streams; an answer has the number of each.

Pushes of the agent: ``death`` {hold, pid, at_s, exit_code}; ``packet`` {hold, why}: ``why`` is ""
or the reason for which the watch is over; ``over`` {hold, words}: a conversation has ended. Pushes
of the client: ``release`` {hold}; ``watch`` {hold, threads, console}, null: as before; ``meet``
{hold, session}, ``session`` in base64. BEATs: see `host.agent.beat`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from coloctl.host.agent.work_files import FileWork
from coloctl.host.agent.work_processes import ProcessWork
from coloctl.host.agent.work_wires import WireWork

#: An operation: its first parameter is the session.
Operation = Callable[..., Coroutine[Any, Any, Any]]


class Work(ProcessWork, FileWork, WireWork):
    """All operations; `host.agent.session.AgentSession` has what they need."""


#: Every operation by its name: that of the method of `Host` where there is one.
OPERATIONS: Mapping[str, Operation] = {
    name: operation
    for part in (ProcessWork, FileWork, WireWork)
    for name, operation in vars(part).items()
    if callable(operation) and not name.startswith("_")
}
