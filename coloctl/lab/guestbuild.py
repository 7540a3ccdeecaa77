"""Build the lab's guest by a recipe: kernel, initrd and disk.

Called by `lab.guest` when the cache does not hold the guest of that recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from coloctl.errors import ProvisionError
from coloctl.lab import apt, initramfs
from coloctl.lab.initramfs import ArchiveEntry
from coloctl.lab.progress import Progress, Report

#: Raise it when this file changes what comes out of an unchanged recipe.
_VERSION = 1

KERNEL = "vmlinuz"
INITRD = "initrd.img"
DISK = "data.qcow2"

#: The slowest tool writes 512 MiB of mostly nothing, in well under a second on an idle disk.
_TOOL_DEADLINE_S = 120.0

_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_FOLDERS = ("data", "data2", "dev", "proc", "run", "sys", "tmp", "www")
_LOADER = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"


def run_tool(
    built: str, argv: Sequence[str], *, deadline_s: float | None = None, **environment: str
) -> str:
    """Return the output of a tool that builds something, run in English and without input.

    ``built`` names in a message the thing that is built. Raises `ProvisionError` where the tool
    cannot run or fails, with its last lines, or does not end in ``deadline_s``.
    """
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, "LC_ALL": "C", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
        )
    except OSError as error:
        raise ProvisionError(f"{argv[0]} cannot be run: {error.strerror}.") from error
    except subprocess.TimeoutExpired as error:
        raise ProvisionError(f"{argv[0]} did not end in {deadline_s:.0f} s.") from error
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-3:] or ["no message"]
        name = Path(argv[0]).name
        raise ProvisionError(f"{name} failed while it built {built}: {' / '.join(last)}")
    return done.stdout


_run = partial(run_tool, "the guest", deadline_s=_TOOL_DEADLINE_S)


@dataclass(frozen=True)
class Recipe:
    """All that decides what the guest is, except which package versions were current."""

    version: int = _VERSION
    suite: str = "bookworm"
    kernel_package: str = "linux-image-cloud-amd64"
    #: Packages that are copied from, or that its programs are linked with: Debian 12's names.
    packages: tuple[str, ...] = (
        "busybox-static",
        "redis-server",
        "redis-tools",
        "qemu-guest-agent",
        "perl-base",
        "libatomic1",
        "libc6",
        "libcap2",
        "libcrypt1",
        "libgcc-s1",
        "libgcrypt20",
        "libglib2.0-0",
        "libgpg-error0",
        "libjemalloc2",
        "liblz4-1",
        "liblzf1",
        "liblzma5",
        "libnuma1",
        "libpcre2-8-0",
        "libssl3",
        "libstdc++6",
        "libsystemd0",
        "libudev1",
        "liburing2",
        "libzstd1",
    )
    #: mke2fs comes from the same suite, so that the file system does not depend on the host.
    disk_packages: tuple[str, ...] = (
        "e2fsprogs",
        "libblkid1",
        "libcom-err2",
        "libext2fs2",
        "libuuid1",
    )
    programs: tuple[str, ...] = (
        "usr/bin/redis-server",
        "usr/bin/redis-cli",
        "usr/sbin/qemu-ga",
        "usr/bin/perl",
    )
    modules: tuple[str, ...] = (
        "virtio_pci",
        "virtio_blk",
        "virtio_net",
        "virtio_scsi",
        "sd_mod",
        "button",  # the ACPI power button, and
        "evdev",  # the event device that reports it
        "pvpanic_pci",  # QEMU is notified of a panic
        "virtio_console",  # the guest agent's port
    )
    append: str = " ".join(
        (
            "console=ttyS0,115200",
            "quiet",  # every character on the serial line costs the guest time
            "panic=-1",  # start again at once: the service comes back, redis replays its file
            "ipv6.disable=1",  # colo-compare lets IPv6 pass uncompared, and it chatters
            "nowatchdog",  # no periodic self-checks
            "tsc=reliable",  # a paused or starved guest must not lose trust in its clock
            "no_timer_check",  # the timer test at boot fails on a busy host
            "mitigations=off",  # this guest has one user; under TCG they only cost time
            "random.trust_cpu=on",
            "cryptomgr.notests",  # a quarter of a second of self-tests
        )
    )
    init: str = ""
    shutdown: str = ""  #: what the guest agent calls
    services: str = ""  #: what the guest serves beside redis, on request
    disk_mib: int = 512

    def digest(self) -> str:
        """Compute the name of the folder of this recipe's guest in the cache."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(folder: Path, recipe: Recipe, qemu_img: Path, report: Report) -> None:
    """Build kernel, initrd and the pristine disk into ``folder``.

    Its manifest.json lists the packages used. Raises `ProvisionError` when a package cannot be had
    or a tool fails.
    """
    packages = (*recipe.packages, *recipe.disk_packages, recipe.kernel_package)
    debs = apt.fetch_only(recipe.suite, packages, report=report)
    debs += apt.fetch_only(recipe.suite, [_kernel_image(recipe, debs)], report=report)
    root = folder / "root"
    apt.unpack(debs, root, report=report)
    _announce(report, "building the guest's initramfs")
    modules = next(_find(root, "lib/modules").iterdir())
    _find(root, f"boot/vmlinuz-{modules.name}").rename(folder / KERNEL)
    (folder / INITRD).write_bytes(initramfs.archive(_entries(root, modules, recipe)))
    _announce(report, "making the guest's disk")
    _make_disk(root, folder / DISK, recipe.disk_mib, qemu_img)
    manifest = {"packages": sorted(deb.name for deb in debs), "append": recipe.append}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    shutil.rmtree(root)
    apt.discard(debs)


def _announce(report: Report, what: str) -> None:
    report(Progress(what))


def _kernel_image(recipe: Recipe, debs: Sequence[Path]) -> str:
    """Find the package that the kernel's metapackage stands for, in what that depends on."""
    meta = next(deb for deb in debs if deb.name.startswith(f"{recipe.kernel_package}_"))
    depends = _run(["dpkg-deb", "--field", str(meta), "Depends"])
    found = re.search(r"linux-image-[0-9][^ ,]*", depends)
    if found is None:
        raise ProvisionError(f"{meta.name} names no kernel among its dependencies.")
    return found[0]


def _entries(root: Path, modules: Path, recipe: Recipe) -> list[ArchiveEntry]:
    """Assemble the guest's root file system; ``modules`` is the folder named after the kernel."""
    wanted = initramfs.module_closure(modules, recipe.modules)
    return [
        *(initramfs.folder(name) for name in _FOLDERS),
        # The kernel opens it for PID 1 before anything is mounted.
        initramfs.character_device("dev/console", 5, 1),
        initramfs.file("init", recipe.init.encode(), 0o755),
        initramfs.file("sbin/shutdown", recipe.shutdown.encode(), 0o755),
        initramfs.file("lib/services", recipe.services.encode(), 0o644),
        *_busybox(root),
        *_programs(root, recipe.programs),
        *initramfs.module_entries(modules.name, wanted),
    ]


def _find(root: Path, name: str) -> Path:
    """Find ``name`` in the unpacked packages; an update may have moved it below /usr."""
    for path in (root / name, root / "usr" / name):
        if path.exists():
            return path
    raise ProvisionError(f"The guest's packages hold no {name}.")


def _busybox(root: Path) -> list[ArchiveEntry]:
    """Return busybox (static) and a link for every command it knows."""
    binary = _find(root, "bin/busybox")
    commands = _run([str(binary), "--list"]).split()
    return [
        initramfs.file("bin/busybox", binary.read_bytes(), 0o755),
        *(initramfs.link(f"bin/{name}", "busybox") for name in commands if name != "busybox"),
    ]


def _programs(root: Path, programs: Sequence[str]) -> list[ArchiveEntry]:
    """Return the programs, their loader, and every library that the loader itself would load."""
    entries = [initramfs.file("lib64/ld-linux-x86-64.so.2", (root / _LOADER).read_bytes(), 0o755)]
    libraries: dict[str, Path] = {}
    for program in programs:
        entries.append(
            initramfs.file(f"bin/{Path(program).name}", (root / program).read_bytes(), 0o755)
        )
        libraries |= _libraries(root, root / program)
    for name, path in sorted(libraries.items()):
        entries.append(initramfs.file(f"lib/x86_64-linux-gnu/{name}", path.read_bytes(), 0o755))
    return entries


def _libraries(root: Path, program: Path) -> Mapping[str, Path]:
    listing = _run([*_loaded(root), "--list", str(program)])
    found = dict(re.findall(r"^\s*(\S+) => (\S+) \(0x", listing, re.MULTILINE))
    foreign = [name for name, path in found.items() if not Path(path).is_relative_to(root)]
    if foreign or "not found" in listing:
        raise ProvisionError(f"{program.name} needs a library that is not in the guest's packages.")
    return {name: Path(path) for name, path in found.items() if "/" not in name}


def _loaded(root: Path) -> list[str]:
    """Return the words before a program of ``root`` that make it use the libraries there."""
    where = ":".join(str(root / folder) for folder in _LIBRARIES)
    return [str(root / _LOADER), "--library-path", where]


def _make_disk(root: Path, disk: Path, size_mib: int, qemu_img: Path) -> None:
    """Make ``disk`` a qcow2 with an empty ext4 that has no initialisation left to do later.

    With lazy initialisation the kernel would write in the background after the first mount.
    """
    raw = disk.with_suffix(".raw")
    with raw.open("wb") as out:
        out.truncate(size_mib << 20)
    mke2fs = _find(root, "sbin/mke2fs")
    options = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
    command = [*_loaded(root), str(mke2fs), "-q", "-F", "-t", "ext4", "-L", "data", "-m", "0"]
    _run([*command, "-E", options, str(raw)], MKE2FS_CONFIG=str(root / "etc/mke2fs.conf"))
    _run([str(qemu_img), "convert", "-q", "-f", "raw", "-O", "qcow2", str(raw), str(disk)])
    raw.unlink()
