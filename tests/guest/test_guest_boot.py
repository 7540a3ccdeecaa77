"""The guest image does what it promises, booted under TCG without a network of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from coloctl.lab import guest, qemu

pytestmark = pytest.mark.guest

BOOT_DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def binary() -> Path:
    for name in qemu.NAMES:
        if (build := qemu.find(name)) is not None:
            return build.binary
    return qemu.provide("11.1").binary


@pytest.fixture(scope="module")
def image() -> guest.GuestImage:
    return guest.provide()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Machine:
    """A running QEMU with the guest in it, and what it said on its serial line."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, ports: dict[int, int]):
        self.process = process
        self.folder = folder
        self.ports = ports

    @property
    def console(self) -> str:
        path = self.folder / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + BOOT_DEADLINE_S
        while text not in self.console:
            ended = self.process.poll() is not None
            if (ended and text not in self.console) or time.monotonic() > deadline:
                pytest.fail(f"{text!r} never came; the console ends with:\n{self.console[-1500:]}")
            time.sleep(0.05)

    def redis(self) -> redis.Redis:
        return redis.Redis("127.0.0.1", self.ports[guest.REDIS_PORT], socket_timeout=30)

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.folder / "qmp.sock"))
            lines = monitor.makefile("rw")
            for command in ("qmp_capabilities", "system_powerdown"):
                lines.write(json.dumps({"execute": command}) + "\n")
                lines.flush()
                while "return" not in json.loads(lines.readline()):
                    pass


@contextlib.contextmanager
def booted(
    binary: Path, image: guest.GuestImage, folder: Path, append: str, drive: str = "virtio-blk-pci"
) -> Iterator[Machine]:
    """A machine with disk.qcow2 of ``folder`` (if there is one); killed at the end, hard."""
    ports = {port: free_port() for port in (guest.REDIS_PORT, 80)}
    forwards = ",".join(f"hostfwd=tcp:127.0.0.1:{ours}-:{its}" for its, ours in ports.items())
    argv = [str(binary), "-nodefaults", "-no-user-config", "-machine", "pc", "-accel", "tcg"]
    argv += ["-cpu", "qemu64,+rdrand", "-m", "256", "-display", "none", "-vga", "none"]
    argv += ["-serial", f"file:{folder}/console.log"]
    argv += ["-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off"]
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", append]
    argv += ["-netdev", f"user,id=hn0,{forwards}", "-device", "virtio-net-pci,netdev=hn0,romfile="]
    if drive == "scsi-hd":
        argv += ["-device", "virtio-scsi-pci"]
    if (folder / "disk.qcow2").exists():
        argv += ["-drive", f"if=none,id=disk0,format=qcow2,file={folder}/disk.qcow2"]
        argv += ["-device", f"{drive},drive=disk0"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        yield Machine(process, folder, ports)
    finally:
        process.kill()
        process.wait()
        (folder / "console.log").unlink(missing_ok=True)


def test_what_redis_acknowledged_survives_the_death_of_qemu(
    binary: Path, image: guest.GuestImage, tmp_path: Path
) -> None:
    image.copy_disk(tmp_path / "disk.qcow2")
    append = image.append_for("10.0.2.15/24", http_port=80)
    with booted(binary, image, tmp_path, append) as machine:
        machine.wait_for(guest.READY_LINE)
        first = machine.redis()
        assert first.config_get("appendfsync") == {"appendfsync": "always"}
        assert first.config_get("save") == {"save": ""}
        for number in range(100):
            first.rpush("records", number)
        boot_id = boot_id_of(machine.console)
        address = f"http://127.0.0.1:{machine.ports[80]}/boot-id"
        assert urllib.request.urlopen(address, timeout=30).read().decode().strip() == boot_id
        assert "coloctl-guest: tcp-syncookies=2\n" in machine.console.replace("\r", "")
        assert tcp_connections_of(machine.console) > 0

    append = image.append_for("10.0.2.15/24", loopback=False, syncookies=1)
    with booted(binary, image, tmp_path, append) as machine:
        machine.wait_for(guest.READY_LINE)
        assert "coloctl-guest: tcp-syncookies=1\n" in machine.console.replace("\r", "")
        assert boot_id_of(machine.console) != boot_id
        assert tcp_connections_of(machine.console) == 0
        records = machine.redis().lrange("records", 0, -1)
        assert [int(record) for record in records] == list(range(100))
        machine.press_power_button()
        assert machine.process.wait(BOOT_DEADLINE_S) == 0
        assert "coloctl-guest: down" in machine.console
        assert "panic" not in machine.console


def test_a_scsi_disk_serves_as_well(binary: Path, image: guest.GuestImage, tmp_path: Path) -> None:
    image.copy_disk(tmp_path / "disk.qcow2")
    append = image.append_for("10.0.2.15/24") + " coloctl.disk=/dev/sda"
    with booted(binary, image, tmp_path, append, drive="scsi-hd") as machine:
        machine.wait_for(guest.READY_LINE)
        assert machine.redis().set("key", "value")


def test_without_its_disk_the_guest_says_so_and_powers_off(
    binary: Path, image: guest.GuestImage, tmp_path: Path
) -> None:
    with booted(binary, image, tmp_path, image.append_for("10.0.2.15/24")) as machine:
        assert machine.process.wait(BOOT_DEADLINE_S) == 0
        assert f"{guest.FAILED_PREFIX} no ext4 file system on /dev/vda" in machine.console
        assert guest.READY_LINE not in machine.console


def test_every_copy_of_the_disk_is_its_own(image: guest.GuestImage, tmp_path: Path) -> None:
    before = image.disk.read_bytes()
    copy = image.copy_disk(tmp_path / "disk.qcow2")
    assert copy.read_bytes() == before
    copy.write_bytes(b"changed")
    assert image.disk.read_bytes() == before
    assert image.copy_disk(copy).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["disk.qcow2"]


def boot_id_of(console: str) -> str:
    return console.split(guest.BOOT_ID_PREFIX)[1].splitlines()[0].strip()


def tcp_connections_of(console: str) -> int:
    return int(console.split("coloctl-guest: tcp-connections=")[1].splitlines()[0])
