"""Notice that a certificate ends soon, or would be refused, before the next secondary needs it.

Called by `supervisor.loop`; reads through `colo.tls`, and `model.encryption` words what it finds.

Invariant: no open connection is cut because of a certificate. A session outlives its certificate,
and only the next secondary needs a valid one.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from coloctl.colo import tls
from coloctl.errors import ColoctlError, HostOutOfReach, PreconditionFailed
from coloctl.model import encryption
from coloctl.model.event import Kind
from coloctl.supervisor.state import PairState

log = logging.getLogger(__name__)

#: Both machines' certificates are read so often, seconds: a renewed one is soon known.
READ_PERIOD_S = 600.0
#: They are tried again so soon while a machine is out of reach, seconds.
REACH_PERIOD_S = 5.0


async def keep_reading(state: PairState) -> None:
    """Read both machines' certificates now and then; a change is recorded. Never returns."""
    while state.spec.encrypted():
        found = await _read(state)
        if found is not None and found != state.encryption:
            if found != encryption.ENCRYPTED:
                log.warning(found)
                state.record(Kind.NOTE, data={"encryption": found})
            state.encryption = found
        await asyncio.sleep(REACH_PERIOD_S if found is None else READ_PERIOD_S)
    await asyncio.Event().wait()


async def _read(state: PairState) -> str | None:
    """Return the sentence about both certificates; None where a machine shows nothing of its own.

    A supervisor that begins has not reached any machine yet.
    """
    try:
        found = await tls.proofs(state.spec, state.ground.hosts)
    except HostOutOfReach:
        return None
    except PreconditionFailed as error:
        return encryption.sentence(state.spec, wrong=error.message)
    except ColoctlError:
        return None
    ends = {node: proof.facts.until for node, proof in found.items()}
    return encryption.sentence(state.spec, ends, datetime.now(UTC))
