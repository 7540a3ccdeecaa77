"""Provide the lab's guest: Debian's cloud kernel, an initramfs with redis, an empty data disk.

Called by `check.choose` to find or build it and by `lab.sample` for a pair's disks and command
line; `chaos.workloads` takes its ports. Calls `lab.guestbuild` to build it.

Its packages are Debian 12's on every host, not the host's own. It is built once per recipe in
the cache, as an ordinary user, from the versions that are current then; delete its folder there to
have it built again from newer ones.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from coloctl import paths
from coloctl.errors import ProvisionError
from coloctl.lab import guestbuild
from coloctl.lab.guestbuild import DISK, INITRD, KERNEL, Recipe
from coloctl.lab.lock import exclusive
from coloctl.lab.progress import Report, silent

#: On the console once redis answers; a start that cannot succeed prints FAILED_PREFIX and a reason,
#: then powers the guest off.
READY_LINE = "coloctl-guest: ready"
FAILED_PREFIX = "coloctl-guest: failed:"
BOOT_ID_PREFIX = "coloctl-guest: boot-id="

REDIS_PORT = 6379
#: Where services=True opened them: an echo for TCP and UDP, a web server, blocks on the disk.
ECHO_PORT = 7007
WEB_PORT = 7080
BLOCKS_PORT = 7009

#: The cloud kernel of the usual guest has no drivers for what no cloud has. The other one has its
#: file system in modules, of which ext4 names all but the last.
FULL_KERNEL = "linux-image-amd64"
FULL_KERNEL_MODULES = ("ext4", "crc32c_generic")


@dataclass(frozen=True)
class GuestImage:
    """The arguments with which QEMU boots the guest, and a disk to copy.

    The arguments are `-kernel`, `-initrd` and `-append`.
    """

    kernel: Path
    initrd: Path
    append: str
    disk: Path

    def append_for(
        self,
        address: str,
        *,
        gateway: str | None = None,
        syncookies: int | None = None,
        loopback: bool = True,
        http_port: int | None = None,
        second_address: str | None = None,
        disks: tuple[str, ...] = (),
        services: bool = False,
    ) -> str:
        """Return the kernel command line of a guest.

        ``address`` is that of its first NIC ("10.77.0.10/24"), ``gateway`` its default route.

        The guest connects to itself once before it is ready, so that its kernel draws the secrets
        of TCP; with ``loopback=False`` the first client makes it draw them, as in guests of users.
        ``syncookies`` is net.ipv4.tcp_syncookies (the guest's own default is 2). On ``http_port``
        it serves its boot id as a web page. ``second_address`` is that of a second NIC. ``disks``
        are the guest's names of one or two disks (by default /dev/vda); a second one has a redis of
        its own. With ``services`` it serves on ECHO_PORT, WEB_PORT and BLOCKS_PORT besides.
        """
        words = [self.append, f"coloctl.ip={address}"]
        if gateway is not None:
            words.append(f"coloctl.gw={gateway}")
        if syncookies is not None:
            words.append(f"coloctl.syncookies={syncookies}")
        if not loopback:
            words.append("coloctl.loopback=0")
        if http_port is not None:
            words.append(f"coloctl.http={http_port}")
        if second_address is not None:
            words.append(f"coloctl.ip2={second_address}")
        words += [f"coloctl.disk{'2' if n else ''}={disk}" for n, disk in enumerate(disks)]
        if services:
            words.append("coloctl.services=1")
        return " ".join(words)

    def copy_disk(self, to: Path) -> Path:
        """Make ``to`` a disk with an empty file system; what was there is replaced.

        The companion file of the disk that lay there, ``TO.generation``, is removed too
        (`colo.companion`). Raises `OSError` when that cannot be written or removed.
        """
        with _replaced(to) as fresh:
            shutil.copyfile(self.disk, fresh)
        to.with_name(f"{to.name}.generation").unlink(missing_ok=True)
        return to


def recipe(*, disk_mib: int = 512, drivers: tuple[str, ...] = ()) -> Recipe:
    """Return the recipe of this version of coloctl.

    ``disk_mib`` is the size of its disk. ``drivers`` are further modules of Debian's kernel
    (e1000): those of real hardware, for which the larger kernel is taken.
    """
    files = resources.files("coloctl.lab").joinpath("files")
    init, shutdown, services = (
        files.joinpath(name).read_text("utf-8") for name in ("init", "shutdown", "services")
    )
    made = Recipe(init=init, shutdown=shutdown, services=services, disk_mib=disk_mib)
    if not drivers:
        return made
    modules = (*made.modules, *FULL_KERNEL_MODULES, *drivers)
    return replace(made, kernel_package=FULL_KERNEL, modules=modules)


def find(*, disk_mib: int = 512, drivers: tuple[str, ...] = ()) -> GuestImage | None:
    """Return the guest if it was built before; nothing is downloaded or built."""
    made = recipe(disk_mib=disk_mib, drivers=drivers)
    image = _image(_home() / made.digest(), made)
    whole = image.kernel.exists() and image.initrd.exists() and image.disk.exists()
    return image if whole else None


def provide(
    *,
    qemu_img: Path | None = None,
    disk_mib: int = 512,
    drivers: tuple[str, ...] = (),
    report: Report = silent,
) -> GuestImage:
    """Return the guest from the cache; build it now if it is not there.

    ``disk_mib`` and ``drivers`` as for `recipe`. ``qemu_img`` makes its disk (the one on PATH by
    default). Raises `ProvisionError` when the cache cannot be written, there is no qemu-img, a
    package cannot be had or a tool fails. Several processes may ask at once: one builds, the others
    wait for it, without a limit.
    """
    if (built := find(disk_mib=disk_mib, drivers=drivers)) is not None:
        return built
    made = recipe(disk_mib=disk_mib, drivers=drivers)
    folder = _home() / made.digest()
    with exclusive(_home() / "lock", "the lab's guest", report):
        if find(disk_mib=disk_mib, drivers=drivers) is None:
            _build(folder, made, _qemu_img(qemu_img), report)
    return _image(folder, made)


def _build(folder: Path, made: Recipe, qemu_img: Path, report: Report) -> None:
    for abandoned in (folder, *_home().glob(".*")):
        shutil.rmtree(abandoned, ignore_errors=True)
    try:
        with _replaced(folder) as fresh:
            fresh.mkdir()
            guestbuild.build(fresh, made, qemu_img, report)
    except OSError as error:
        raise ProvisionError(
            f"The guest could not be written below {_home()}: {error.strerror}.",
            hint="make room there, or set COLOCTL_CACHE_DIR to another folder",
        ) from error


def _home() -> Path:
    return paths.cache_dir().absolute() / "guest"


def _image(folder: Path, made: Recipe) -> GuestImage:
    return GuestImage(folder / KERNEL, folder / INITRD, made.append, folder / DISK)


def _qemu_img(chosen: Path | None) -> Path:
    if chosen is not None:
        return chosen
    if (found := shutil.which("qemu-img")) is not None:
        return Path(found)
    raise ProvisionError(
        "There is no qemu-img to make the guest's disk with.",
        hint="install qemu-utils, or let coloctl fetch a QEMU first: coloctl lab qemu",
    )


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Yield a path to write to, and rename it to ``path`` at the end.

    After an error the written file is gone, and ``path`` is as it was.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        fresh = Path(scratch) / path.name
        yield fresh
        fresh.rename(path)
