"""The three builds of the matrix run here, and each carries what a COLO pair is made of."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coloctl.errors import ProvisionError
from coloctl.lab import apt, qemu

pytestmark = pytest.mark.qemu

NEEDED_DRIVERS = {"quorum", "replication", "nbd", "qcow2", "raw"}


def converse(build: qemu.Build, *commands: str) -> tuple[list[Any], str]:
    """What QEMU with a firmware guest answers to each command, and what it wrote to stderr.

    Each command follows the answer to the one before: a QEMU that quits throws away whatever
    of an earlier answer the pipe did not hold yet, and a schema is three times its 64 KiB.
    """
    guest = ["-machine", "pc", "-accel", "tcg", "-display", "none", "-nodefaults"]
    # Devices with option ROMs fail at once where the firmware folders are not found.
    guest += ["-netdev", "socket,id=n0,listen=127.0.0.1:0"]
    guest += ["-netdev", "socket,id=n1,listen=127.0.0.1:0"]
    guest += ["-device", "virtio-net-pci,netdev=n0", "-device", "rtl8139,netdev=n1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [build.binary, *guest, "-qmp", "stdio"], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as started:
        assert started.stdin
        assert started.stdout
        answers = []
        for name in ["qmp_capabilities", *commands]:
            started.stdin.write(json.dumps({"execute": name}) + "\n")
            started.stdin.flush()
            answers.append(next(_answers(started.stdout)))
        _, complaints = started.communicate('{"execute": "quit"}', timeout=60)
        assert started.returncode == 0
    return answers, complaints


def _answers(lines: Iterable[str]) -> Iterator[Any]:
    """The answers among greeting and events."""
    return (reply["return"] for reply in map(json.loads, lines) if "return" in reply)


@pytest.mark.parametrize("name", ["7.2", "10.0", "11.1"])
class TestBuild:
    def test_a_firmware_guest_runs_and_the_drivers_of_colo_are_there(self, name: str) -> None:
        build = qemu.provide(name)
        answers, complaints = converse(build, "query-version", "query-status", "query-qmp-schema")
        version, status, schema = answers[1:4]
        numbers = version["qemu"]
        assert f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}" == build.version
        assert status["status"] == "running"
        values = [set(kind["values"]) for kind in schema if kind["meta-type"] == "enum"]
        assert any(values_of_driver >= NEEDED_DRIVERS for values_of_driver in values)
        assert complaints == ""

    def test_images_can_be_made_and_written(self, name: str, tmp_path: Path) -> None:
        build = qemu.provide(name)
        image = tmp_path / "disk.qcow2"
        create: list[str | Path] = [build.img, "create", "-q", "-f", "qcow2", image, "4M"]
        subprocess.run(create, check=True)
        acts = ["-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k"]
        io: list[str | Path] = [build.img.with_name("qemu-io"), "-f", "qcow2", *acts, image]
        said = subprocess.run(io, capture_output=True, text=True, check=True).stdout
        assert "read 65536/65536" in said

    def test_the_process_keeps_the_id_that_was_started(self, name: str) -> None:
        build = qemu.provide(name)
        options = ["-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"]
        with subprocess.Popen(
            [build.binary, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as started:
            assert started.stdin
            assert started.stdout
            started.stdout.readline()
            words = Path(f"/proc/{started.pid}/cmdline").read_bytes().split(b"\0")
            started.stdin.write(b'{"execute": "qmp_capabilities"}{"execute": "quit"}')
            started.stdin.close()
            assert started.wait(timeout=30) == 0
        assert any(word.endswith(b"/usr/bin/qemu-system-x86_64") for word in words)


class TestArchive:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))

    def test_a_package_of_another_release_comes_alone_when_asked_for_alone(
        self, tmp_path: Path
    ) -> None:
        debs = apt.fetch_only("trixie", ["seabios"])
        assert [deb.name.split("_")[0] for deb in debs] == ["seabios"]
        apt.unpack(debs, tmp_path / "prefix")
        assert (tmp_path / "prefix/usr/share/seabios/bios-256k.bin").is_file()

    def test_a_half_package_is_completed(self) -> None:
        (deb,) = apt.fetch_only("trixie", ["seabios"])
        whole = deb.read_bytes()
        deb.write_bytes(whole[: len(whole) // 2])
        assert apt.fetch_only("trixie", ["seabios"]) == [deb]
        assert deb.read_bytes() == whole

    def test_an_archive_that_our_keys_do_not_vouch_for_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stranger = tmp_path / "empty.gpg"
        stranger.touch()
        monkeypatch.setattr(apt, "KEYRING", stranger)
        with pytest.raises(ProvisionError) as caught:
            apt.fetch_only("trixie", ["seabios"])
        assert "debian-archive-keyring" in (caught.value.hint or "")
