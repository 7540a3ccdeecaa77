"""A pair whose machines are reached over a slow ssh starts, serves, survives, and stops.

Method: the management network of the lab of machines delays what passes by 150 ms each way, at
each machine's end; the replication network and the guest's are as quick as ever. The round trips
that a start waits for, one after the other, are counted: a slow way multiplies each of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sshhost
from support.clients import ask, clients
from support.pairs import supervised
from support.rounds import counted

from coloctl.chaos.checks.verdict import Validity, worst
from coloctl.cli.verbs.start import preflight
from coloctl.colo.inspect import prepare
from coloctl.lab import machine_pair
from coloctl.lab.impairment import Impairment
from coloctl.lab.machines import Machines
from coloctl.model.pair import PairSpec
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

DELAY_MS = 150.0
#: Round trips, one after the other. A look before: the files, the QEMUs and what is known of them,
#: the fresh-code plugin; then disks, frames and certificates, and the rooms. Before these things
#: were asked side by side it were 43, and 46 where a QEMU had to be asked for its dialect.
LOOK_TRIPS = 12
#: From the start to a guest that runs: it was 55.
GUEST_TRIPS = 32


@pytest.fixture
def lab() -> Iterator[Machines]:
    with Machines.up(f"t{os.getpid()}-slowssh") as standing:
        for name in ("management-a", "management-b"):
            standing.link(name).impair(Impairment(delay_ms=DELAY_MS))
        yield standing


async def test_a_pair_over_a_slow_ssh_starts_survives_its_primary_and_stops(
    machine_spec: PairSpec, lab: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await preflight(machine_spec, protect=True)  # so that what a QEMU knows is known
    with counted(monkeypatch) as trips:
        facts = await preflight(machine_spec, protect=True)
        looked = trips.serial
        ground = await prepare(machine_spec, facts, stays=True)
        async with supervised(machine_spec, ground) as stage:
            before = trips.serial
            await stage.start(protected=False)
            began = trips.serial - before
            await stage.start()
            assert await ask(lab, "PING") == "+PONG"
            for vm in (stage.primary, stage.secondary):
                assert vm.host.reach.round_trip_ms >= 2 * DELAY_MS, vm.host.reach
            with clients(lab, tmp_path / "history") as at_work:
                await at_work.acknowledged(20)
                assert stage.state.protection is Protection.COLO
                lost, at_s = stage.primary, time.monotonic()
                await lost.process.kill(30)
                await stage.until_protection(Protection.UNPROTECTED)
                assert stage.primary.node != lost.node
                await at_work.acknowledged(5)
                verdicts = at_work.verdicts(at_s)
            assert worst(verdicts) is Validity.VALID, verdicts
            assert await acts.stop(stage.state, force=True) == "killed"
    assert looked <= LOOK_TRIPS and began <= GUEST_TRIPS, (looked, began)
    for name in ("hv1", "hv2"):
        disks = lab.machine(name).here(machine_pair.image_of(machine_spec.name)).parent
        assert not list(disks.glob("*.qcow2.*.qcow2")), name  # its overlays are gone
