"""List what each diagnosis asks for, in one table per phase of a pair; pure.

Called by `ha.decision`, which asks afterwards whether the survivor may run alone. Example: in COLO
a dead primary is given up (`TOGETHER`). While a secondary is being made, a dead primary ends the
pair (`JOINING`): the secondary holds nothing yet. A guest that runs alone is only watched
(`ALONE`).

Invariant: every table has an answer for every diagnosis, and every phase in which anything is
decided has a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from coloctl.model.observation import Diagnosis
from coloctl.model.pair import Role
from coloctl.model.protection import Protection


class Response(StrEnum):
    """An answer to a diagnosis, before it is asked whether it can be given.

    Note the difference: a `Response` is what the diagnosis asks for; `ha.decision.Action` is what
    will be done.
    """

    NOTHING = "nothing"
    REPORT = "report"
    GIVE_UP_IT = "give-up-it"  #: the node that the finding is about
    GIVE_UP_BY_ROLE = "give-up-by-role"  #: both live: the one that `LINK_LOSER` names
    ABANDON = "abandon"
    END = "end"
    BOOT = "boot"  #: the guest was reset: it boots alone where its secondary would not survive that
    PANIC = "panic"  #: as the policy says
    RESTART = "restart"


#: Both live and cannot reach each other: the other one keeps the guest. That is the primary,
#: because its clients are there; the secondary would serve as well.
LINK_LOSER = Role.SECONDARY

_D = Diagnosis
_R = Response

#: Both nodes hold the guest. `ha.decision` looks closer at the node and at a local disk's error.
TOGETHER: Mapping[Diagnosis, Response] = {
    _D.HEALTHY: _R.NOTHING,
    _D.PRIMARY_DEAD: _R.GIVE_UP_IT,
    _D.SECONDARY_DEAD: _R.GIVE_UP_IT,
    _D.PRIMARY_FROZEN: _R.GIVE_UP_IT,
    _D.SECONDARY_FROZEN: _R.GIVE_UP_IT,
    _D.SECONDARY_DIVERGED: _R.GIVE_UP_IT,
    _D.HOST_UNREACHABLE: _R.GIVE_UP_IT,  # only a fence can prove what no path shows
    _D.LINK_BROKEN: _R.GIVE_UP_BY_ROLE,
    _D.CHECKPOINT_STALLED: _R.GIVE_UP_IT,
    _D.REPLICA_WRITE_ERROR: _R.GIVE_UP_IT,
    _D.LOCAL_DISK_ERROR: _R.GIVE_UP_IT,
    _D.GUEST_HELD: _R.GIVE_UP_BY_ROLE,  # before the next checkpoint, at which QEMU would abort
    _D.MONITOR_HUNG: _R.REPORT,
    _D.GUEST_SHUTDOWN: _R.END,
    _D.GUEST_RESET: _R.BOOT,
    _D.GUEST_PANIC: _R.PANIC,  # both guests panic alike: a failover would win nothing
    _D.UNKNOWN: _R.REPORT,
}

#: The guest runs on the primary; the secondary is being made. A finding about the primary is only
#: reported, see `ha.decision`.
JOINING: Mapping[Diagnosis, Response] = {
    **TOGETHER,
    _D.PRIMARY_DEAD: _R.END,
    _D.PRIMARY_FROZEN: _R.REPORT,
    _D.SECONDARY_DEAD: _R.ABANDON,
    _D.SECONDARY_FROZEN: _R.ABANDON,
    _D.SECONDARY_DIVERGED: _R.ABANDON,
    _D.HOST_UNREACHABLE: _R.ABANDON,
    _D.LINK_BROKEN: _R.ABANDON,
    _D.CHECKPOINT_STALLED: _R.ABANDON,
    _D.REPLICA_WRITE_ERROR: _R.ABANDON,
    _D.LOCAL_DISK_ERROR: _R.ABANDON,
    _D.GUEST_HELD: _R.ABANDON,
}

#: There is no secondary.
ALONE: Mapping[Diagnosis, Response] = {
    **dict.fromkeys(Diagnosis, _R.REPORT),
    _D.HEALTHY: _R.NOTHING,
    _D.PRIMARY_DEAD: _R.END,
    _D.GUEST_SHUTDOWN: _R.END,
    _D.GUEST_RESET: _R.BOOT,
    _D.GUEST_PANIC: _R.PANIC,
}

#: One node is already taken for lost. Where both answer again, the primary has the newest guest,
#: and it is not known whether its session with the secondary still holds: it goes on alone.
FAILING_OVER: Mapping[Diagnosis, Response] = {
    **TOGETHER,
    **dict.fromkeys(
        (_D.HEALTHY, _D.MONITOR_HUNG, _D.GUEST_RESET, _D.GUEST_PANIC), _R.GIVE_UP_BY_ROLE
    ),
}

RESPONSES: Mapping[Protection, Mapping[Diagnosis, Response]] = {
    Protection.DOWN: ALONE,
    Protection.UNPROTECTED: ALONE,
    Protection.RESYNC: JOINING,
    Protection.MIGRATING: JOINING,
    Protection.COLO: TOGETHER,
    Protection.FAILOVER: FAILING_OVER,
}
