"""Read pair files: TOML text in, `PairSpec` out, and a `SpecError` for each problem.

Called by `cli.verbs.start`, `api.pair` and `check.doctor` for a file that an operator names, and by
`supervisor.leftovers` for the copy in the pair's folder.

Every complaint names the key as written (``disk[0].image.a``), in one whole sentence and, where
there is one, with the next thing to try. Of several problems the first is raised, with the number
of the others; `problems` returns them all.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from coloctl.errors import SpecError
from coloctl.model import pair
from coloctl.model.tls import TlsSpec
from coloctl.pairfile import checks, files
from coloctl.pairfile.complaints import from_validation
from coloctl.pairfile.tables import FencingTable, NicTable, PairFile, TlsTable, json_schema
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
    return list(files.missing_files(spec))


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
        file = PairFile.model_validate(document, context={"base": base})
    except ValidationError as error:
        return None, from_validation(error)
    spec = _spec(file, source)
    return spec, [*checks.contradictions(spec), *checks.relative_paths(document, spec)]


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


def _spec(file: PairFile, source: Path | None) -> pair.PairSpec:
    return pair.PairSpec(
        name=file.name,
        guest=pair.GuestSpec(**dict(file.guest) | {"append": file.guest.append or ""}),
        disks=tuple(
            pair.DiskSpec(**dict(disk) | {"image": dict(disk.image)}) for disk in file.disk
        ),
        nics=tuple(_nic(nic, file.name) for nic in file.nic),
        nodes={
            "a": pair.NodeSpec("a", **dict(file.node.a)),
            "b": pair.NodeSpec("b", **dict(file.node.b)),
        },
        replication=pair.ReplicationSpec(**dict(file.replication)),
        checkpoint=pair.CheckpointSpec(**dict(file.checkpoint)),
        detection=pair.DetectionSpec(**dict(file.detection)),
        fencing=_fencing(file.fencing),
        arbiter=pair.ArbiterSpec(**dict(file.arbiter)),
        policy=pair.Policy(**dict(file.policy)),
        verify=pair.VerifySpec(**dict(file.verify)),
        tls=_tls(file.tls),
        source=source,
    )


def _nic(nic: NicTable, name: str) -> pair.NicSpec:
    """Build one network card of the pair called ``name``."""
    given = dict(nic)
    bridge, tap = given.pop("bridge"), nic.tap
    if tap is not None:
        taps = pair.TapSpec(ifname={"a": tap.a, "b": tap.b}, bridge=tap.bridge)
    else:
        names = {node: _tap_name(name, nic.id, node) for node in pair.NODES}
        taps = pair.TapSpec(ifname=names, bridge=bridge, made=True)
    return pair.NicSpec(**given | {"tap": taps})


def _tap_name(name: str, nic: str, node: pair.NodeName) -> str:
    """Name a tap that coloctl makes: the same for a pair of that name in every state folder.

    So a start finds the guest of another supervisor by the tap that its QEMU holds.
    """
    digest = hashlib.blake2s(f"{name}/{nic}/{node}".encode(), digest_size=5)
    return f"ct-{digest.hexdigest()}"


def _tls(tls: TlsTable) -> TlsSpec:
    """Keep of the tables per node what they name."""
    given = dict(tls)
    for table in ("folders", "names"):
        given[table] = {node: value for node, value in given[table] if value is not None}
    return TlsSpec(**given)


def _fencing(fencing: FencingTable) -> pair.FencingSpec:
    """Give each node the options for both and its own."""
    given = dict(fencing)
    shared, own = given.pop("options"), {node: given.pop(node) for node in pair.NODES}
    options = {node: shared | own[node] for node in pair.NODES}
    return pair.FencingSpec(**given, options=options)
