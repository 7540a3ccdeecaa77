"""Read pair files: TOML text in, `PairSpec` out, and a `SpecError` for each problem.

Called by `cli.verbs.start`, `api.pair` and `check.doctor` for a file that an operator names, and by
`supervisor.leftovers` for the copy in the pair's folder.

Every complaint names the key as written (``disk[0].image.a``), in one whole sentence and, where
there is one, with the next thing to try. Of several problems the first is raised, with the number
of the others; `problems` returns them all.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from coloctl.errors import SpecError
from coloctl.model import pair
from coloctl.pairfile import checks
from coloctl.pairfile.complaints import from_validation
from coloctl.pairfile.tables import (
    CheckpointTable,
    DiskTable,
    FencingTable,
    GuestTable,
    NicTable,
    PairFile,
    json_schema,
)
from coloctl.reading import read_toml

__all__ = ["check_files", "examine", "file_problems", "json_schema", "load", "parse", "problems"]

#: A pair file is a page; a larger file is another thing, an image for example.
_BYTES_MAX = 1 << 20


def load(path: Path) -> pair.PairSpec:
    """Read the pair that the file at ``path`` describes; raises `SpecError`."""
    return parse(_read(path), path.parent, path)


def parse(text: str, base: Path, source: Path | None = None) -> pair.PairSpec:
    """Read the pair that ``text`` describes; relative paths in it begin at the folder ``base``.

    Raises the first `SpecError` of all that `problems` finds.
    """
    document = _document(text, str(source or "The pair file"))
    spec, found = examine(document, base, source)
    if spec is None or found:
        raise _first(found)
    return spec


def problems(text: str, base: Path) -> list[SpecError]:
    """List all that is wrong with ``text``, the most useful first; empty when it is right."""
    try:
        return examine(_document(text, "The pair file"), base)[1]
    except SpecError as error:
        return [error]


def check_files(spec: pair.PairSpec) -> None:
    """Require that every file that ``spec`` names can be used; raises `SpecError` otherwise."""
    if found := file_problems(spec):
        raise _first(found)


def file_problems(spec: pair.PairSpec) -> list[SpecError]:
    """List an error for every file that ``spec`` names and that cannot be used here."""
    return list(checks.missing_files(spec))


def _first(found: list[SpecError]) -> SpecError:
    first, more = found[0], len(found) - 1
    if not more:
        return first
    plural = "problem" if more == 1 else "problems"
    return SpecError(first.key, f"{first.sentence} ({more} more {plural} found.)", hint=first.hint)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_BYTES_MAX + 1)
        if len(raw) > _BYTES_MAX:
            raise SpecError("", f"{path} is too large for a pair file.", hint="name a TOML file")
        return raw.decode("utf-8-sig")  # editors on Windows begin a file with an invisible mark
    except FileNotFoundError:
        raise SpecError("", f"There is no pair file {path}.", hint="check the path") from None
    except IsADirectoryError:
        raise SpecError("", f"{path} is a folder.", hint="name a pair file in it") from None
    except UnicodeDecodeError as error:
        raise SpecError(
            "", f"{path} is not UTF-8 text (byte {error.start}).", hint="name a TOML file"
        ) from None
    except OSError as error:
        raise SpecError("", f"{path} cannot be read: {error.strerror}.") from None


def _document(text: str, name: str) -> dict[str, Any]:
    try:
        return read_toml(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax(name, text, str(error)) from None


def examine(
    document: Mapping[str, Any], base: Path, source: Path | None = None
) -> tuple[pair.PairSpec | None, list[SpecError]]:
    """Build the pair that a parsed file describes, None without one, and list all that is wrong."""
    try:
        file = PairFile.model_validate(document)
    except ValidationError as error:
        return None, from_validation(error)
    spec = _spec(file, base, source)
    return spec, list(checks.contradictions(spec))


def _syntax(name: str, text: str, message: str) -> SpecError:
    """Convert a message of tomllib to a `SpecError` with the line and the text of that line.

    The message ends with "(at line 3, column 5)" or "(at end of document)".
    """
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.S)
    what = match[1] if match else message
    lines = text.split("\n")
    line = int(match[2]) if match and match[2] else len(lines)
    column = int(match[3]) if match and match[3] else len(lines[-1]) + 1
    shown = lines[line - 1].strip()
    return SpecError(
        "",
        f"{name} is not valid TOML at line {line}, column {column}: {what}.",
        hint=f"that line reads: {shown}" if shown else None,
    )


def _spec(file: PairFile, base: Path, source: Path | None) -> pair.PairSpec:
    return pair.PairSpec(
        name=file.name,
        guest=_guest(file.guest, base),
        disks=tuple(_disk(disk, base) for disk in file.disk),
        nics=tuple(_nic(nic) for nic in file.nic),
        nodes={
            "a": pair.NodeSpec("a", file.node.a.host, file.node.a.address),
            "b": pair.NodeSpec("b", file.node.b.host, file.node.b.address),
        },
        replication=pair.ReplicationSpec(
            base_port=file.replication.base_port,
            channel=pair.MigrationTransport(file.replication.channel),
            multifd_channels=file.replication.multifd_channels,
            overlay_dir=_path(file.replication.overlay_dir, base)
            if file.replication.overlay_dir
            else None,
        ),
        checkpoint=_checkpoint(file.checkpoint),
        detection=pair.DetectionSpec(**_same(file.detection)),
        fencing=_fencing(file.fencing, base),
        arbiter=pair.ArbiterSpec(
            file.arbiter.kind, _path(file.arbiter.path, base) if file.arbiter.path else None
        ),
        policy=pair.Policy(
            file.policy.auto_failover,
            file.policy.auto_reprotect,
            on_panic=pair.OnPanic(file.policy.on_panic),
            mirror_rate=file.policy.mirror_rate,
        ),
        verify=pair.VerifySpec(
            file.verify.every,
            file.verify.rate,
            pair.OnDifference(file.verify.on_difference),
            file.verify.memory,
        ),
        source=source,
    )


def _same(table: Any) -> dict[str, Any]:
    """Return the keys of a table whose names and values are those of its part in the model."""
    fields: dict[str, Any] = table.model_dump()
    return fields


def _guest(guest: GuestTable, base: Path) -> pair.GuestSpec:
    return pair.GuestSpec(
        memory_mib=guest.memory,
        cpus=guest.cpus,
        machine=guest.machine,
        accel=guest.accel,
        cpu=guest.cpu,
        kernel=_path(guest.kernel, base) if guest.kernel else None,
        initrd=_path(guest.initrd, base) if guest.initrd else None,
        append=guest.append or "",
        ready_line=guest.ready_line,
        agent=guest.agent,
        extra_args=tuple(guest.extra_args),
        qemu=_binary(guest.qemu, base) if guest.qemu else None,
    )


def _disk(disk: DiskTable, base: Path) -> pair.DiskSpec:
    image: dict[pair.NodeName, Path] = {
        "a": _path(disk.image.a, base),
        "b": _path(disk.image.b, base),
    }
    return pair.DiskSpec(id=disk.id, image=image, format=disk.format, model=disk.model)


def _nic(nic: NicTable) -> pair.NicSpec:
    tap = pair.TapSpec(ifname={"a": nic.tap.a, "b": nic.tap.b}, bridge=nic.tap.bridge)
    return pair.NicSpec(id=nic.id, mac=nic.mac, tap=tap, model=nic.model)


def _fencing(fencing: FencingTable, base: Path) -> pair.FencingSpec:
    options: dict[pair.NodeName, Mapping[str, str]] = {
        "a": fencing.options | fencing.a,
        "b": fencing.options | fencing.b,
    }
    command = tuple(fencing.command)
    if command:
        command = (str(_binary(command[0], base)), *command[1:])
    return pair.FencingSpec(pair.FencingMethod(fencing.method), command, fencing.timeout_s, options)


def _checkpoint(checkpoint: CheckpointTable) -> pair.CheckpointSpec:
    return pair.CheckpointSpec(**_same(checkpoint) | {"mode": pair.CheckpointMode(checkpoint.mode)})


def _path(text: str, base: Path) -> Path:
    """Make a path absolute, without dot segments: it is the same from every working folder."""
    home = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises for unknown users
    return Path(os.path.abspath(base / home))  # noqa: PTH100 - Path.resolve follows symlinks


def _binary(text: str, base: Path) -> Path:
    """Make the path of a program absolute; a bare name stays one, for PATH."""
    return _path(text, base) if "/" in text else Path(text)
