"""The agent's zip holds all that the agent imports, and needs nothing besides Python."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import house
from support.dials import PlainDial

from coloctl.host.remote import dial
from coloctl.host.remote.host import RemoteHost
from coloctl.host.remote.parcel import parcel

pytestmark = pytest.mark.unit

#: What is started there: the agent, the programs beside a disk, and the trial of an accelerator.
STARTED = ("coloctl.host.agent.main", "coloctl.nbd.", "coloctl.machine.accel")

#: What the program beside a disk is asked for: an export at a port at which no server listens.
NO_SERVER = b'{"at": {"address": "127.0.0.1", "port": 1, "export": "x"}, "key": "00"}\n'


def closure(tree: house.Tree) -> set[str]:
    """Return what `STARTED` imports, anywhere in the text, and the packages above."""
    todo = [name for name in tree if f"{name}.".startswith(STARTED)]
    found: set[str] = set()
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            parts = name.split(".")
            todo += [".".join(parts[:n]) for n in range(1, len(parts))]
            todo += house.inner_imports(tree[name], tree)
    return found


def packed() -> set[str]:
    with zipfile.ZipFile(io.BytesIO(parcel().content)) as archive:
        return set(archive.namelist())


def test_all_that_is_started_there_finds_its_imports_in_the_zip(product: house.Tree) -> None:
    wanted = closure(product)
    assert {"coloctl.host.agent.work", "coloctl.nbd.digest", "coloctl.errors"} <= wanted
    # __init__ loads the front for Python programs when it is first used, which is not there.
    wanted -= {name for name in wanted if house.part_of(name) == "api"}
    files = {
        f"{name.replace('.', '/')}{'/__init__' if product[name].is_package else ''}.py"
        for name in wanted
    }
    assert files <= packed()


def test_no_module_in_the_zip_imports_a_third_party_module(product: house.Tree) -> None:
    foreign = {
        (name, imported.partition(".")[0])
        for name in closure(product)
        if house.part_of(name) != "api"
        for imported in house.imports(product[name])
        if imported.partition(".")[0] not in {*sys.stdlib_module_names, house.ROOT}
    }
    assert not foreign


@pytest.mark.parametrize("module", ["coloctl.host.agent.main", "coloctl.nbd.digest"])
def test_a_python_without_site_packages_runs_it(module: str, tmp_path: Path) -> None:
    (file := tmp_path / "agent.zip").write_bytes(parcel().content)
    code = (
        f"import sys; sys.path.insert(0, {str(file)!r}); import {module}; print(len(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, check=True, cwd=tmp_path
    )
    assert not done.stderr and int(done.stdout) > 50


async def test_the_agent_is_sent_and_names_the_zip_for_its_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "state"))
    programs = set()
    for time in ("sent", "there already"):
        async with RemoteHost("ssh://hv2", PlainDial(("sh", "-c", dial.command()), "hv2")) as host:
            await host.ready(30)
            programs.add(host.machine.programs)
            assert host.machine.installed == ""
            if time == "sent":
                continue
            program = (*host.machine.programs, "coloctl.nbd.digest")
            done = await host.run(program, deadline_s=30, stdin=NO_SERVER)
            assert done.stdout.startswith('{"failed": ') and not done.stderr
    twin, kept = sorted((tmp_path / "cache" / "agent").iterdir())
    assert kept.read_bytes() == parcel().content
    [words] = programs
    assert f"PYTHONPATH={twin}" in words and twin.suffix == ".pyz"
