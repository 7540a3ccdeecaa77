"""What can be done to a pair: start, protect, fail over, stop, and the small knobs.

Each act leaves the pair in a state that the protection table knows, also when it fails or is
cancelled half-way.
"""

from __future__ import annotations

from coloctl.supervisor.acts.failover import confirm_fence, failover
from coloctl.supervisor.acts.start import Entered, Watch, start
from coloctl.supervisor.acts.stop import SHUTDOWN_DEADLINE_S, end, end_all, stop
from coloctl.supervisor.acts.tune import checkpoint, set_checkpoint_delay

__all__ = [
    "SHUTDOWN_DEADLINE_S", "Entered", "Watch", "checkpoint", "confirm_fence", "end", "end_all",
    "failover", "set_checkpoint_delay", "start", "stop",
]  # fmt: skip
