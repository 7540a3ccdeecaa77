"""Check the files and folders that a pair file names, where they lie on this machine.

Called by `pairfile` when a pair is to start, and by its `file_problems` for the doctor; asks
`paths` how long a socket path may be.

Invariant: no path of a node on another machine is looked at here: that machine is asked.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from coloctl import paths
from coloctl.errors import PreconditionFailed, SpecError
from coloctl.model.pair import NODES, NodeName, PairSpec


def missing_files(spec: PairSpec) -> Iterator[SpecError]:
    """Find every named file that cannot be used, and a state folder too deep for sockets."""
    here = [node for node in NODES if not spec.nodes[node].machine]
    yield from _of_guest(spec, here)
    for index, disk in enumerate(spec.disks):
        for node in here:
            key = f"disk[{index}].image.{node}"
            yield from _usable(key, disk.image[node], os.R_OK | os.W_OK)
        if len(here) == len(NODES):
            yield from _hard_links(index, disk.image["a"], disk.image["b"])
    yield from _agent(spec)
    if here and spec.replication.overlay_dir is not None:
        yield from _writable_folder("replication.overlay_dir", spec.replication.overlay_dir)
    if spec.arbiter.path is not None:
        yield from _writable_folder("arbiter.path", spec.arbiter.path.parent)
    longest = paths.pair_dir(spec.name) / "a" / "compare_out-n9.sock"
    try:
        paths.check_socket_path(longest)
    except PreconditionFailed as error:
        yield SpecError("name", error.message, hint=error.hint)


def _of_guest(spec: PairSpec, here: Collection[NodeName]) -> Iterator[SpecError]:
    """Check kernel, initial ramdisk and QEMU of the nodes in ``here``, each file once."""
    wanted: dict[str, tuple[Path, int]] = {}
    for node in here:
        guest, own = spec.guest_on(node), spec.nodes[node]
        for name, path, mode in (
            ("kernel", guest.kernel, os.R_OK),
            ("initrd", guest.initrd, os.R_OK),
            ("qemu", guest.qemu, os.X_OK),
        ):
            if path is not None and path.is_absolute():  # a bare name is looked up on PATH
                table = f"node.{node}" if getattr(own, name) else "guest"
                wanted[f"{table}.{name}"] = path, mode
    for key, (path, mode) in wanted.items():
        yield from _usable(key, path, mode)


def _agent(spec: PairSpec) -> Iterator[SpecError]:
    """Find a fence agent that cannot be run, before it is needed."""
    if not spec.fencing.command:
        return
    agent = spec.fencing.command[0]
    if "/" in agent:
        yield from _usable("fencing.command", Path(agent), os.X_OK)
    elif shutil.which(agent) is None:
        yield SpecError(
            "fencing.command",
            f"There is no program {agent} on PATH.",
            hint="install the package that has it (Debian: fence-agents), or give its path",
        )


def _writable_folder(key: str, folder: Path) -> Iterator[SpecError]:
    if not folder.is_dir():
        yield SpecError(key, f"There is no folder {folder}.", hint="make it, or name another")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield SpecError(key, f"{folder} cannot be written by you.", hint="change its permissions")


def _usable(key: str, path: Path, mode: int) -> Iterator[SpecError]:
    wanted = {os.R_OK: "read", os.X_OK: "executed", os.R_OK | os.W_OK: "read and written"}[mode]
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        relative = "relative paths begin at the pair file's folder"
        yield SpecError(key, f"There is no file {path}.", hint=relative)
        return
    except OSError as error:
        yield SpecError(key, f"{path} cannot be used: {error.strerror}.", hint="check the path")
        return
    if is_folder:
        yield SpecError(key, f"{path} is a folder.", hint="name a file")
    elif not os.access(path, mode):
        yield SpecError(key, f"{path} cannot be {wanted} by you.", hint="change its permissions")


def _hard_links(index: int, a: Path, b: Path) -> Iterator[SpecError]:
    try:
        same = a.samefile(b) and os.path.realpath(a) != os.path.realpath(b)
    except OSError:
        return  # each of the two has its own complaint already
    if same:
        yield SpecError(
            f"disk[{index}].image.b",
            f"{b} and {a} are two names of one file.",
            hint="every image needs its own copy",
        )
