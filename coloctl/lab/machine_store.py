"""Prepare what a lab machine keeps over a reboot: its own files, users, keys and configurations.

Called by `lab.machine` and `lab.machines`; calls `lab.layer` for packages, `lab.sshd` and
`certs.store` for keys.
A store is a folder below the cache, one for each machine: ``upper`` holds the files that the
machine has written or was given.

Invariant: no key or password of this system's users is given to a machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import coloctl
from coloctl.certs.store import Authority, install_from
from coloctl.errors import LabError
from coloctl.lab import layer, machine_layout, sshd
from coloctl.lab.kernel import MNT_DETACH, MS_NODEV, MS_NOSUID, call
from coloctl.lab.machine_layout import ADDRESSES, AHEAD_S
from coloctl.lab.machine_root import Root
from coloctl.lab.progress import Report, silent
from coloctl.lab.sshd import OpenSsh
from coloctl.paths import cache_dir

#: What a machine offers beside the programs of this system.
PACKAGES = (*sshd.PACKAGES, "iproute2", "nftables", "procps")

#: People's and coloctl's own folders: a machine has them, empty at first.
_OWN = ("root", "home", "etc/coloctl", "var/lib/coloctl")
#: Folders that are in memory there, and empty at each boot.
_EMPTY = ("run", "tmp", "dev")
#: The folders at the head of a root that Debian has merged into /usr.
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64")
#: Accounts that each machine has: one that runs QEMU, one that ssh may log in as without root.
_USERS = {"coloctl-qemu": (970, "/usr/sbin/nologin"), "operator": (1970, "/bin/bash")}
_SSHD_USER = "sshd:x:971:65534::/run/sshd:/usr/sbin/nologin"
#: The file that asks for clocks of their own.
_CLOCKS = "clocks"
_OPAQUE = "trusted.overlay.opaque"


def home(lab: str) -> Path:
    """Return the folder of all stores of that lab, with its keys and its ssh configuration."""
    return _all() / lab


def store(lab: str, machine: str) -> Path:
    """Return the store of that machine."""
    return home(lab) / machine


def names() -> list[str]:
    """Return the names of the labs of which a store is there, sorted."""
    with contextlib.suppress(OSError):
        return sorted(entry.name for entry in _all().iterdir() if entry.is_dir())
    return []


def _all() -> Path:
    return cache_dir().absolute() / "machines"


def clock_of(lab: str, machine: str) -> int:
    """Return the seconds by which the machine's monotonic clock is ahead of this system's."""
    return AHEAD_S[machine] if (home(lab) / _CLOCKS).exists() else 0


def prepare(lab: str, *, clocks: bool = False, report: Report = silent) -> OpenSsh:
    """Make the stores and keys of a lab where they are missing; return the programs to reach it.

    With ``clocks`` each machine has a monotonic clock of its own from its next boot on.
    A store that was left half made is made again. Raises `LabError` and
    `ProvisionError`.
    """
    packages = layer.provide(PACKAGES, report=report)
    openssh = sshd.provide(report=report)
    folder = home(lab)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _ensure_upper_allowed(folder)
        if clocks:
            (folder / _CLOCKS).touch()
        users_key = sshd.make_key(openssh, folder / "id_ed25519", f"operator of {lab}")
        keys = {
            name: sshd.make_key(openssh, folder / f"host-{name}", name)
            for name in machine_layout.NAMES
        }
        known = "".join(f"{name},{ADDRESSES[name]} {key}\n" for name, key in keys.items())
        (folder / "known_hosts").write_text(known)
        for name in machine_layout.NAMES:
            done = store(lab, name) / "made"
            if not done.exists():
                _make(lab, name, packages, users_key)
                _certify(lab, name)
                done.touch()
    except OSError as error:
        raise LabError(
            f"The files of the machines of {lab} cannot be made: {error}.",
            hint="see that there is room in the cache, or set COLOCTL_CACHE_DIR to another folder",
        ) from None
    return openssh


def remove(lab: str) -> None:
    """Remove all stores of the lab; raises `LabError` where something is mounted in one."""
    folder = home(lab)
    if str(folder) in _mounts():
        call("umount2", os.fsencode(folder), MNT_DETACH)
    if below := [place for place in _mounts() if Path(place).is_relative_to(folder)]:
        raise LabError(
            f"{below[0]} is mounted in the files of the machines of {lab}.",
            hint=f"umount {below[0]}",
        )
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # other labs have theirs
        folder.parent.rmdir()


def root_of(lab: str, machine: str) -> Root:
    """Return the parts of the machine's root: its store, and what it sees of this system."""
    package = Path(coloctl.__file__).parents[1]
    needed = {Path(sys.prefix), Path(sys.base_prefix), package, cache_dir()}
    shown: list[Path] = []
    for folder in sorted(one.resolve() for one in needed):  # what holds another comes first
        if not _seen(folder) and not any(map(folder.is_relative_to, shown)):
            shown.append(folder)
    return Root(machine, store(lab, machine), tuple(shown), (_all(),))


def _seen(folder: Path) -> bool:
    """Return whether a machine sees the folder of this system without a mount of its own.

    It does not below what is its own, nor where another filesystem is mounted here.
    """
    own = (*_OWN, *_EMPTY)
    if any(folder.is_relative_to(f"/{one}") for one in own):
        return False
    return not any(folder.is_relative_to(place) for place in _mounts() if place != "/")


def _make(lab: str, machine: str, packages: Path, users_key: str) -> None:
    place = store(lab, machine)
    shutil.rmtree(place, ignore_errors=True)
    upper = place / "upper"
    for folder in ("upper", "work", "root"):
        (place / folder).mkdir(parents=True, mode=0o755)
    for own in _OWN:
        (upper / own).mkdir(parents=True, mode=0o755)
        os.setxattr(upper / own, _OPAQUE, b"y")
    for part in sorted(packages.iterdir()):
        top = (
            f"usr/{part.name}"
            if part.name in _MERGED and Path("/", part.name).is_symlink()
            else part.name
        )
        shutil.copytree(part, upper / top, symlinks=True, dirs_exist_ok=True)
    for name, (content, mode) in _files(lab, machine, users_key).items():
        file = upper / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)
    for folder in ("root", "root/.ssh", "home/operator", "home/operator/.ssh"):
        (upper / folder).chmod(0o700)
    uid = _USERS["operator"][0]
    for entry in (upper / "home/operator", *(upper / "home/operator").rglob("*")):
        os.chown(entry, uid, uid)


def _certify(lab: str, machine: str) -> None:
    """Make the machine a certificate of the lab's own authority; raises `PreconditionFailed`."""
    addresses = machine_layout.addresses_of(machine)
    if not addresses:  # no guest runs there
        return
    authority, now = Authority(home(lab) / "ca"), datetime.now(UTC)
    if not authority.exists():
        authority.make(now)
    made = authority.provide(machine, addresses, now)
    install_from(made.folder, store(lab, machine) / "upper/etc/coloctl/tls")


def _files(lab: str, machine: str, users_key: str) -> dict[str, tuple[str, int]]:
    """Return the text and mode of each file that the machine is given, by its path there."""
    folder = home(lab)
    key, known = (folder / "id_ed25519").read_text(), (folder / "known_hosts").read_text()
    hosts = "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
    files = {
        "etc/hostname": (f"{machine}\n", 0o644),
        "etc/hosts": (f"127.0.0.1 localhost\n{hosts}", 0o644),
        "etc/machine-id": (f"{uuid.uuid4().hex}\n", 0o444),
        "etc/passwd": (_passwd(), 0o644),
        "etc/group": (_group(), 0o644),
        "etc/shadow": (_shadow(), 0o640),
        "etc/ssh/ssh_known_hosts": (known, 0o644),
        "etc/ssh/ssh_host_ed25519_key": ((folder / f"host-{machine}").read_text(), 0o600),
        "etc/ssh/sshd_config": (_sshd_config(), 0o644),
    }
    for where in ("root", "home/operator"):
        files[f"{where}/.ssh/authorized_keys"] = (f"{users_key}\n", 0o600)
        files[f"{where}/.ssh/id_ed25519"] = (key, 0o600)
    return files


def _sshd_config() -> str:
    """Return sshd's configuration inside a machine, where its programs lie at their own paths."""
    cache = os.environ.get("COLOCTL_CACHE_DIR")
    environment: Mapping[str, str] = {"COLOCTL_CACHE_DIR": cache} if cache else {}
    key = Path("/etc/ssh/ssh_host_ed25519_key")
    return sshd.server_config(
        OpenSsh(Path("/")), key, ".ssh/authorized_keys", environment, strict=True
    )


def _passwd() -> str:
    lines = [line for line in _lines("passwd") if line.split(":")[0] not in {*_USERS, "sshd"}]
    lines.append(_SSHD_USER)
    for name, (uid, shell) in _USERS.items():
        lines.append(f"{name}:x:{uid}:{uid}::/home/{name}:{shell}")
    return "\n".join((*lines, ""))


def _group() -> str:
    """Return the groups; who runs QEMU may use KVM."""

    def joined() -> Iterator[str]:
        for line in _lines("group"):
            name, _, _, members = line.split(":", 3)
            if name == "kvm":
                yield f"{line}{',' if members else ''}coloctl-qemu"
            elif name not in _USERS:
                yield line
        for name, (uid, _) in _USERS.items():
            yield f"{name}:x:{uid}:"

    return "\n".join((*joined(), ""))


def _shadow() -> str:
    """Return the passwords: none for any user. A key alone is accepted."""
    users = (line.split(":")[0] for line in _passwd().splitlines())
    return "".join(f"{name}:*:19000:0:99999:7:::\n" for name in users)


def _lines(name: str) -> list[str]:
    return (Path("/etc") / name).read_text().splitlines()


def _ensure_upper_allowed(folder: Path) -> None:
    """Mount a tmpfs on ``folder`` where its filesystem can hold no upper layer of an overlay.

    An overlay, which is what a container has as its root, cannot hold one. Raises `OSError`.
    """
    if _mounts_of(folder) == "overlay":
        call("mount", b"machines", os.fsencode(folder), b"tmpfs", MS_NOSUID | MS_NODEV, b"mode=700")


def _mounts_of(folder: Path) -> str:
    """Return the type of the filesystem in which the folder lies."""
    mounts = _mounts()
    return mounts[max((place for place in mounts if folder.is_relative_to(place)), key=len)]


def _mounts() -> dict[str, str]:
    """Read which type of filesystem is mounted where; of several in one place the last."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        place = fields[4].replace("\\040", " ")
        found[place] = fields[fields.index("-") + 1]
    return found
