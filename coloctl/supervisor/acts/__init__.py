"""Acts on a pair: start, protect, switch over, fail over, stop, and change settings.

Each act leaves the pair in a state that the protection table knows, also when it fails or is
cancelled half-way.
"""

from __future__ import annotations

from coloctl.supervisor.acts import merge
from coloctl.supervisor.acts.failover import failover
from coloctl.supervisor.acts.fencing import confirm_fence, keep_asking
from coloctl.supervisor.acts.protect import Entered, Watch, reprotect
from coloctl.supervisor.acts.reset import reset_guest
from coloctl.supervisor.acts.start import start
from coloctl.supervisor.acts.stop import SHUTDOWN_DEADLINE_S, end, end_all, stop
from coloctl.supervisor.acts.switchover import switchover
from coloctl.supervisor.acts.tune import checkpoint, set_values
from coloctl.supervisor.acts.unprotect import unprotect

__all__ = [
    "SHUTDOWN_DEADLINE_S", "Entered", "Watch", "checkpoint", "confirm_fence", "end", "end_all",
    "failover", "keep_asking", "merge", "reprotect", "reset_guest", "set_values", "start", "stop",
    "switchover", "unprotect",
]  # fmt: skip
