"""Ask the guest about itself, from the client's namespace.

Called by `chaos.evidence.gather` at the end of a run; starts `chaos.workloads.guest_audit` in a
namespace of `lab.network`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from coloctl.chaos.evidence.records import Audit
from coloctl.errors import LabError
from coloctl.lab import layout
from coloctl.lab.network import Lab

#: Under TCG, an hour of records is read from the disk and sent in a few seconds.
AUDIT_DEADLINE_S = 60.0


def audit(lab: Lab) -> Audit:
    """Return what the guest answers; it must have been started with ``services``.

    Raises `LabError` when it does not answer, or when what it reads from its disk is not sound.
    """
    program = [sys.executable, "-m", "coloctl.chaos.workloads.guest_audit", "--host", layout.GUEST]
    said = lab.run(program, "client", deadline_s=AUDIT_DEADLINE_S).stdout
    try:
        return parsed(json.loads(said))
    except (ValueError, KeyError) as error:
        raise LabError(f"The guest's audit cannot be read: {said[:80]!r}.") from error


def parsed(said: Mapping[str, Any]) -> Audit:
    """Convert an audit from its JSON, which has text for keys only."""
    held = {
        side: {int(client): records for client, records in said[side].items()}
        for side in ("disk", "memory")
    }
    return Audit(at_s=said["at_s"], boot_id=said["boot_id"], **held)
