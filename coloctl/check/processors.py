"""Compare the processors of both machines, and name a CPU model that runs on both.

Called by `check.doctor` for a pair and by `check.machine_there` for two machines; asks through
`colo.cpu_models`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coloctl.check.finding import Precondition, Severity
from coloctl.colo import cpu_models
from coloctl.colo.ground import one_machine
from coloctl.colo.inspect import accelerator, effective
from coloctl.host.base import Host
from coloctl.machine.cmdline import default_cpu
from coloctl.model import cpu
from coloctl.model.pair import NODES, NodeName

NAME = "processor"
_UNDER_TCG = (
    "Under TCG the guest's processor is QEMU's own on both nodes: the machines do not count."
)


async def examine_processors(
    hosts: Mapping[NodeName, Host],
    binaries: Mapping[NodeName, Path],
    *,
    wanted: str = "auto",
    model: str | None = None,
) -> list[Precondition]:
    """Report whether ``model`` runs on both machines, and the model that is best for both.

    ``wanted`` is `[guest] accel`; without a ``model`` the guest gets one that every machine has.
    Raises `UnsupportedQEMU` where a QEMU does not answer.
    """
    if one_machine(hosts["a"].machine, hosts["b"].machine):
        return []
    accel = effective({n: await accelerator(hosts[n], binaries[n], wanted) for n in NODES})
    if accel != "kvm":
        return [Precondition(NAME, Severity.OK, _UNDER_TCG)]
    return await compare(hosts, binaries, accel, model)


async def compare(
    hosts: Mapping[NodeName, Host], binaries: Mapping[NodeName, Path], accel: str, model: str | None
) -> list[Precondition]:
    """Report as `examine_processors` does, under that accelerator; raises `UnsupportedQEMU`."""
    found = {node: await cpu_models.ask(hosts[node], binaries[node], accel) for node in NODES}
    named = cpu_models.by_machine(found, hosts)
    own = "host" if accel == "kvm" else "max"
    if model is not None and (why := cpu.trouble(model, named)):
        offered = await cpu_models.common(found, hosts["a"], binaries["a"], accel)
        return [Precondition(NAME, Severity.ERROR, why, cpu_models.advice(offered))]
    if differ := cpu.trouble(own, named):
        offered = await cpu_models.common(found, hosts["a"], binaries["a"], accel)
        return [Precondition(NAME, Severity.INFO, differ, cpu_models.advice(offered))]
    sentence = f'Both machines have the same processor features: [guest] cpu = "{own}" may be set.'
    if model is None:
        sentence += f" Without it the guest has {default_cpu(accel).partition(',')[0]}."
    return [Precondition(NAME, Severity.OK, sentence)]
