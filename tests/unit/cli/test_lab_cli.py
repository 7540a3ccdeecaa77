"""`coloctl lab`: what it prints and refuses, with nothing built, fetched or started."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from coloctl import pairfile
from coloctl.check import choose, freshcode
from coloctl.check.verdict import ColoSupport, FullVerdict
from coloctl.cli.verbs import run_verb
from coloctl.cli.views import downloads
from coloctl.errors import ProvisionError, UnsupportedQEMU, UsageError
from coloctl.lab import guest as guests
from coloctl.lab import layout, rootless
from coloctl.lab import qemu as qemus
from coloctl.lab.guest import GuestImage
from coloctl.lab.progress import Progress, Report
from coloctl.lab.qemu import Build
from coloctl.machine import accel as accelerators

pytestmark = pytest.mark.unit

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves its folder, and none runs itself again for want of root."""
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv(rootless.MARK, "1")
    monkeypatch.chdir(tmp_path)


def a_build(folder: Path, name: str, version: str) -> Build:
    binary = folder / name / "qemu-system-x86_64"
    binary.parent.mkdir(parents=True, exist_ok=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    return Build(name, "suite", binary, binary.with_name("qemu-img"), version)


class Machine:
    """A machine with two QEMUs, of which ``good`` (name, accel) hold COLO."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.builds = {
            "system": a_build(folder, "system", "7.2.22"),
            "11.1": a_build(folder, "11.1", "11.1.3"),
        }
        self.good: set[tuple[str, str]] = {("11.1", "tcg")}
        self.kvm = False
        self.measured = 0
        monkeypatch.setattr(qemus, "find", self.builds.get)
        monkeypatch.setattr(qemus, "provide", self.provide)
        monkeypatch.setattr(choose, "holds_colo", self.holds_colo)
        monkeypatch.setattr(accelerators, "prove", self.prove)
        monkeypatch.setattr(freshcode, "provide", lambda binary, report: binary.with_name("x.so"))

    def provide(self, name: str, *, report: Report) -> Build:
        report(Progress(f"providing {name}"))
        if name not in self.builds:
            raise ProvisionError(f"There is no QEMU build named {name!r}.", hint="another")
        return self.builds[name]

    def holds_colo(self, binary: Path, accel: str) -> FullVerdict:
        works = (binary.parent.name, accel) in self.good
        outcome, words = (
            (ColoSupport.WORKS, "It works.") if works else (ColoSupport.FAILS, "It hangs.")
        )
        return FullVerdict(str(binary), "", accel, "pc", outcome, words)

    def prove(self, _: Path) -> accelerators.KvmTrial:
        self.measured += 1
        none = accelerators.Measurement("kvm", long_mode=self.kvm, loop_s=None)
        return accelerators.KvmTrial(none, none, self.kvm, "KVM was measured.")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "builds", monkeypatch)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GuestImage:
    folder = tmp_path / "image"
    folder.mkdir()
    for part in ("kernel", "initrd", "disk"):
        (folder / part).write_text(part)
    built = GuestImage(folder / "kernel", folder / "initrd", "quiet", folder / "disk")
    monkeypatch.setattr(guests, "find", lambda: built)
    return built


def test_the_systems_qemu_is_passed_over_with_a_reason(machine: Machine, capsys: Output) -> None:
    assert run_verb(["lab", "qemu"]) == 0
    said = capsys.readouterr().out
    assert "QEMU 11.1.3 (11.1) holds COLO here under tcg." in said
    assert "QEMU 7.2.22 (system) under tcg: It hangs." in said
    assert "KVM was measured." in said
    assert "The fresh-code plugin is in force" in said


def test_kvm_is_tried_first_where_it_is_real(machine: Machine, capsys: Output) -> None:
    machine.kvm, machine.good = True, {("system", "kvm"), ("11.1", "tcg")}
    assert run_verb(["lab", "qemu", "-f", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    chosen = document["chosen"]
    assert (chosen["name"], chosen["accel"], chosen["passed-over"]) == ("system", "kvm", [])
    assert chosen["binary"] == str(machine.builds["system"].binary)


def test_the_accelerators_are_measured_once(machine: Machine) -> None:
    assert choose.choose_qemu() == choose.choose_qemu()
    assert machine.measured == 1


def test_nothing_that_holds_colo_is_an_error_with_a_hint(machine: Machine, capsys: Output) -> None:
    machine.good = set()
    with pytest.raises(UnsupportedQEMU):
        choose.choose_qemu()
    assert run_verb(["lab", "qemu", "-f", "json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["error"]["hint"]


def test_builds_are_named_or_the_matrix(machine: Machine, capsys: Output) -> None:
    machine.builds |= dict.fromkeys(("7.2", "10.0"), machine.builds["11.1"])
    assert run_verb(["lab", "qemu", "10.0", "--matrix", "-f", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["builds"]) == 3
    assert run_verb(["lab", "qemu", "11.1", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert run_verb(["lab", "qemu", "nonsense"]) == 1
    assert "hint:" in capsys.readouterr().err


def test_the_guest_is_shown_as_a_table_of_a_pair_file(image: GuestImage, capsys: Output) -> None:
    assert run_verb(["lab", "guest"]) == 0
    said = capsys.readouterr().out
    assert all(str(part) in said for part in (image.kernel, image.initrd, image.disk))
    assert "[guest]" in said
    assert run_verb(["lab", "guest", "-f", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1 and "pair" not in document


@pytest.mark.usefixtures("image", "machine")
def test_a_pair_file_is_ready_to_start(tmp_path: Path, capsys: Output) -> None:
    assert run_verb(["lab", "guest", "--pair", "sub/web.toml", "--lab", "other"]) == 0
    said = capsys.readouterr().out
    assert "coloctl start sub/web.toml" in said and "coloctl lab up --lab other" in said
    pair = pairfile.load(tmp_path / "sub" / "web.toml")
    pairfile.check_files(pair)
    assert (pair.name, pair.guest.accel) == ("web", "tcg")
    assert pair.nodes["b"].host == "netns:other-host-b"


@pytest.mark.usefixtures("image", "machine")
def test_a_pair_file_that_is_there_is_kept(tmp_path: Path, capsys: Output) -> None:
    disk = tmp_path / "web-b.qcow2"
    disk.write_text("precious")
    assert run_verb(["lab", "guest", "--pair", "web.toml"]) == 2
    assert "--force" in capsys.readouterr().err
    assert disk.read_text() == "precious" and not (tmp_path / "web.toml").exists()
    assert run_verb(["lab", "guest", "--pair", "web.toml", "--name", "db", "--force"]) == 0
    assert pairfile.load(tmp_path / "web.toml").name == "db"


@pytest.mark.usefixtures("image", "machine")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--pair", "we b.toml"],
        ["--pair", "web.toml", "--name", "../web"],
        ["--pair", "."],
        ["--name", "web"],
    ],
)
def test_a_pair_that_cannot_be_is_refused(
    arguments: list[str], tmp_path: Path, capsys: Output
) -> None:
    assert run_verb(["lab", "guest", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "hint:" in captured.err
    assert not list(tmp_path.glob("*.toml"))


@pytest.mark.parametrize("verb", ["up", "down", "show"])
def test_a_name_that_no_lab_can_have_is_refused(verb: str, capsys: Output) -> None:
    assert run_verb(["lab", verb, "--name", "Not/So"]) == 2
    assert "hint:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["cut", "wan"], ["cut"], ["exec", "nobody", "true"], ["exec", "client"]]
)
def test_a_link_or_machine_that_no_lab_has_is_a_usage_error(
    arguments: list[str], capsys: Output
) -> None:
    assert run_verb(["lab", *arguments]) == 2
    assert "error:" in capsys.readouterr().err


def test_help_names_every_verb(capsys: Output) -> None:
    assert run_verb(["lab", "--help"]) == 0
    said = capsys.readouterr().out
    for verb in ("up", "down", "list", "show", "cut", "heal", "exec", "guest", "qemu"):
        assert f"\n  {verb} " in said


def test_a_binary_is_a_build_a_path_or_a_program(machine: Machine, tmp_path: Path) -> None:
    binary = machine.builds["11.1"].binary
    assert choose.named_qemu("11.1") == binary
    assert choose.named_qemu(str(binary.relative_to(tmp_path))) == binary
    for name, error in (("7.2", ProvisionError), ("no-such-program", UsageError)):
        with pytest.raises(error) as refused:
            choose.named_qemu(name)
        assert refused.value.hint


def test_work_that_ends_soon_is_not_shown(capsys: Output) -> None:
    with downloads.Bars() as bars:
        bars.report(Progress("looking"))
    assert capsys.readouterr().err == ""


def test_longer_work_is_told_step_by_step(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr(downloads, "SHOW_AFTER_S", 0.0)
    said = ""
    with downloads.Bars() as bars:
        bars.report(Progress("looking"))
        end = time.monotonic() + 10
        while "looking" not in said and time.monotonic() < end:
            time.sleep(0.005)
            said += capsys.readouterr().err
        for done in range(0, 9, 2):
            bars.report(Progress("fetching", done << 20, 9 << 20))
        bars.report(Progress("unpacking"))
    said += capsys.readouterr().err
    assert said.splitlines() == ["looking", "fetching: 0 of 9 MiB", "unpacking"]


def test_the_next_steps_name_the_lab_unless_it_is_the_default() -> None:
    from coloctl.cli.verbs.lab_goods import typed

    assert typed("up", layout.DEFAULT) == "coloctl lab up"
    assert typed("exec client -- sh", "x") == "coloctl lab exec --lab x client -- sh"
