"""Build the disk of a machine for `run`: Debian 13 with its kernel, systemd, sshd and QEMU 11.1.

Called by `machines.py`, and by hand: ``PYTHONPATH=tests python tests/two_kernels/image.py``. Needs
root and mke2fs. The folder in the cache holds vmlinuz, initrd.img and root.qcow2 afterwards, or is
not there. Both machines start from this disk; name and addresses come from the kernel's command
line and the MACs.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

from support.debianroot import APART

from coloctl.errors import ProvisionError
from coloctl.lab import apt, qemu
from coloctl.lab.guestbuild import run_tool
from coloctl.lab.lock import exclusive
from coloctl.lab.progress import Progress, Report, silent
from coloctl.paths import cache_dir

SUITE = "trixie"
PACKAGES = (
    "systemd-sysv",
    "udev",
    "dbus",
    "openssh-server",
    "python3",
    "iproute2",
    "netbase",
    "kmod",
    "zstd",
    "initramfs-tools",
    "linux-image-cloud-amd64",
    "ipxe",  # the guest of the pair: /usr/lib/ipxe/ipxe.lkrn
)
#: As docs/two-machines.md has an operator install it; from backports, for a QEMU that holds COLO.
QEMU_PACKAGES = ("qemu-system-x86", "qemu-utils")
KERNEL, INITRD, DISK = "vmlinuz", "initrd.img", "root.qcow2"
DISK_MIB = 4096
#: Grows when this file changes what comes out.
RECIPE = 1

_run = partial(run_tool, "the disk")

#: By the MACs of `machines.py`: each machine takes its own addresses.
NETWORK = """\
[Match]
MACAddress={mac}
[Network]
{body}
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
FILES = {
    "etc/hostname": "",
    "etc/machine-id": "",
    "etc/hosts": "127.0.0.1 localhost\n10.68.0.11 hv1\n10.68.0.12 hv2\n",
    "etc/fstab": "/dev/vda / ext4 noatime 0 1\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
    "etc/initramfs-tools/conf.d/small": "MODULES=list\nCOMPRESS=zstd\n",
    "etc/systemd/network/br0.netdev": "[NetDev]\nName=br0\nKind=bridge\n[Bridge]\nSTP=no\n",
    "etc/systemd/network/br0.network": (
        "[Match]\nName=br0\n[Network]\nLinkLocalAddressing=no\nConfigureWithoutCarrier=yes\n"
    ),
    "etc/systemd/system/hostkey.service": (
        "[Unit]\nBefore=ssh.service\nConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n"
        "[Service]\nType=oneshot\n"
        "ExecStart=ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key\n"
        "[Install]\nWantedBy=multi-user.target\n"
    ),
    "etc/ssh/sshd_config.d/run.conf": (
        "HostKey /etc/ssh/ssh_host_ed25519_key\nPermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
    ),
    # What goes wrong there is seen from outside.
    "etc/systemd/journald.conf.d/console.conf": (
        "[Journal]\nForwardToConsole=yes\nTTYPath=/dev/ttyS0\nMaxLevelConsole=notice\n"
    ),
}
#: Of no use to a machine that lives for an hour, and dear under emulation.
MASKED = (
    "systemd-networkd-wait-online.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "e2scrub_reap.service",
    "serial-getty@ttyS0.service",
    "getty@tty1.service",
    "systemd-pcrphase.service",
)


def networks() -> dict[str, str]:
    """Return the files that give hv1 and hv2 their addresses, by MAC."""
    files = {}
    for number in (1, 2):
        bodies = {
            "management": f"Address=10.68.0.1{number}/24",
            "replication": f"Address=10.66.0.{number}/24",
            "guests": "Bridge=br0",
        }
        for which, (name, body) in enumerate(bodies.items(), 1):
            mac = f"52:54:00:68:{number:02x}:{which:02x}"
            text = NETWORK.format(mac=mac, body=body)
            files[f"etc/systemd/network/{name}-hv{number}.network"] = text
    return files


def folder() -> Path:
    """Return the folder of the disk, built or not."""
    return cache_dir() / "two-kernels" / f"debian-{RECIPE}"


def provide(report: Report = silent) -> Path:
    """Build the disk unless it is there, and return its folder. Raises `ProvisionError`."""
    home = folder()
    home.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(home.with_suffix(".lock"), "the machines' Debian", report):
        if not (home / DISK).exists():
            if shutil.which("mke2fs") is None:
                raise ProvisionError("There is no mke2fs here.", hint="apt-get install e2fsprogs")
            staging = home.with_suffix(".new")
            shutil.rmtree(staging, ignore_errors=True)
            try:
                _build(staging, report)
                shutil.rmtree(home, ignore_errors=True)
                staging.rename(home)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return home


def _build(staging: Path, report: Report) -> None:
    root = staging / "root"
    if given := os.environ.get("TWO_KERNELS_ROOT"):
        staging.mkdir()
        _run(["cp", "-a", given, str(root)])
    else:
        _debootstrap(staging, root, report)
    for name, text in (FILES | networks()).items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    # Each machine makes its own: from dbus's, both would take the same /etc/machine-id.
    for own in [*(root / "etc/ssh").glob("ssh_host_*"), root / "var/lib/dbus/machine-id"]:
        own.unlink(missing_ok=True)
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    inside = ["chroot", str(root)]
    _run([*inside, "systemctl", "enable", "systemd-networkd", "hostkey", "ssh"])
    _run([*inside, "systemctl", "mask", *MASKED])
    _run([*APART, *inside, "update-initramfs", "-u"])
    _run([*inside, "sh", "-c", "apt-get clean; rm -rf /var/lib/apt/lists/*; passwd -d root"])
    boot = root / "boot"
    shutil.copy2(next(boot.glob("vmlinuz-*")), staging / KERNEL)
    shutil.copy2(next(boot.glob("initrd.img-*")), staging / INITRD)
    report(Progress("the machines' disk"))
    raw = staging / "root.raw"
    _run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(raw), f"{DISK_MIB}M"])
    img = str(qemu.provide("11.1").img)
    _run([img, "convert", "-f", "raw", "-O", "qcow2", str(raw), str(staging / DISK)])
    raw.unlink()
    shutil.rmtree(root)


def _debootstrap(staging: Path, root: Path, report: Report) -> None:
    mirror, tools = apt.mirrors()[0], staging / "tools"
    debs = apt.fetch_only(SUITE, ["debootstrap"], report=report)
    apt.unpack(debs, tools, report=report)
    report(Progress("debootstrap builds a Debian 13: some minutes"))
    _run(
        [
            *APART, "sh", str(tools / "usr/sbin/debootstrap"), "--variant=minbase",
            f"--include={','.join(PACKAGES)}", SUITE, str(root), mirror,
        ],
        DEBOOTSTRAP_DIR=str(tools / "usr/share/debootstrap"),
    )  # fmt: skip
    apt.discard(debs)
    shutil.rmtree(tools)
    sources = root / "etc/apt/sources.list.d/backports.list"
    sources.write_text(f"deb {mirror} {SUITE}-backports main\n")
    shutil.copy2("/etc/resolv.conf", root / "etc/resolv.conf")
    report(Progress("QEMU of the backports"))
    words = "export DEBIAN_FRONTEND=noninteractive; apt-get -q update && apt-get -q install -y"
    words += f" --no-install-recommends -t {SUITE}-backports {' '.join(QEMU_PACKAGES)}"
    _run([*APART, "chroot", str(root), "sh", "-c", words])


if __name__ == "__main__":
    print(provide(lambda progress: print(progress.what)))
