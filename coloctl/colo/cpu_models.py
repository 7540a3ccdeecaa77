"""Ask both machines' QEMUs for their CPU models, and refuse a guest's model that differs.

Called by `colo.inspect` before a start and by `check.processors`; asks through `asked`, and
`model.cpu` decides. Under TCG the processor is QEMU's own, so the machines do not count.

Invariant: a model that is offered misses no feature on either machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coloctl.asked import LAUNCH_DEADLINE_S, asked
from coloctl.colo.ground import one_machine
from coloctl.errors import UnsupportedQEMU
from coloctl.host.base import Host
from coloctl.model import cpu
from coloctl.model.cpu import CpuFacts
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.qmp import cpu as qmp

Hosts = Mapping[NodeName, Host]
Binaries = Mapping[NodeName, Path]


async def require_model(spec: PairSpec, hosts: Hosts, binaries: Binaries, accel: str) -> None:
    """Require that the guest's CPU model is the same on both machines; raises `UnsupportedQEMU`.

    Without a model in the pair file the guest has one that every machine has.
    """
    model, alike = spec.guest.cpu, one_machine(hosts["a"].machine, hosts["b"].machine)
    if model is None or accel != "kvm" or alike:
        return
    found = {node: await ask(hosts[node], binaries[node], accel) for node in NODES}
    if why := cpu.trouble(model, by_machine(found, hosts)):
        offered = await common(found, hosts["a"], binaries["a"], accel)
        raise UnsupportedQEMU(why, missing=(model,), hint=advice(offered))


def by_machine(found: Mapping[NodeName, CpuFacts], hosts: Hosts) -> dict[str, CpuFacts]:
    """Return the facts by the names of the machines."""
    return {hosts[node].machine.name: found[node] for node in NODES}


def advice(offered: str | None) -> str:
    """Return the hint that names a model for both machines."""
    if offered is None:
        return "no CPU model of this QEMU runs on both machines: leave guest.cpu away"
    return f'[guest] cpu = "{offered}" runs on both machines'


async def ask(host: Host, binary: Path, accel: str) -> CpuFacts:
    """Ask for all models and for the machine's own processor; raises `UnsupportedQEMU`."""
    async with asked(binary, host, accel=accel) as session:
        own = cpu.OWN[0] if accel == "kvm" else cpu.OWN[1]
        expansion = await session.execute(qmp.expand_cpu_model(own), LAUNCH_DEADLINE_S)
        definitions = await session.execute(qmp.query_cpu_definitions(), LAUNCH_DEADLINE_S)
    return cpu.facts(expansion, definitions)


async def common(
    found: Mapping[NodeName, CpuFacts], host: Host, binary: Path, accel: str
) -> str | None:
    """Find the model with the most features that runs on both machines; None where none does.

    Raises `UnsupportedQEMU` where the QEMU of ``host``, which is asked, does not answer.
    """
    names = cpu.candidates(tuple(found.values()))
    features = {}
    async with asked(binary, host, accel=accel) as session:
        for name in names:
            answer = await session.execute(qmp.expand_cpu_model(name), LAUNCH_DEADLINE_S)
            features[name] = cpu.enabled(answer)
    return cpu.richest(features)
