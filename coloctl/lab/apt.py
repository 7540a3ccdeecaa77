"""Fetch and unpack Debian packages of any suite, without root and without touching the system.

Called by `lab.guestbuild`, `lab.qemu`, `lab.compiler` and `lab.layer` for what they need.

The machine's own apt does the work: it resolves, checks signatures and resumes. Only its root is
private, so that dependencies come out as on an empty machine. Mirrors, proxies and passwords are
those of the machine; the name of the suite is the one thing that changes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coloctl.errors import ProvisionError
from coloctl.lab.lock import exclusive
from coloctl.lab.progress import Progress, Report, silent
from coloctl.paths import cache_dir

#: Debian's archive keys, as its package debian-archive-keyring installs them. One good signature
#: is enough for apt, and every release is also signed with the key of the release before it.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

#: Names that only Debian's own archive, or a mirror of it, gives to a suite.
DEBIAN_SUITE = re.compile(
    r"(bullseye|bookworm|trixie|forky|sid|(old){0,2}stable|testing|unstable)(-updates|-backports)?"
)

#: Folders that no program reads at run time.
NOT_UNPACKED = ("doc", "man", "info", "locale", "lintian", "bug", "doc-base")

_INDEX_URI = re.compile(r"'([^']+?)/*/dists/([^/']+)/main/binary-[^/']+/Packages")
_FILE_LINE = re.compile(r"'([^']+)' (\S+) (\d+)")
_PERCENT = re.compile(r"dlstatus:\d+:([\d.]+):")


@dataclass(frozen=True, slots=True)
class _Deb:
    """A package file as apt plans it; ``size`` in bytes."""

    path: Path
    size: int

    def here(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size == self.size


@dataclass(frozen=True, slots=True)
class _Request:
    """A request to apt, with the place of its private root for that suite."""

    suite: str
    packages: tuple[str, ...]
    verb: tuple[str, ...]

    @property
    def home(self) -> Path:
        return cache_dir().absolute() / "apt" / self.suite

    @property
    def archives(self) -> Path:
        """A folder of its own, so that discarding one request takes nothing from another."""
        name = hashlib.sha256("\n".join([*self.verb, *self.packages]).encode()).hexdigest()[:12]
        return self.home / "archives" / name

    def command(self, *options: str) -> list[str]:
        # Backports are chosen only when they are asked for by name.
        target = ("-t", self.suite) if self.suite.endswith("-backports") else ()
        return ["apt-get", "-y", *target, *options, *self.verb, *self.packages]


def fetch(suite: str, packages: Sequence[str], *, report: Report = silent) -> list[Path]:
    """Fetch the packages and all they depend on as .deb files, and return their paths.

    Packages that are merely recommended are not fetched. The files stay until `discard`, so a
    download that was interrupted goes on where it stopped.
    Raises `ProvisionError` when no mirror of this machine serves them.
    """
    verb = ("install", "--download-only", "--no-install-recommends")
    return _fetch(_Request(suite, tuple(packages), verb), report)


def fetch_only(suite: str, packages: Sequence[str], *, report: Report = silent) -> list[Path]:
    """Fetch the named packages alone, without what they need; `ProvisionError` as `fetch`."""
    return _fetch(_Request(suite, tuple(packages), ("download",)), report)


def discard(debs: Iterable[Path]) -> None:
    """Remove the .deb files that `fetch` returned, with the folder that held them."""
    ours = cache_dir() / "apt"
    for folder in {deb.parent for deb in debs}:
        if folder.is_relative_to(ours):
            shutil.rmtree(folder, ignore_errors=True)


def unpack(debs: Iterable[Path], prefix: Path, *, report: Report = silent) -> None:
    """Unpack all packages into ``prefix``, which holds nothing else then.

    After an error it is as it was before. Files belong to the caller. No set-user-id bit survives,
    because the files there never receive an update. Maintainer scripts do not run. Raises
    `ProvisionError` when a package is damaged or the disk is full.
    """
    todo = list(debs)
    total = sum(deb.stat().st_size for deb in todo)
    done = 0
    staging = prefix.with_name(f"{prefix.name}.unpacking")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        for deb in todo:
            report(Progress(f"unpacking {deb.name.split('_')[0]}", done, total))
            _unpack_one(deb, staging)
            done += deb.stat().st_size
        shutil.rmtree(prefix, ignore_errors=True)
        staging.rename(prefix)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def mirrors() -> list[str]:
    """Find the base URIs from which this machine takes Debian's ``main``, likeliest first.

    apt itself reads the sources here, in whichever format they are written; nothing is downloaded.
    """
    listing = _run(["apt-get", "update", "--print-uris"], os.environ, "read this machine's sources")
    found = [
        base
        for base, suite in _INDEX_URI.findall(listing)
        if DEBIAN_SUITE.fullmatch(suite) and not base.startswith("cdrom:")
    ]
    # Others name their suites after Debian's too, but only a mirror of Debian is called "debian".
    return sorted(dict.fromkeys(found), key=lambda base: not base.endswith("/debian"))


def _fetch(request: _Request, report: Report) -> list[Path]:
    for tool in ("apt-get", "apt-config", "dpkg-deb", "tar"):
        if shutil.which(tool) is None:
            raise ProvisionError(
                f"Debian packages cannot be fetched here: {tool} is missing.",
                hint="use a Debian machine, or install a QEMU with COLO yourself",
            )
    with exclusive(request.home / "coloctl.lock", f"Debian {request.suite}", report) as lock:
        refusal = ProvisionError(
            "This machine's apt has no source with Debian's main archive.",
            hint="add your Debian mirror to /etc/apt/sources.list.d",
        )
        for mirror in mirrors():
            try:
                return _fetch_from(mirror, request, lock, report)
            except ProvisionError as error:
                refusal = error
        raise refusal


def _fetch_from(mirror: str, request: _Request, lock: int, report: Report) -> list[Path]:
    env = _private_root(mirror, request)
    report(Progress(f"Debian {request.suite}: package lists"))
    stale: ProvisionError | None = None
    try:
        doing = f"read the package lists of Debian {request.suite}"
        _run(["apt-get", "-q", "update"], env, doing, keep=(lock,))
    except ProvisionError as error:
        stale = error  # the lists of an earlier call will do where they are there
    try:
        plan = _plan(request, env)
    except ProvisionError as error:
        raise stale or error from None
    _download(request, env, plan, lock, report)
    return sorted(deb.path for deb in plan)


def _plan(request: _Request, env: dict[str, str]) -> list[_Deb]:
    """Find all files that the request needs.

    Files that are here already are found too, because apt is shown an empty folder.
    """
    with tempfile.TemporaryDirectory() as empty:
        (Path(empty) / "partial").mkdir()
        command = request.command("-qq", "--print-uris", "-o", f"Dir::Cache::Archives={empty}")
        doing = f"resolve packages of Debian {request.suite}"
        listing = _run(command, env, doing, cwd=Path(empty))
    plan = []
    for uri, name, size in _FILE_LINE.findall(listing):
        local = uri.startswith("file:")  # apt leaves those where they are
        plan.append(_Deb(Path(uri[5:]) if local else request.archives / name, int(size)))
    return plan


def _download(
    request: _Request, env: dict[str, str], plan: Sequence[_Deb], lock: int, report: Report
) -> None:
    total = sum(deb.size for deb in plan)
    before = sum(deb.size for deb in plan if deb.here())
    what = f"downloading {len(plan)} packages of Debian {request.suite}"
    report(Progress(what, before, total))
    if before == total:
        return
    receiving, giving = os.pipe()
    with (
        tempfile.TemporaryFile("w+") as output,
        os.fdopen(receiving) as status,
        subprocess.Popen(
            request.command("-q", "-o", f"APT::Status-Fd={giving}"),
            env=env,
            cwd=request.archives,  # `apt-get download` leaves its files in the working directory
            pass_fds=(giving, lock),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as apt,
    ):
        os.close(giving)
        try:
            for line in status:
                if match := _PERCENT.match(line):
                    share = float(match[1]) / 100
                    report(Progress(what, before + int((total - before) * share), total))
        except BaseException:
            apt.terminate()
            raise
        code = apt.wait()
        output.seek(0)
        text = output.read()
    missing = [deb.path.name for deb in plan if not deb.here()]
    if code or missing:
        reason = text if code else f"E: {missing[0]} is missing or incomplete after the download"
        raise _refusal(f"download from Debian {request.suite}", reason)
    report(Progress(what, total, total))


def _private_root(mirror: str, request: _Request) -> dict[str, str]:
    """Write the private root; return the environment in which apt sees an empty machine.

    That machine has no hooks of its own.
    """
    home = request.home
    (request.archives / "partial").mkdir(parents=True, exist_ok=True)
    (home / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (home / "status").touch()
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    suites = dict.fromkeys([request.suite.removesuffix("-backports"), request.suite])
    sources = home / "sources.list"
    sources.write_text("".join(f"deb {signed}{mirror} {name} main\n" for name in suites))
    options = {
        "Dir::State": home,
        "Dir::State::Lists": home / "lists",
        "Dir::State::Status": home / "status",
        "Dir::Cache": home,
        "Dir::Cache::Archives": request.archives,
        "Dir::Cache::PkgCache": request.archives / "pkgcache.bin",
        "Dir::Cache::SrcPkgCache": "",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        # The machine's hooks speak of the machine's packages: they must not run for ours.
        "Dir::Etc::Main": "/dev/null",
        "Dir::Etc::Parts": "/dev/null",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Sandbox::User": "",
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
        "Acquire::GzipIndexes": "true",
        "Acquire::Retries": "3",
    }
    own = "".join(f'{key} "{value}";\n' for key, value in options.items())
    config = home / "apt.conf"
    config.write_text(_acquire_options() + own)
    return {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"}


def _acquire_options() -> str:
    """Return the machine's settings for its mirrors (proxies, certificates, limits), as apt's."""
    dump = _run(["apt-config", "dump"], os.environ, "read this machine's apt configuration")
    lines = dump.splitlines(keepends=True)
    return "".join(
        line
        for line in lines
        if line.startswith("Acquire::")
        and not line.startswith(("Acquire::IndexTargets", "Acquire::Languages"))
    )


def _unpack_one(deb: Path, target: Path) -> None:
    excluded = [f"--exclude=./usr/share/{name}/*" for name in NOT_UNPACKED]
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as packed:
        # In a user namespace with one user id, giving files away as packed would fail.
        tar = subprocess.run(
            ["tar", "-x", "--no-same-owner", "--no-same-permissions", *excluded, "-C", str(target)],
            stdin=packed.stdout,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    if tar.returncode or packed.returncode:
        reason = (tar.stderr.strip().splitlines() or ["the file is damaged"])[0]
        raise ProvisionError(
            f"{deb.name} could not be unpacked: {reason}.",
            hint=f"see that there is room below {target.parent}, remove {deb.parent}, try again",
        )


def _run(
    command: Sequence[str],
    env: os._Environ[str] | dict[str, str],
    doing: str,
    *,
    cwd: Path | None = None,
    keep: Sequence[int] = (),
) -> str:
    done = subprocess.run(
        command,
        env={**env, "LC_ALL": "C"},
        cwd=cwd,
        pass_fds=keep,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise _refusal(doing, done.stderr)
    return done.stdout


def _refusal(doing: str, output: str) -> ProvisionError:
    complaints = [line[3:].strip() for line in output.splitlines() if line.startswith("E: ")]
    warnings = [line[3:].strip() for line in output.splitlines() if line.startswith("W: ")]
    first = (complaints or warnings or ["apt gave no reason"])[0].rstrip(".")
    if "NO_PUBKEY" in output or "is not signed" in output or "public key" in output:
        hint = "this machine's Debian keys are too old: upgrade the package debian-archive-keyring"
    elif "Unable to locate package" in output:
        hint = "this mirror has no such package in that suite"
    else:
        hint = "check the network and apt's proxy settings; what was fetched is kept"
    return ProvisionError(f"apt could not {doing}: {first}.", hint=hint)
