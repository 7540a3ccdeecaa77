"""Receive the agent's program on the other machine, keep it by its digest, and start it.

Sent as text by `host.remote.dial` in the command that ssh runs; imports nothing of coloctl. Its
grammar and its annotations are those of Python 3.6, so that an old interpreter reports its version
and not a syntax error.

Invariant: no program is started whose digest is not the one that was asked for, from a folder that
another user can change. What is compiled from it here is kept beside it by a digest of its own.
"""

import contextlib
import hashlib
import os
import runpy
import stat
import sys
from pathlib import Path

#: The version of this dialogue; the other end is `host.remote.contact`.
LOADER_VERSION = 1

OLDEST = (3, 11)
SIZE_MAX = 16 * 1024 * 1024

#: Programs that are kept, the newest by their last start.
KEPT = 3


class NoRoom(Exception):
    """No folder on this machine can hold the program."""


def main() -> None:
    """Report this Python, receive what the digest that comes names, and become the agent."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < OLDEST:
        report("PYTHON " + version)
        return
    report(f"LOADER {LOADER_VERSION} {version}")
    try:
        path = place(*request())
    except NoRoom as error:
        report(f"NOROOM {error}")
        return
    except EOFError:
        return
    sys.path.insert(0, str(compiled(path)))
    runpy.run_module("coloctl.host.agent.main", run_name="__main__", alter_sys=True)


def report(line: str) -> None:
    """Write one line to the other end; raises `OSError` where it is gone."""
    os.write(1, ("COLOCTL-" + line + "\n").encode())


def request() -> "tuple[str, int]":
    """Read the digest and the length of the program: one line. Raises `EOFError`."""
    line = b""
    while not line.endswith(b"\n"):
        line += receive(1)
    digest, length = line.decode().split()
    if len(digest) != 64 or not digest.isalnum() or not 0 < int(length) <= SIZE_MAX:
        raise EOFError
    return digest, int(length)


def receive(length: int) -> bytes:
    """Read exactly so many bytes, no buffer in between; raises `EOFError`."""
    data = b""
    while len(data) < length:
        more = os.read(0, length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def place(digest: str, length: int) -> Path:
    """Return the path of the program, received now where it is not here; raises `NoRoom`."""
    homes = [home / "agent" for home in folders()]
    for home in homes:
        path = home / f"{digest}.zip"
        if owned(home) and sound(path, digest):
            with contextlib.suppress(OSError):
                os.utime(path)
            report("HAVE")
            return path
    report("WANT")
    program = receive(length)
    if hashlib.sha256(program).hexdigest() != digest:
        raise NoRoom("the program came damaged")
    reasons = []
    for home in homes:
        try:
            return keep(home, digest, program)
        except OSError as error:
            reasons.append(f"{home}: {error.strerror}")
    raise NoRoom("; ".join(reasons))


def compiled(program: Path) -> Path:
    """Return the program with its modules compiled for this Python, made now where it is not here.

    More than half of an agent's start is compiling, and a failover may wait for it. Where there is
    no room the program itself is returned.
    """
    begin = f"{program.stem}.{sys.implementation.cache_tag}-"
    for path in program.parent.glob(begin + "*.pyz"):
        if sound(path, path.stem[len(begin) :]):
            return path
    content = compile_all(program)
    path = program.with_name(f"{begin}{hashlib.sha256(content).hexdigest()}.pyz")
    try:
        write(path, content)
    except OSError:
        return program
    return path


def compile_all(program: Path) -> bytes:
    """Return the program as a zip with each module as it is and as Python keeps it in its cache."""
    import io
    import marshal
    import zipfile
    from importlib.util import MAGIC_NUMBER, source_hash

    packed = io.BytesIO()
    with zipfile.ZipFile(str(program)) as sources, zipfile.ZipFile(packed, "w") as archive:
        for name in sources.namelist():
            source = sources.read(name)
            archive.writestr(name, source)
            if name.endswith(".py"):
                code = compile(source, f"{program}/{name}", "exec", dont_inherit=True)
                # PEP 552: by the hash of its source, which is not checked at each import.
                head = MAGIC_NUMBER + (1).to_bytes(4, "little") + source_hash(source)
                archive.writestr(name + "c", head + marshal.dumps(code))
    return packed.getvalue()


def folders() -> "list[Path]":
    """Name the cache and the state folder, as `paths` does."""
    user = os.geteuid()
    get = os.environ.get
    cache = Path("/var/cache/coloctl")
    state = Path("/run/coloctl")
    if user != 0:
        cache = Path(get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coloctl"
        runtime = get("XDG_RUNTIME_DIR")
        state = Path(runtime) / "coloctl" if runtime else Path(f"/tmp/coloctl-{user}")
    return [
        Path(get("COLOCTL_CACHE_DIR") or cache).absolute(),
        Path(get("COLOCTL_STATE_DIR") or state).absolute(),
    ]


def owned(home: Path) -> bool:
    """Return whether the folder and the one above it are this user's and closed to others."""
    for one in (home, home.parent):
        try:
            status = one.stat()
        except OSError:
            return False
        shared = status.st_mode & stat.S_IWGRP and status.st_gid != status.st_uid
        if status.st_uid != os.geteuid() or shared or status.st_mode & stat.S_IWOTH:
            return False
    return True


def sound(path: Path, digest: str) -> bool:
    """Return whether the file is there and has that digest."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
        return False


def keep(home: Path, digest: str, program: bytes) -> Path:
    """Write the program under its name as a whole, and remove old ones; raises `OSError`."""
    for folder in (*reversed(home.parents), home):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    if not owned(home):
        raise OSError(0, "other users can change this folder")
    path = home / f"{digest}.zip"
    write(path, program)
    others = sorted(home.glob("*.zip"), key=started, reverse=True)
    for old in (*others[KEPT:], *(d for d in home.glob("*.draft") if abandoned(d))):
        with contextlib.suppress(OSError):
            old.unlink()
    for twin in home.glob("*.pyz"):
        if not (home / f"{twin.name.partition('.')[0]}.zip").exists():
            with contextlib.suppress(OSError):
                twin.unlink()
    return path


def write(path: Path, content: bytes) -> None:
    """Write a file as a whole; raises `OSError`."""
    draft = path.with_name(f"{path.stem[:64]}.{os.getpid()}.draft")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def started(path: Path) -> float:
    """Return when the program was started last, as the wall clock showed it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def abandoned(draft: Path) -> bool:
    """Return whether the process that wrote the draft is gone."""
    return not Path("/proc", draft.name.split(".")[1]).exists()


if __name__ == "__main__":
    main()
