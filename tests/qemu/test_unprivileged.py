"""A pair whose QEMUs run as another user: no capability, a sandbox, and its files given back."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from support.pairs import Stage, firmware_spec, on_pair

from coloctl.errors import PreconditionFailed
from coloctl.host import account
from coloctl.host.ownership import record_of
from coloctl.lab import qemu
from coloctl.model.pair import NODES, NodeName
from coloctl.model.protection import Protection
from coloctl.supervisor import acts
from coloctl.vm import VM

pytestmark = pytest.mark.qemu

#: A user that no table of any machine has.
USER = 61234


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may pass, with a state folder in it."""
    if os.geteuid() != 0 or account.find(str(USER)) is None:
        pytest.skip("only root of the whole machine can start a program as another user")
    folder = Path(tempfile.mkdtemp(prefix="coloctl-user-", dir="/tmp"))
    folder.chmod(0o755)
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(folder / "run"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def build(qemu_builds: Callable[[str], qemu.Build]) -> qemu.Build:
    """The one of the matrix that holds COLO under every accelerator."""
    return qemu_builds("11.1")


def status_of(vm: VM) -> Mapping[str, str]:
    """The kernel's own account of a process."""
    lines = Path(f"/proc/{vm.process.identity.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def require_unprivileged(vm: VM) -> None:
    found = status_of(vm)
    assert set(found["Uid"].split()) == set(found["Gid"].split()) == {str(USER)}
    assert {int(found[one], 16) for one in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert vm.process.identity.uid == USER


def owners(stage: Stage) -> dict[NodeName, int]:
    return {node: stage.state.spec.disks[0].image[node].stat().st_uid for node in NODES}


def test_a_pair_changes_its_roles_and_gives_the_images_back(
    outside: Path, build: qemu.Build
) -> None:
    spec = firmware_spec(outside, build, "tcg", automatic=True, circular=True, user=str(USER))

    async def story(stage: Stage) -> None:
        watch, entered = stage.supervisor.watch, stage.supervisor.entered
        await stage.start()
        await stage.checkpoints(2)
        for vm in (stage.primary, stage.secondary):
            require_unprivileged(vm)
        assert set(owners(stage).values()) == {USER}
        rundir = stage.primary.rundir
        assert rundir.stat().st_uid == 0
        assert stat.S_IMODE(rundir.stat().st_mode) == 0o3770
        for name in ("qmp.sock", "qemu.log"):
            assert (rundir / name).stat().st_uid == 0

        first = stage.primary.node
        os.kill(stage.primary.process.identity.pid, 9)
        await stage.until(
            lambda: stage.state.generation > 0 and stage.state.protection is Protection.COLO
        )
        assert stage.primary.node != first
        await stage.checkpoints(1)
        await acts.switchover(stage.state, watch, entered)
        await stage.until_protection(Protection.COLO)
        await stage.checkpoints(1)
        for vm in (stage.primary, stage.secondary):
            require_unprivileged(vm)

    on_pair(spec, build, story)
    assert {path.stat().st_uid for path in spec.disks[0].image.values()} == {0}


def test_what_another_user_cannot_reach_is_refused(outside: Path, build: qemu.Build) -> None:
    closed = outside / "closed"
    closed.mkdir(mode=0o700)
    spec = firmware_spec(closed, build, "tcg", user=str(USER))

    async def story(stage: Stage) -> None:
        with pytest.raises(PreconditionFailed, match=f"{USER} cannot reach .*closed .mode 0700"):
            await stage.start(protected=False)
        assert not record_of(stage.state.ground.rundir("a")).exists()

    on_pair(spec, build, story)
    assert {path.stat().st_uid for path in spec.disks[0].image.values()} == {0}
