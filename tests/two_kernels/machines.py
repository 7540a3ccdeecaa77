"""Run the two machines hv1 and hv2: one QEMU each, with a kernel, a disk and networks of their own.

Called by `sequence.py` inside network and process namespaces of its own: nothing outlives it.
The management network and the guests' LAN are bridges of those namespaces, in which this kernel,
the third one, has an address. The replication network is a wire between both QEMUs (``dgram``).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from coloctl.lab import qemu
from two_kernels import image

NAMES = ("hv1", "hv2")
#: On the guests' LAN, where the inner guest's fetches are answered.
CLIENT = "10.77.0.2"
WITNESS = "10.68.0.13"
MEMORY_MIB = 1280
#: A Debian boots in 30 s under TCG on an idle processor.
BOOT_PATIENCE_S = 600.0
APPEND = (
    "root=/dev/vda rw console=ttyS0 quiet mitigations=off systemd.show_status=false "
    "systemd.hostname={name} random.trust_cpu=on net.ifnames=0 tsc=reliable "
    "tsc_early_khz={tsc_khz}"
)
#: rdtsc; shl rdx, 32; or rax, rdx; ret
_READ_TSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")


def lay_networks() -> None:
    """Make the bridges and taps of both machines, in the namespace of this process."""
    _ip("link", "set", "lo", "up")
    for bridge, address in (("mgmt", WITNESS), ("lan", CLIENT)):
        _ip("link", "add", bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0")
        _ip("address", "add", f"{address}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for name in NAMES:
            _ip("tuntap", "add", "dev", f"{bridge}-{name}", "mode", "tap")
            _ip("link", "set", f"{bridge}-{name}", "master", bridge, "up")


@cache
def tsc_khz() -> int:
    """Measure how fast this processor counts, which is how fast TCG lets a machine's count.

    A kernel that gets little of a processor while it boots measures that wrongly (its clock ran
    nine times too fast, seen once), so that the machines' kernels are given the number.
    """
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_READ_TSC)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def moment() -> tuple[int, int]:
        """Read both clocks, in the attempt of 50 that took the least time."""
        took = []
        for _ in range(50):
            before = time.monotonic_ns()
            count = read()
            after = time.monotonic_ns()
            took.append((after - before, (before + after) // 2, count))
        _, at_ns, count = min(took)
        return at_ns, count

    (begin_ns, first), _, (end_ns, last) = moment(), time.sleep(0.5), moment()
    return (last - first) * 1_000_000 // (end_ns - begin_ns)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@dataclass
class Machine:
    """One machine, on or off. Its disk is kept while it is off."""

    name: str
    folder: Path  #: its disk and its console
    ssh: Sequence[str]  #: the words of an ssh with its configuration
    _qemu: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def number(self) -> int:
        return NAMES.index(self.name) + 1

    @property
    def console(self) -> Path:
        return self.folder / f"{self.name}.console"

    def install(self, public_key: str) -> None:
        """Give it an empty layer over the common disk, and root's key for ssh by its command line.

        The key goes in as a systemd credential, which sshd's own tmpfiles.d entry writes.
        """
        base = image.provide()
        build = qemu.provide("11.1")
        disk = self.folder / f"{self.name}.qcow2"
        disk.unlink(missing_ok=True)
        backing = ["-b", str(base / image.DISK), "-F", "qcow2"]
        make = [str(build.img), "create", "-q", "-f", "qcow2", *backing, str(disk)]
        subprocess.run(make, check=True)
        (self.folder / "key.pub").write_text(public_key)

    def boot(self) -> None:
        """Switch it on; returns at once."""
        base, build = image.folder(), qemu.provide("11.1")
        me, other = self.number, 3 - self.number
        key = (self.folder / "key.pub").read_text().strip()
        wire = (
            f"dgram,id=replication,local.type=inet,local.host=127.0.0.1,local.port=1000{me},"
            f"remote.type=inet,remote.host=127.0.0.1,remote.port=1000{other}"
        )
        argv = [
            str(build.binary), "-name", self.name, "-machine", "q35", "-accel", "tcg,tb-size=512",
            "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MIB), "-display", "none", "-nodefaults",
            "-serial", f"file:{self.console}",
            "-kernel", str(base / image.KERNEL), "-initrd", str(base / image.INITRD),
            "-append", APPEND.format(name=self.name, tsc_khz=tsc_khz()),
            "-smbios", f"type=11,value=io.systemd.credential:ssh.authorized_keys.root={key}",
            "-device", "virtio-rng-pci",
            "-drive", f"file={self.folder / self.name}.qcow2,if=virtio,format=qcow2,cache=unsafe",
        ]  # fmt: skip
        backends = {
            1: f"tap,id=n1,ifname=mgmt-{self.name},script=no,downscript=no",
            2: wire.replace("id=replication", "id=n2"),
            3: f"tap,id=n3,ifname=lan-{self.name},script=no,downscript=no",
        }
        for number, backend in backends.items():
            mac = f"52:54:00:68:{me:02x}:{number:02x}"
            argv += ["-netdev", backend, "-device", f"virtio-net-pci,netdev=n{number},mac={mac}"]
        self._qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def power_off(self) -> None:
        """Take its power away: its QEMU is killed, and nothing in it learns of that."""
        assert self._qemu is not None
        self._qemu.send_signal(signal.SIGKILL)
        self._qemu.wait()
        self._qemu = None

    def wait(self, patience_s: float = BOOT_PATIENCE_S) -> None:
        """Return when ssh answers; raises `TimeoutError`."""
        give_up = time.monotonic() + patience_s
        while self.run("true", check=False, quiet=True) != 0:
            if self._qemu is None or self._qemu.poll() is not None:
                raise RuntimeError(f"{self.name}'s QEMU ended")
            if time.monotonic() > give_up:
                raise TimeoutError(f"{self.name} did not answer ssh in {patience_s:.0f} s")
            time.sleep(1)

    def run(self, command: str, *, check: bool = True, quiet: bool = False) -> int:
        """Run a command there and return its exit code."""
        gone = subprocess.DEVNULL if quiet else None
        words = [*self.ssh, f"root@{self.name}", command]
        return subprocess.run(words, check=check, stdout=gone, stderr=gone).returncode

    def output(self, command: str) -> str:
        """Return what a command prints there; raises `CalledProcessError`."""
        words = [*self.ssh, f"root@{self.name}", command]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def ssh_words(folder: Path) -> list[str]:
    """Make a key and the configuration of an ssh that knows both machines by name."""
    key, config = folder / "id_ed25519", folder / "ssh_config"
    if not key.exists():
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "two_kernels", "-f", key]
        subprocess.run(keygen, check=True)
    config.write_text(
        f"UserKnownHostsFile {folder / 'known_hosts'}\nGlobalKnownHostsFile /dev/null\n"
        f"IdentityFile {key}\nIdentitiesOnly yes\nUser root\nLogLevel ERROR\n"
        "StrictHostKeyChecking accept-new\nBatchMode yes\nConnectTimeout 20\n"
        + "".join(f"Host hv{n}\n  HostName 10.68.0.1{n}\n" for n in (1, 2))
    )
    return [shutil.which("ssh") or "ssh", "-F", str(config)]


def environment(folder: Path, ssh: Sequence[str]) -> dict[str, str]:
    """Return the environment of coloctl here, with every folder of its own in ``folder``."""
    places = {
        "COLOCTL_STATE_DIR": "state",
        "COLOCTL_CONFIG_DIR": "config",
        "COLOCTL_REGISTRY_DIR": "registry",
    }
    own = {name: str(folder / place) for name, place in places.items()}
    # coloctl's own ssh gives a machine up that is silent for 3 s; emulated ones may be, when they
    # get little of a processor. What stands first counts.
    patient = [*ssh, "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=6"]
    return {**os.environ, **own, "COLOCTL_SSH": shlex.join(patient)}
