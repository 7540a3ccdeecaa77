"""What may run on a machine that is gone for good is given up by an order, and never forgotten."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from click.testing import CliRunner, Result
from support.elsewhere import Elsewhere, on_another_machine, own_folder
from support.fakes import make_spec
from support.livings import SLEEP

from coloctl.cli.verbs.explain import explain
from coloctl.cli.verbs.fence import fence
from coloctl.cli.verbs.status import list_pairs, status
from coloctl.cli.verbs.stop import stop
from coloctl.colo import generation
from coloctl.colo.generation import Worth
from coloctl.errors import FencingFailed, NotConfirmed, PreconditionFailed, UsageError
from coloctl.host.base import Host, Identity
from coloctl.host.local import LocalHost
from coloctl.host.process import identity_of
from coloctl.journal import Journal
from coloctl.model.event import Kind, Record
from coloctl.model.pair import NODES, DiskSpec, NodeName, PairSpec
from coloctl.supervisor import given_up, leftover, leftovers, loop
from coloctl.supervisor.given_up import GivenUp

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_folder(tmp_path, monkeypatch)


@pytest.fixture
def spec(tmp_path: Path) -> PairSpec:
    images = {node: tmp_path / f"{node}.qcow2" for node in NODES}
    for image in images.values():
        image.touch()
    return replace(make_spec(nics=0), disks=(DiskSpec("disk0", images),))


@pytest.fixture
def elsewhere(folder: Path, spec: PairSpec, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    return on_another_machine(folder, monkeypatch, spec)


@pytest.fixture
def there() -> Iterator[subprocess.Popen[bytes]]:
    """What runs on the other machine."""
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


def launched(folder: Path, process: subprocess.Popen[bytes], role: str) -> None:
    who = identity_of(process.pid)
    assert who is not None
    with Journal(folder / leftover.JOURNAL) as journal:
        journal.append(Record(Kind.INTENT, "failover", "promote", generation=4))
        data = {"launched": role, **who.to_json()}
        journal.append(Record(Kind.OUTCOME, "start", "launch", "b", data=data))


def typed(*words: str) -> Result:
    return CliRunner().invoke(stop, ["web", *words])


def asked(*words: str) -> Result:
    return CliRunner().invoke(status, words)


async def started(spec: PairSpec, elsewhere: Elsewhere) -> int:
    """Start the pair as far as this goes; answers how many QEMUs were ended for it."""
    hosts: dict[NodeName, Host] = {"a": LocalHost(), "b": elsewhere}
    return len(await given_up.end(spec, hosts))


def test_what_may_run_on_a_machine_that_was_given_up_is_ended_when_it_is_back(
    folder: Path,
    spec: PairSpec,
    elsewhere: Elsewhere,
    there: subprocess.Popen[bytes],
) -> None:
    launched(folder, there, "secondary")
    refused = typed("--force", "--yes")
    assert isinstance(refused.exception, FencingFailed) and folder.exists()
    assert "stop web --force --without b` where" in (refused.exception.hint or "")
    other = typed("--force", "--yes", "--without", "a")
    assert isinstance(other.exception, FencingFailed) and not given_up.of("web")

    done = typed("--force", "--yes", "--without", "b", "-f", "json")
    assert done.exit_code == 0, done.exception
    how = json.loads(done.stdout)["how"]
    assert how.startswith(
        "nothing else was left running; given up: the secondary on node b (process"
    )
    assert not folder.exists() and there.poll() is None
    (one,) = given_up.of("web")
    assert (one.node, one.identity.pid, one.generation) == ("b", there.pid, 4)
    assert one.host == elsewhere.name
    said = (
        f"The secondary on node b (process {there.pid} on hv2) was given up with its "
        "machine and may still run; a start of the pair on that machine ends it first."
    )
    assert given_up.sentence("web") == said
    assert asked().stdout == f"No pair runs here.\nweb: {said}\n"
    assert json.loads(asked("-f", "json").stdout)["given_up"] == {"web": said}
    nothing = f"No pair called web runs here. {said}"
    assert str(asked("web").exception) == nothing
    assert str(CliRunner().invoke(explain, ["web"]).exception) == nothing
    assert CliRunner().invoke(list_pairs).stdout == f"No pair runs here.\nweb: {said}\n"
    listed = json.loads(CliRunner().invoke(list_pairs, ["-f", "json"]).stdout)
    assert (listed["pairs"], listed["given_up"]) == ([], {"web": said})
    folder.mkdir()
    assert CliRunner().invoke(list_pairs, ["-f", "tsv"]).stdout.endswith("\tgiven up\n")
    folder.rmdir()

    async def back() -> None:
        both: dict[NodeName, Host] = {node: LocalHost() for node in NODES}
        await generation.write(spec, both, "b", 3, Worth.FOLLOWING)
        assert await started(spec, elsewhere) == 1
        assert there.wait(5) == -9 and not given_up.of("web") and not given_up.sentence("web")
        marked = (await generation.read(spec, both))["b"]
        assert (marked.state, marked.generation) == (Worth.DIVERGED, 4)
        assert await started(spec, elsewhere) == 0

    asyncio.run(back())


@pytest.mark.parametrize(
    ("of_a", "of_b"),
    [(Worth.FOLLOWING, Worth.IN_SYNC), (Worth.IN_SYNC, Worth.DIVERGED), (None, Worth.DIVERGED)],
)
async def test_disks_of_a_primary_stay_the_newest_until_its_guest_has_run_elsewhere(
    folder: Path,
    spec: PairSpec,
    elsewhere: Elsewhere,
    there: subprocess.Popen[bytes],
    *,
    of_a: Worth | None,
    of_b: Worth,
) -> None:
    """Those of its secondary lack what was acknowledged since the last checkpoint."""
    both: dict[NodeName, Host] = {node: LocalHost() for node in NODES}
    await generation.write(spec, both, "b", 4, Worth.IN_SYNC)
    if of_a is not None:
        await generation.write(spec, both, "a", 4, of_a)
    who = identity_of(there.pid)
    assert who is not None
    one = given_up.GivenUp("b", "primary", "ssh://hv2", who, None, 4)
    given_up.give_up("web", folder / leftover.JOURNAL, [one])
    hosts: dict[NodeName, Host] = {"a": LocalHost(), "b": elsewhere}
    (said,) = await given_up.end(spec, hosts)
    assert there.wait(5) == -9 and not given_up.of("web")
    marked = await generation.read(spec, both)
    assert marked["b"].state is of_b
    if of_b is Worth.IN_SYNC:
        assert said.endswith("Its disks are still the newest.")
        assert generation.source(marked) == "b"
    else:
        assert said.endswith("Its disks count as diverged.")


async def test_a_machine_without_an_id_is_known_by_its_name(
    folder: Path, spec: PairSpec, elsewhere: Elsewhere, there: subprocess.Popen[bytes]
) -> None:
    """A Debian that debootstrap made has none before systemd has run there."""
    who = identity_of(there.pid)
    assert who is not None
    one = given_up.GivenUp("b", "secondary", "ssh://hv3", replace(who, machine=""), None, 4)
    given_up.give_up("web", folder / leftover.JOURNAL, [one])
    hosts: dict[NodeName, Host] = {"a": LocalHost(), "b": elsewhere}
    assert not await given_up.end(spec, hosts) and there.poll() is None
    elsewhere.name = one.host
    assert await given_up.end(spec, hosts)
    assert there.wait(5) == -9 and not given_up.of("web")


def test_a_primary_is_given_up_only_where_its_machine_is_stated_to_be_off(
    folder: Path, elsewhere: Elsewhere, there: subprocess.Popen[bytes]
) -> None:
    launched(folder, there, "primary")
    refused = typed("--force", "--yes", "--without", "b")
    assert isinstance(refused.exception, NotConfirmed)
    assert "Node b is the primary of web" in refused.exception.message
    assert "--without b --switched-off`" in (refused.exception.hint or "")
    assert folder.exists() and not given_up.of("web")
    assert "--without b --switched-off" in leftover.advice(folder, leftovers.find(folder))
    assert typed("--force", "--yes", "--without", "b", "--switched-off").exit_code == 0
    assert [one.role for one in given_up.of("web")] == ["primary"] and not folder.exists()


def test_a_dry_run_gives_nothing_up_and_an_option_alone_is_refused(
    folder: Path, elsewhere: Elsewhere, there: subprocess.Popen[bytes]
) -> None:
    launched(folder, there, "secondary")
    shown = typed("--force", "--without", "b", "--dry-run", "-f", "json")
    assert f"give up process {there.pid}" in shown.stdout and folder.exists()
    assert isinstance(typed("--without", "b").exception, UsageError)
    assert isinstance(typed("--force", "--switched-off").exception, UsageError)
    assert not given_up.of("web")


async def test_another_machine_proves_nothing_about_what_was_given_up(
    folder: Path, spec: PairSpec, elsewhere: Elsewhere, there: subprocess.Popen[bytes]
) -> None:
    """Its entry stays for the day on which its own machine is back."""
    who = identity_of(there.pid)
    assert who is not None
    far = replace(who, machine="another")
    one = given_up.GivenUp("b", "secondary", "ssh://hv9", far, None, 2)
    given_up.give_up("web", folder / leftover.JOURNAL, [one])
    assert await started(spec, elsewhere) == 0
    assert given_up.of("web") == (one,) and there.poll() is None


def test_a_damaged_list_is_not_taken_for_an_empty_one(folder: Path) -> None:
    path = given_up.file_of("web")
    path.parent.mkdir(mode=0o700, parents=True)
    for content in ("{", "{}x", '[{"node": "b"}]', "[1]"):
        path.write_text(content)
        with pytest.raises(PreconditionFailed, match="is damaged"):
            given_up.of("web")


@pytest.mark.parametrize(
    "machine", ["silent", "the same", "rebuilt", "gone namespace", "without an id"]
)
def test_what_was_given_up_with_a_machine_that_is_gone_is_forgotten_by_a_statement(
    folder: Path,
    elsewhere: Elsewhere,
    there: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
) -> None:
    who = identity_of(there.pid)
    assert who is not None
    elsewhere.answers = machine != "silent"
    host = "netns:no-such" if machine == "gone namespace" else elsewhere.name
    usual = given_up.open_host
    monkeypatch.setattr(
        given_up, "open_host", lambda name: elsewhere if name == elsewhere.name else usual(name)
    )
    if machine == "without an id":
        who = replace(who, machine="")
    elif machine in {"silent", "rebuilt"}:
        who = replace(who, machine="0123")
    here = {"b": who, "a": replace(who, pid=who.pid + 1)}
    listed = [GivenUp(node, "secondary", host, one, None, 4) for node, one in here.items()]
    given_up.give_up("web", folder / leftover.JOURNAL, listed)

    def forget(*words: str) -> Result:
        return CliRunner().invoke(fence, ["forget", "web", *words])

    unsure = forget("b")
    assert isinstance(unsure.exception, UsageError)
    assert listed[0].sentence() in str(unsure.exception)
    assert len(given_up.of("web")) == 2
    done = forget("b", "--yes")
    if machine in {"silent", "rebuilt"}:
        assert (done.exit_code, done.stdout) == (
            0,
            "What was given up on node b of web is forgotten.\n",
        )
        assert given_up.of("web") == (listed[1],)
        again = forget("b", "--yes")
        assert isinstance(again.exception, PreconditionFailed)
        assert "Nothing of web was given up on node b." in str(again.exception)
        told = json.loads(forget("a", "--yes", "-f", "json").stdout)
        assert (told["name"], told["node"]) == ("web", "a")
        assert not given_up.file_of("web").exists()
    else:
        assert isinstance(done.exception, PreconditionFailed)
        assert f"process {there.pid} of web was given up" in str(done.exception)
        assert "start web on it" in (done.exception.hint or "")
        assert len(given_up.of("web")) == 2 and there.poll() is None


async def test_a_running_supervisor_names_what_was_given_up_until_it_is_forgotten(
    folder: Path, spec: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FORGET_PERIOD_S", 0.001)
    one = GivenUp("b", "secondary", "ssh://hv2", Identity(4711, 1), None, 4)
    given_up.give_up("web", folder / leftover.JOURNAL, [one])
    state = SimpleNamespace(spec=spec, gone_for_good="before")
    running = cast(loop.Supervisor, SimpleNamespace(state=state))
    forgetting = asyncio.create_task(loop.Supervisor._forget(running))
    for said in (one.sentence(), ""):
        while state.gone_for_good != said:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        given_up.file_of("web").unlink(missing_ok=True)
    forgetting.cancel()
