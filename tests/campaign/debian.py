"""Build the campaign's guest: Debian with systemd and PostgreSQL, as an installation makes it.

Called by `campaign.py`, and by hand:
``PYTHONPATH=tests python tests/campaign/debian.py QEMU_IMG``. Needs root, wget and mke2fs. Its
folder in the cache holds vmlinuz, initrd.img and root.qcow2 afterwards, or is not there; of a build
that was interrupted neither processes nor mounts are left.
"""

from __future__ import annotations

import os
import shutil
import sys
from functools import partial
from pathlib import Path

from support.debianroot import APART

from coloctl.errors import ProvisionError
from coloctl.lab import apt
from coloctl.lab.guestbuild import run_tool
from coloctl.lab.layout import GUEST, PREFIX_LENGTH
from coloctl.lab.lock import exclusive
from coloctl.lab.progress import Progress, Report, silent
from coloctl.paths import cache_dir

SUITE = "trixie"
PACKAGES = (
    "systemd-sysv",
    "udev",
    "dbus",
    "libpam-systemd",  # logind: the guest obeys the power button
    "iproute2",
    "netbase",
    "zstd",
    "initramfs-tools",
    "linux-image-cloud-amd64",
    "postgresql",
)
#: What builds it, with the Debian package that has it.
TOOLS = {"wget": "wget", "mke2fs": "e2fsprogs", "chroot": "coreutils", "unshare": "util-linux"}
KERNEL, INITRD, DISK = "vmlinuz", "initrd.img", "root.qcow2"
DISK_MIB = 3072
READY_LINE = "campaign: postgresql serves"
#: Grows when this file changes what comes out.
RECIPE = 1

_run = partial(run_tool, "the guest")

FILES = {
    "etc/hostname": "bank\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 bank\n",
    "etc/fstab": "/dev/vda / ext4 noatime 0 1\n",
    "etc/systemd/network/10-lab.network": (
        f"[Match]\nName=e*\n[Network]\nAddress={GUEST}/{PREFIX_LENGTH}\n"
        "LinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    ),
    # Whatever goes wrong in the guest is seen from outside.
    "etc/systemd/journald.conf.d/console.conf": (
        "[Journal]\nForwardToConsole=yes\nTTYPath=/dev/ttyS0\nMaxLevelConsole=notice\n"
    ),
    "etc/systemd/system/campaign-ready.service": (
        "[Unit]\nAfter=postgresql.service postgresql@17-main.service systemd-networkd.service\n"
        "Requires=postgresql.service\n"
        "[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        "ExecStart=/bin/sh -c 'until pg_isready -q; do sleep 0.2; done; "
        f'echo "{READY_LINE}" >/dev/ttyS0\'\n'
        "[Install]\nWantedBy=multi-user.target\n"
    ),
    "etc/postgresql/17/main/conf.d/campaign.conf": (
        "listen_addresses = '*'\nlog_destination = 'syslog'\nlogging_collector = off\n"
    ),
    "etc/postgresql/17/main/pg_hba.conf": (
        f"local all all peer\nhost all all {GUEST.rsplit('.', 1)[0]}.0/{PREFIX_LENGTH} trust\n"
    ),
}


def folder() -> Path:
    """Where the guest lies, built or not."""
    return cache_dir() / "campaign" / f"debian-{RECIPE}"


def provide(qemu_img: Path, report: Report = silent) -> Path:
    """Build the guest unless it is there; answers its folder. Raises `ProvisionError`."""
    home = folder()
    with exclusive(home.with_suffix(".lock"), "the campaign's guest", report):
        if not (home / DISK).exists():
            _require_tools()
            staging = home.with_suffix(".new")
            shutil.rmtree(staging, ignore_errors=True)
            try:
                _build(staging, qemu_img, report)
                shutil.rmtree(home, ignore_errors=True)
                staging.rename(home)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return home


def _require_tools() -> None:
    if os.geteuid():
        raise ProvisionError(
            "Only root can build the campaign's guest, because debootstrap uses chroot.",
            hint="sudo make campaign-postgres",
        )
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise ProvisionError(
            f"The campaign's guest cannot be built without {' and '.join(missing)}.",
            hint=f"apt-get install {' '.join(missing)}",
        )


def _build(staging: Path, qemu_img: Path, report: Report) -> None:
    debs = apt.fetch_only(SUITE, ["debootstrap"], report=report)
    tools, root = staging / "tools", staging / "root"
    apt.unpack(debs, tools, report=report)
    report(Progress("debootstrap builds a Debian with systemd and PostgreSQL: some minutes"))
    script = tools / "usr/share/debootstrap"
    _run(
        [
            *APART, "sh", str(tools / "usr/sbin/debootstrap"),
            "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root),
            apt.mirrors()[0],
        ],
        DEBOOTSTRAP_DIR=str(script),
    )  # fmt: skip
    for name, text in FILES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    _run(["chroot", str(root), "systemctl", "enable", "systemd-networkd", "campaign-ready"])
    _run(["chroot", str(root), "sh", "-c", "rm -rf /var/cache/apt/archives/*.deb; passwd -d root"])
    boot = root / "boot"
    shutil.copy2(next(boot.glob("vmlinuz-*")), staging / KERNEL)
    shutil.copy2(next(boot.glob("initrd.img-*")), staging / INITRD)
    report(Progress("the guest's disk"))
    raw = staging / "root.raw"
    _run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(raw), f"{DISK_MIB}M"])
    _run([str(qemu_img), "convert", "-O", "qcow2", str(raw), str(staging / DISK)])
    for gone in (root, tools):
        shutil.rmtree(gone)
    raw.unlink()
    apt.discard(debs)


if __name__ == "__main__":
    print(provide(Path(shutil.which("qemu-img") or sys.argv[1]), lambda p: print(p.what)))
