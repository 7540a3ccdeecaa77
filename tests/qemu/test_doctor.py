"""The doctor finds what is wrong with a pair by name, says what helps, and touches nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.pairs import firmware_spec

from coloctl import paths
from coloctl.check import freshcode
from coloctl.check.doctor import examine_pair
from coloctl.check.finding import Precondition, Severity, worst
from coloctl.lab import layout, netns
from coloctl.lab.network import Lab
from coloctl.lab.qemu import Build
from coloctl.model.pair import (
    CheckpointSpec,
    FencingMethod,
    FencingSpec,
    NicSpec,
    NodeSpec,
    PairSpec,
    ReplicationSpec,
    TapSpec,
)

pytestmark = pytest.mark.qemu
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

PAIR = """
name = "web"
[guest]
memory = "64MiB"
accel = "tcg"
ready_line = "login:"
qemu = "{qemu}"
[[disk]]
id = "disk0"
image = {{ a = "a.qcow2", b = "b.qcow2" }}
[node.a]
host = "local"
address = "127.0.0.1"
[node.b]
host = "local"
address = "127.0.0.2"
[replication]
base_port = 20700
"""


def create(build: Build, path: Path, size: str = "16M") -> None:
    subprocess.run([build.img, "create", "-q", "-f", "qcow2", path, size], check=True)


@pytest.fixture(scope="module")
def build(qemu_builds: Callable[[str], Build]) -> Build:
    build = qemu_builds("11.1")
    freshcode.provide(build.binary)
    return build


@pytest.fixture
def spec(tmp_path: Path, build: Build) -> PairSpec:
    """A pair that nothing is wrong with."""
    plain = firmware_spec(tmp_path, build, "tcg")
    spec = replace(plain, guest=replace(plain.guest, ready_line="login:"))
    for disk in spec.disks:
        for image in disk.image.values():
            create(build, image)
    return spec


def examine(spec: PairSpec) -> list[Precondition]:
    return asyncio.run(examine_pair(spec))


def bad(findings: list[Precondition]) -> dict[str, Precondition]:
    """Warnings and errors by name."""
    return {one.name: one for one in findings if one.severity in (Severity.WARNING, Severity.ERROR)}


def only(spec: PairSpec, name: str, severity: Severity) -> Precondition:
    """The one thing that is wrong with the pair."""
    found = bad(examine(spec))
    assert list(found) == [name], found
    assert found[name].severity is severity
    assert found[name].sentence.endswith(".")
    assert found[name].hint
    return found[name]


def test_a_sound_pair_has_no_warning(spec: PairSpec) -> None:
    findings = examine(spec)
    assert bad(findings) == {}
    names = {one.name for one in findings}
    assert names >= {
        "binary", "capability", "schema", "objects", "block drivers", "dialect", "machine type",
        "accelerator", "known bugs", "versions", "memory", "disk disk0", "replication link",
        "ports", "nic hn0", "state", "fencing", "first connection", "ipv6",
    }  # fmt: skip
    assert any("plugin is in force" in one.sentence for one in findings)
    assert any("no copy is needed" in one.sentence for one in findings)


def test_an_emulated_pair_without_the_fresh_code_plugin_is_warned_of(
    spec: PairSpec, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "empty"))
    found = only(spec, "fresh code", Severity.WARNING)
    assert f"coloctl lab plugin --qemu {build.binary}" in found.hint


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-object", "secret,id=s0,data=hunter2"), True),
        (("-object", '{"qom-type":"secret","id":"s0","data":"hunter2"}'), True),
        (("-object", "secret,id=s0,file=/dev/null"), False),
    ],
)
def test_a_secret_on_the_command_line_is_warned_of(
    spec: PairSpec, words: tuple[str, ...], told: bool
) -> None:
    found = bad(examine(replace(spec, guest=replace(spec.guest, extra_args=words))))
    assert ("secrets" in found) is told
    assert not told or "file=" in found["secrets"].hint


def test_different_contents_will_be_copied(spec: PairSpec, build: Build) -> None:
    image = spec.disks[0].image["a"]
    write = [build.img.with_name("qemu-io"), "-f", "qcow2", "-c", "write -P 7 0 64k", image]
    subprocess.run(write, check=True, stdout=subprocess.DEVNULL)
    findings = examine(spec)
    assert bad(findings) == {}
    copied = [one for one in findings if "copied to node b" in one.sentence]
    assert [one.severity for one in copied] == [Severity.INFO]
    survivor = spec.disks[0].image["b"]
    survivor.with_name(f"{survivor.name}.generation").write_text("1\n")
    assert any("copied to node a" in one.sentence for one in examine(spec))


def test_images(spec: PairSpec, build: Build) -> None:
    disk = spec.disks[0]
    create(build, disk.image["b"], "32M")
    assert "same size" in only(spec, "disk disk0", Severity.ERROR).sentence
    disk.image["b"].unlink()
    assert str(disk.image["b"]) in only(spec, "disk disk0", Severity.ERROR).sentence
    one_file = replace(disk, image={"a": disk.image["a"], "b": disk.image["a"]})
    same = only(replace(spec, disks=(one_file,)), "disk disk0", Severity.ERROR)
    assert "same file" in same.sentence


@pytest.fixture
def holding(spec: PairSpec, build: Build) -> Iterator[Path]:
    """The image of node a is in use while the test runs."""
    image = spec.disks[0].image["a"]
    program = build.img.with_name("qemu-io")
    with subprocess.Popen(
        [program, "-f", "qcow2", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        user.stdin.write(b"length\n")
        user.stdin.flush()
        user.stdout.readline()
        yield image
        user.stdin.close()


def test_an_image_in_use(spec: PairSpec, holding: Path) -> None:
    found = only(spec, "disk disk0", Severity.WARNING)
    assert f"{holding} on node a is in use" in found.sentence


@pytest.fixture
def apart(spec: PairSpec) -> Iterator[tuple[PairSpec, Lab]]:
    """The same pair on two hosts."""
    with Lab.up(f"t{os.getpid()}-doctor") as lab:
        nodes = {
            "a": NodeSpec("a", f"netns:{lab.host_a}", layout.REPLICATION_A),
            "b": NodeSpec("b", f"netns:{lab.host_b}", layout.REPLICATION_B),
        }
        yield replace(spec, nodes=nodes), lab


@needs_root
def test_a_pair_on_two_hosts_has_ports_that_strangers_can_be_kept_from(
    apart: tuple[PairSpec, Lab],
) -> None:
    findings = examine(apart[0])
    assert bad(findings) == {}
    assert [one.severity for one in findings if one.name == "strangers"] == [Severity.OK] * 2


@needs_root
def test_a_busy_port(apart: tuple[PairSpec, Lab]) -> None:
    spec, lab = apart
    with netns.inside(lab.host_b, socket.socket) as busy:
        busy.bind((spec.nodes["b"].address, spec.replication.nbd_port()))
        busy.listen()
        found = only(spec, "ports", Severity.ERROR)
    assert f"Port {spec.replication.nbd_port()} of" in found.sentence
    assert "node b" in found.sentence


@needs_root
def test_an_address_that_is_not_here(apart: tuple[PairSpec, Lab]) -> None:
    spec, lab = apart
    nodes = {**spec.nodes, "b": NodeSpec("b", f"netns:{lab.host_b}", "192.0.2.1")}
    found = bad(examine(replace(spec, nodes=nodes)))
    assert "192.0.2.1" in found["replication link"].sentence


def test_a_namespace_and_a_tap_that_are_not_there(spec: PairSpec) -> None:
    nodes = {**spec.nodes, "b": NodeSpec("b", "netns:no-such-namespace", "127.0.0.2")}
    assert "no-such-namespace" in bad(examine(replace(spec, nodes=nodes)))["node b"].sentence
    tap = TapSpec({"a": "ct-no-tap-a", "b": "ct-no-tap-b"}, bridge="ct-no-br")
    nic = NicSpec("hn0", "52:54:00:12:34:56", tap)
    assert "ct-no-tap" in only(replace(spec, nics=(nic,)), "nic hn0", Severity.ERROR).sentence


def test_a_state_folder_with_a_long_path(
    spec: PairSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / ("x" * 100)))
    assert "unix socket" in only(spec, "state", Severity.ERROR).sentence


def test_a_pair_that_runs_is_not_blamed_for_what_it_holds(spec: PairSpec, holding: Path) -> None:
    control = paths.control_socket(spec.name)
    control.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as supervisor:
        supervisor.bind(str(control))
        supervisor.listen()
        findings = examine(spec)
    shutil.rmtree(control.parent)
    assert bad(findings) == {}
    assert "running" in {one.name for one in findings}


@pytest.mark.parametrize(("machine", "accel"), [("q35", "tcg"), ("pc", "tcg")])
def test_what_a_start_refuses_is_an_error(
    machine: str, accel: str, spec: PairSpec, qemu_builds: Callable[[str], Build]
) -> None:
    old = qemu_builds("10.0").binary
    guest = replace(spec.guest, machine=machine, accel=accel, qemu=old)
    found = bad(examine(replace(spec, guest=guest)))
    expected = {"tcg-deadlock"} | ({"q35-abort"} if machine == "q35" else set())
    assert set(found) == expected
    assert worst(found.values()) is Severity.ERROR
    multifd = replace(spec, guest=guest, replication=ReplicationSpec(20700, multifd_channels=2))
    assert "multifd-corruption" in bad(examine(multifd))


def test_choices_that_cost_something_are_warned_of(spec: PairSpec) -> None:
    manual = replace(spec, fencing=FencingSpec(FencingMethod.MANUAL))
    assert "person" in only(manual, "fencing", Severity.WARNING).sentence
    unguarded = replace(spec, checkpoint=CheckpointSpec(guard_first_connection=False))
    found = only(unguarded, "first connection", Severity.WARNING)
    assert "tcp_syncookies=2" in found.hint
    half = int(re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[1]) // 2048  # type: ignore[index]
    huge = replace(spec, guest=replace(spec.guest, memory_mib=half))
    assert "3 times" in only(huge, "memory", Severity.WARNING).sentence
    more = replace(spec, guest=replace(spec.guest, extra_args=("-device", "virtio-rng-pci")))
    assert "extra_args" in only(more, "extra_args", Severity.WARNING).sentence


def test_what_qemu_refuses_is_found_by_starting_it(spec: PairSpec, build: Build) -> None:
    nic = NicSpec("hn0", "52:54:00:12:34:56", tap=None, model="virtio")
    found = only(replace(spec, nics=(nic,)), "command line", Severity.ERROR)
    assert "'virtio' is not a valid device model name" in found.sentence
    host_cpu = replace(spec, guest=replace(spec.guest, cpu="host"))
    assert "host" in only(host_cpu, "command line", Severity.ERROR).sentence
    scratch = spec.disks[0].image["a"].with_name("scratch.raw")
    scratch.write_bytes(bytes(1 << 20))
    extra = (
        "-blockdev",
        f"driver=raw,node-name=s0,file.driver=file,file.filename={scratch}",
        "-device",
        "virtio-blk-pci,drive=s0",
    )
    found = bad(examine(replace(spec, guest=replace(spec.guest, extra_args=extra))))["replicable"]
    assert "scratch.raw" in found.sentence and found.severity is Severity.ERROR


def test_an_address_that_both_qemus_would_open_is_found(spec: PairSpec) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    extra = ("-gdb", f"tcp:127.0.0.1:{port}")
    found = bad(examine(replace(spec, guest=replace(spec.guest, extra_args=extra))))
    assert "guest.extra_args" in found["command line"].hint, found


def test_several_missing_things_are_all_found(spec: PairSpec, build: Build) -> None:
    gone = spec.disks[0].image["a"].with_name("gone")
    nic = NicSpec("hn0", "52:54:00:12:34:56", tap=None, model="virtio")
    guest = replace(spec.guest, kernel=gone, initrd=gone.with_suffix(".img"))
    fencing = FencingSpec(FencingMethod.COMMAND, ("no-such-agent",), 10.0, {"a": {}, "b": {}})
    spec.disks[0].image["b"].unlink()
    found = bad(examine(replace(spec, guest=guest, nics=(nic,), fencing=fencing)))
    assert set(found) >= {
        "guest.kernel", "guest.initrd", "fencing.command", "disk disk0", "command line",
    }  # fmt: skip


def test_a_qcow2_image_is_not_used_as_raw(spec: PairSpec, build: Build) -> None:
    raw = replace(spec, disks=(replace(spec.disks[0], format="raw"),))
    found = bad(examine(raw))["disk disk0"]
    assert "is a qcow2 image, and the pair file says raw" in found.sentence
    assert 'format = "qcow2"' in found.hint


def test_nothing_of_the_rehearsal_is_left(spec: PairSpec, build: Build, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in spec.disks[0].image.values()}
    with_folder = tmp_path / "t"
    with_folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(with_folder))
        examine(spec)
    assert not list(with_folder.iterdir())
    assert {path: path.read_bytes() for path in before} == before
    ours = str(with_folder).encode()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert ours not in entry.read_bytes()
        except OSError:
            continue


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "coloctl.cli.main", "doctor", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_the_verb(tmp_path: Path, build: Build) -> None:
    pair = tmp_path / "web.toml"
    pair.write_text(PAIR.format(qemu=build.binary))
    for node in "ab":
        create(build, tmp_path / f"{node}.qcow2")
    sound = doctor(str(pair), "-f", "json")
    assert sound.returncode == 0, sound.stdout
    told = json.loads(sound.stdout)
    assert (told["schema"], told["severity"]) == (1, "ok")
    (tmp_path / "b.qcow2").unlink()
    ill = doctor(str(pair))
    assert ill.returncode == 1
    assert "b.qcow2" in "".join(ill.stdout.split())
    assert "hint:" in ill.stdout
    absent = doctor(str(tmp_path / "absent.toml"))
    assert absent.returncode == 2
    assert absent.stderr.startswith("error:")


def test_the_verb_without_a_pair_looks_at_the_machine() -> None:
    done = doctor("-f", "json")
    assert done.returncode in (0, 3)
    names = {one["name"] for one in json.loads(done.stdout)["findings"]}
    assert names >= {"tun", "namespaces", "memory", "state", "cache"}
