"""A machine that was rebuilt under its name proves nothing about what ran on the one before it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.elsewhere import Elsewhere, on_another_machine, own_folder
from support.fakes import fake_state
from support.livings import SLEEP, living_qemu

from coloctl import procfs
from coloctl.cli.verbs.stop import stop
from coloctl.control.daemon.spawn import refuse_living
from coloctl.errors import FencingFailed, HostOutOfReach, NotConfirmed, PairBusy
from coloctl.host.base import Identity
from coloctl.host.process import identity_of
from coloctl.journal import Journal
from coloctl.model import event
from coloctl.model.event import Kind, Record
from coloctl.model.pair import Role
from coloctl.supervisor import discovery, given_up, leftovers
from coloctl.supervisor.leftover import JOURNAL
from coloctl.supervisor.reconcile import KnownQemu

pytestmark = pytest.mark.unit

OLD = "c8130148c8130148c8130148c8130148"  #: the id of the machine that is no more


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_folder(tmp_path, monkeypatch)


@pytest.fixture
def hv2(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """The machine of node b: within reach, and not the one that the journals below name."""
    host = on_another_machine(folder, monkeypatch)
    host.answers = True
    return host


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this machine."""
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


@pytest.fixture
def here(process: subprocess.Popen[bytes]) -> Identity:
    found = identity_of(process.pid)
    assert found is not None
    return found


def before(who: Identity, back: int = 0) -> Identity:
    """A process of the machine before: by its number and start time it could be one of this one."""
    return replace(who, start_time=who.start_time - back, machine=OLD, boot="an-earlier-boot")


def launch(
    folder: Path, node: str, role: str, who: Identity, leader: Identity | None = None
) -> None:
    data = {event.LAUNCHED: role, **who.to_json()}
    if leader is not None:
        data[event.LEADER] = leader.to_json()
    _write(folder, Record(Kind.OUTCOME, act="start", step="launch", node=node, data=data))


def prove(folder: Path, node: str, who: Identity) -> None:
    data = {event.ENDED: "sigkill", **who.to_json()}
    _write(folder, Record(Kind.OBSERVATION, node=node, data=data))


def _write(folder: Path, record: Record) -> None:
    with Journal(folder / JOURNAL) as journal:
        journal.append(record)


def typed(*words: str) -> Result:
    return CliRunner().invoke(stop, ["web", "--force", "--yes", *words])


def test_a_qemu_whose_end_the_journal_proves_is_never_listed(
    folder: Path, hv2: Elsewhere, here: Identity
) -> None:
    """Nine have ended on the machine before; of the tenth nothing is proven."""
    past = [before(here, back) for back in range(10, 0, -1)]
    for who in past:
        launch(folder, "b", "secondary", who)
        if who != past[-1]:
            prove(folder, "b", who)
    (found,) = leftovers.find(folder)
    assert found.identity == past[-1] and found.doubt
    prove(folder, "b", past[-1])
    assert leftovers.find(folder) == ()
    refuse_living(folder)
    assert typed().exit_code == 0 and not folder.exists() and not given_up.of("web")


def test_one_sentence_names_the_machine_and_the_way_out_is_without(
    folder: Path, hv2: Elsewhere, here: Identity, process: subprocess.Popen[bytes]
) -> None:
    gone = before(here)
    launch(folder, "b", "secondary", gone)
    said = (
        f"whether the secondary on node b (process {gone.pid}) still runs: ssh://hv2 is another "
        f"machine now: its machine-id is {procfs.machine_id() or 'unknown'}, and was {OLD}."
    )
    with pytest.raises(PairBusy) as busy:
        refuse_living(folder)
    assert said in busy.value.message and "still run:" not in busy.value.message
    assert "stop web --force --without b` where that machine is" in (busy.value.hint or "")
    refused = typed()
    assert isinstance(refused.exception, FencingFailed) and said in refused.exception.message
    assert folder.exists() and not given_up.of("web")

    done = typed("--without", "b")
    assert done.exit_code == 0 and f"given up: the secondary on node b (process {gone.pid})" in (
        done.stdout
    )
    assert not folder.exists() and process.poll() is None
    (one,) = given_up.of("web")
    assert (one.node, one.identity.machine) == ("b", OLD)


def test_a_primary_of_the_machine_before_asks_for_the_statement_that_it_is_off(
    folder: Path, hv2: Elsewhere, here: Identity
) -> None:
    launch(folder, "b", "primary", before(here))
    refused = typed("--without", "b")
    assert isinstance(refused.exception, NotConfirmed) and folder.exists()
    assert typed("--without", "b", "--switched-off").exit_code == 0
    assert not folder.exists() and [one.role for one in given_up.of("web")] == ["primary"]


def test_where_both_machines_are_others_both_nodes_are_given_up_at_once(
    folder: Path, hv2: Elsewhere, here: Identity
) -> None:
    """Node a is this machine: its folder was kept, and its machine-id is a new one."""
    launch(folder, "a", "primary", before(here, 1))
    launch(folder, "b", "secondary", before(here))
    refused = typed("--without", "b")
    assert isinstance(refused.exception, FencingFailed) and not given_up.of("web")
    way = "--without a --without b --switched-off"
    assert f"stop web --force {way}` where those machines" in (refused.exception.hint or "")
    refused = typed("--without", "a", "--without", "b")
    assert isinstance(refused.exception, NotConfirmed)
    assert f"stop web --force {way}`" in (refused.exception.hint or "")
    assert typed(*way.split()).exit_code == 0 and not folder.exists()
    assert {one.node for one in given_up.of("web")} == {"a", "b"}


def test_a_new_boot_proves_an_end_on_the_same_machine_alone(
    folder: Path, hv2: Elsewhere, here: Identity
) -> None:
    launch(folder, "b", "secondary", replace(here, boot="an-earlier-boot"))
    assert leftovers.find(folder) == ()
    launch(folder, "b", "secondary", before(here))
    assert [bool(one.doubt) for one in leftovers.find(folder)] == [True]


def test_a_proof_of_another_boot_with_the_same_numbers_hides_no_qemu(
    folder: Path, hv2: Elsewhere, here: Identity
) -> None:
    launch(folder, "b", "secondary", before(here))
    prove(folder, "b", before(here))
    launch(folder, "b", "secondary", here)
    (found,) = leftovers.find(folder)
    assert (found.identity, found.doubt) == (here, "")


def test_one_in_doubt_hides_no_qemu_that_holds_the_sockets_here(
    folder: Path, hv2: Elsewhere
) -> None:
    with living_qemu(folder, "b") as ours:
        launch(folder, "b", "secondary", before(ours.identity))
        assert [bool(one.doubt) for one in leftovers.find(folder)] == [True, False]
        assert isinstance(typed().exception, FencingFailed)
        assert not ours.alive() and folder.exists()


def test_a_wrapper_that_outlived_its_qemu_is_found_and_ended(
    folder: Path, hv2: Elsewhere, here: Identity, process: subprocess.Popen[bytes]
) -> None:
    dead = replace(here, start_time=here.start_time - 1)
    launch(folder, "a", "primary", dead, leader=here)
    prove(folder, "a", dead)
    (found,) = leftovers.find(folder)
    assert (found.identity, found.leader) == (here, None)
    assert typed().exit_code == 0 and not folder.exists()
    assert process.wait(5) == -9


async def test_a_supervisor_that_follows_takes_neither_for_dead_nor_fails(
    folder: Path, hv2: Elsewhere, here: Identity
) -> None:
    """A guest that runs on node a is taken over although the machine of node b is another one."""
    gone = KnownQemu(Role.SECONDARY, before(here), ended=True)
    await hv2.ready(1.0)
    assert not await discovery.lives(gone, "b", hv2)
    assert await discovery.lives(replace(gone, ended=False), "b", hv2)
    with pytest.raises(HostOutOfReach, match="another machine now"):
        await leftovers.exists(gone.identity, "b", hv2)
    async with fake_state(folder) as state:
        state.ground = replace(state.ground, hosts={**state.ground.hosts, "b": hv2})
        records = {node: recorder.record for node, recorder in state.recorders.items()}
        found = (await discovery.look(state.ground, {"b": gone}, records))["b"]
        assert (found.found.alive, found.found.known) == (False, True)
