"""Define `coloctl schema`: dump QMP schemas, store and compare them, and check them.

`qmp.schema` reads and compares; the control socket's own comes from `control.schema`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from coloctl import paths, wholefile
from coloctl.cli.options import format_option
from coloctl.errors import UsageError
from coloctl.qmp import schema as schemas
from coloctl.qmp.schema import Requirement, Schema

_qemu_option = click.option(
    "--qemu",
    "binary",
    metavar="QEMU",
    help="A binary: a path, a program on PATH, or system, 7.2, 10.0, 11.1 of `coloctl lab qemu`.",
)
_SHELF = paths.data_dir("qmp_schemas")
#: A stored schema begins like JSON, a binary with ELF's magic or #!.
_JSON = b"{"


@click.group()
def schema() -> None:
    """Dump, check and compare QMP schemas.

    A schema lists all that one QEMU binary can be asked, a path per line, so that people and diffs
    can read it. coloctl comes with those of three QEMU releases; a checkout has them in
    qmp_schemas/.
    """


@schema.command()
@_qemu_option
@click.option("--control", is_flag=True, help="The schema of coloctl's own control socket.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it to a file."
)
@format_option("pretty", "json")
def dump(binary: str | None, control: bool, output: Path | None, form: str) -> None:
    """Write down the schema of a binary, by default the one on PATH."""
    if control and binary is not None:
        raise UsageError("--control and --qemu exclude each other.", hint="leave one of them out")
    if control:
        from coloctl.control.schema import text as control_text

        what, text = "coloctl's control socket", control_text()
    else:
        found = _ask(binary or "system")
        what, text = f"QEMU {found.qemu}, {len(found.paths)} paths", schemas.text(found)
    if output is None:
        click.echo(text, nl=False)
        return
    _write(output, text)
    if form == "json":
        click.echo(json.dumps({"schema": 1, "file": str(output), "of": what}))
    else:
        click.echo(f"{output}: {what}.")


@schema.command(short_help="Tell whether QEMU binaries have all that coloctl needs.")
@_qemu_option
@click.argument("stored", nargs=-1, metavar="[SCHEMA]...")
@format_option("pretty", "json")
def check(binary: str | None, stored: tuple[str, ...], form: str) -> int:
    """Check whether QEMU binaries have all that coloctl needs; exit code 1 if one has not.

    SCHEMA is a stored schema, a binary, or the name of a schema in qmp_schemas/ (7.2, 10.0, 11.1);
    without any, all of those are checked.
    """
    required = schemas.load_required(_SHELF / "required.toml")
    found = [_find(name) for name in stored]
    if binary is not None:
        found.append(_ask(binary))
    if not found:
        found = [schemas.load(file) for file in _stored().values()]
    missing = [schemas.required_missing(one, required) for one in found]
    if form == "json":
        click.echo(json.dumps(_check_document(found, missing, len(required))))
    else:
        click.echo("\n".join(_check_lines(found, missing, len(required))))
    return 1 if any(missing) else 0


@schema.command()
@click.argument("old")
@click.argument("new")
@format_option("pretty", "json")
def diff(old: str, new: str, form: str) -> None:
    """Show what changed between two schemas: - gone, + come, ~ different.

    OLD and NEW are stored schemas, binaries, or names of schemas in qmp_schemas/ (7.2, 10.0, 11.1).
    Nothing is listed below a path that is gone or came as a whole.
    """
    before, after = _find(old), _find(new)
    lines = schemas.diff(before, after)
    if form == "json":
        click.echo(json.dumps(_diff_document(before, after, lines)))
        return
    click.echo(f"--- QEMU {before.qemu}\n+++ QEMU {after.qemu}")
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("Nothing differs.")


def _find(name: str) -> Schema:
    """Find the schema that ``name`` means: a stored one, a file, or one asked of a binary.

    Raises `UsageError` when it means none of these, `UnsupportedQEMU` when the binary does not
    answer.
    """
    if stored := _stored().get(name):
        return schemas.load(stored)
    file = Path(name)
    if not file.exists():
        return _ask(name)
    if file.is_file() and os.access(file, os.X_OK) and not _is_json(file):
        return _ask(str(file.absolute()))
    return schemas.load(file)


def _is_json(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(64).lstrip().startswith(_JSON)
    except OSError:
        return False


def _ask(name: str) -> Schema:
    """Ask the binary that ``name`` means for its schema."""
    import asyncio

    from coloctl.check.choose import named_qemu
    from coloctl.host import open_host
    from coloctl.vm import learn

    async def asked(binary: Path) -> Schema:
        host = open_host("local")
        try:
            return await learn(binary, host)
        finally:
            await host.aclose()

    return asyncio.run(asked(named_qemu(name)))


def _stored() -> dict[str, Path]:
    """List the schemas in qmp_schemas/ by name, the oldest QEMU first."""
    names = {file.stem.removeprefix("qemu-"): file for file in _SHELF.glob("qemu-*.json")}
    return dict(sorted(names.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts 7.2 before 10.0."""
    return [(len(part), part) for part in name.split(".")]


def _write(file: Path, text: str) -> None:
    """Write ``text`` to the file, which stays as it was where that fails."""
    try:
        wholefile.replace(file, text.encode())
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}.") from None


def _check_lines(
    found: Sequence[Schema], missing: Sequence[Sequence[Requirement]], needs: int
) -> list[str]:
    lines = []
    for one, lacks in zip(found, missing, strict=True):
        if not lacks:
            lines.append(f"QEMU {one.qemu} has all {needs} things that coloctl needs.")
            continue
        lines.append(f"QEMU {one.qemu} lacks {len(lacks)} of {needs} things that coloctl needs:")
        for lack in lacks:
            lines += [f"  {' or '.join(lack.any_of)}", f"    {lack.why}"]
    return lines


def _check_document(
    found: Iterable[Schema], missing: Sequence[Sequence[Requirement]], needs: int
) -> dict[str, Any]:
    checked = [
        {
            "qemu": one.qemu,
            "complete": not lacks,
            "missing": [{"any": list(lack.any_of), "why": lack.why} for lack in lacks],
        }
        for one, lacks in zip(found, missing, strict=True)
    ]
    return {"schema": 1, "complete": not any(missing), "needs": needs, "checked": checked}


def _diff_document(before: Schema, after: Schema, lines: Iterable[str]) -> dict[str, Any]:
    words = {"-": "gone", "+": "come", "~": "different"}
    changes = []
    for line in lines:
        path = line[2:].partition(": ")[0]
        kinds = {"old": before.paths.get(path), "new": after.paths.get(path)}
        changes.append({"change": words[line[0]], "path": path, **kinds})
    return {"schema": 1, "old": before.qemu, "new": after.qemu, "changes": changes}
