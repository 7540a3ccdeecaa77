"""Build the QMP sequences that change the settings of a running pair; pure.

Called by `supervisor.acts.tune`, `supervisor.moves` and `colo.resync`, and shown by
`supervisor.dialogue`; the commands are those of `qmp.command`.

Invariant: each may be sent whether or not its object exists. A comparison goes with a failover, and
a copy ends when it is complete.
"""

from __future__ import annotations

from coloctl.colo.mirror_plan import resync_job
from coloctl.colo.plan import GONE, Plan
from coloctl.machine import netfilter
from coloctl.model.pair import PairSpec
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import Step


def limit_comparison(spec: PairSpec) -> Plan:
    """Set the limits of ``spec`` in the comparison of every NIC."""
    return tuple(
        Step(
            qmp.qom_set(f"/objects/{netfilter.compare_id(i)}", name, value),
            why="a comparison takes its limits while it runs" if n == i == 0 else "",
            tolerate=GONE,
        )
        for i, _ in enumerate(spec.nics)
        for n, (name, value) in enumerate(netfilter.comparison_limits(spec).items())
    )


def limit_mirrors(spec: PairSpec, rate: int) -> Plan:
    """Limit every copy of a disk that is under way to that rate, as in `Policy.mirror_rate`."""
    return tuple(
        Step(
            qmp.block_job_set_speed(resync_job(i), rate),
            why="a copy that runs takes its limit at once" if i == 0 else "",
            tolerate=("DeviceNotActive", "not found"),
        )
        for i, _ in enumerate(spec.disks)
    )
