"""Define `coloctl lab guest`, `coloctl lab qemu` and `coloctl lab plugin`, with the next steps.

Called by `cli.verbs.lab` and `cli.verbs.lab_machines`. The guest and the best QEMU come from
`check.choose`, a named QEMU from `lab.qemu`, the plugin from `check.freshcode`; each raises
`ProvisionError` where it cannot be had.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coloctl.cli.options import format_option
from coloctl.errors import UsageError
from coloctl.lab import layout

if TYPE_CHECKING:
    from coloctl.check.choose import WorkingQemu
    from coloctl.lab.guest import GuestImage
    from coloctl.lab.qemu import Build

_quiet_option = click.option(
    "--quiet", is_flag=True, help="Print what is being done, but not the result."
)


@click.command(short_help="Make the guest, and a pair file for it.")
@click.option("--pair", "file", type=click.Path(path_type=Path), help="Write a pair file too.")
@click.option("--name", "pair_name", help="Name of that pair.  [default: the file's]")
@click.option("--lab", "lab_name", default=layout.DEFAULT, show_default=True, help="Its lab.")
@click.option("--force", is_flag=True, help="Replace a pair file and disks that are there.")
@_quiet_option
@format_option("pretty", "json")
def guest(
    *, file: Path | None, pair_name: str | None, lab_name: str, force: bool, quiet: bool, form: str
) -> None:
    """Make the guest: Debian's kernel, an initramfs with redis, an empty disk.

    With --pair a complete pair file is written, two disks beside it, ready for `coloctl start`.
    """
    from coloctl.check.choose import choose_qemu, lab_guest
    from coloctl.cli.views.downloads import Bars

    layout.check_name(lab_name)
    if file is None and pair_name is not None:
        raise UsageError("--name names a pair.", hint="add --pair FILE to write one")
    if file is not None:
        pair_name = pair_name or file.stem
        _check_pair(file, pair_name, force)
    with Bars() as bars:
        image = lab_guest(bars.report)
        choice = None if file is None else choose_qemu(bars.report)
    document, lines = _guest_alone(image)
    if file is not None and pair_name is not None and choice is not None:
        document["pair"] = _write_pair(file, pair_name, lab_name, image, choice)
        lines = _written_lines(file, lab_name, choice)
    if form == "json":
        click.echo(json.dumps(document))
    elif not quiet:
        click.echo("\n".join(lines))


@click.command()
@click.argument("names", nargs=-1)
@click.option("--matrix", is_flag=True, help="The three releases of the test matrix.")
@_quiet_option
@format_option("pretty", "json")
def qemu(names: tuple[str, ...], matrix: bool, quiet: bool, form: str) -> None:
    """Find a QEMU that holds COLO on this machine, or fetch the ones named.

    NAMES are system, 7.2 (Debian 12), 10.0 (Debian 13) and 11.1 (Debian 13's backports). Without
    one, the system's QEMU is tried out, and a newer one is fetched where it does not hold COLO.
    """
    from coloctl.check.choose import choose_qemu, fresh_code_of
    from coloctl.cli.views.downloads import Bars
    from coloctl.lab import qemu as qemus

    wanted = [*names, *(name for name in qemus.SUITES if matrix and name not in names)]
    with Bars() as bars:
        if wanted:
            builds = [qemus.provide(name, report=bars.report) for name in wanted]
            for build in builds:
                fresh_code_of(build, bars.report)
            found = [_build_document(build) for build in builds]
            document: dict[str, Any] = {"schema": 1, "builds": found}
            lines = [f"{build.name:8}{build.version:10}{build.binary}" for build in builds]
        else:
            choice = choose_qemu(bars.report)
            document = {"schema": 1, "chosen": _choice_document(choice)}
            lines = _choice_lines(choice)
    if form == "json":
        click.echo(json.dumps(document))
    elif not quiet:
        click.echo("\n".join(lines))


@click.command()
@click.option(
    "--qemu",
    default="system",
    show_default=True,
    metavar="QEMU",
    help="A path, a program on PATH, or a build that is here.",
)
@_quiet_option
@format_option("pretty", "json")
def plugin(qemu: str, quiet: bool, form: str) -> None:
    """Build the fresh-code plugin, without which TCG may run stale code in a secondary.

    It is built for one QEMU, tried in it, and loaded by every pair that runs in that QEMU under
    TCG. `coloctl lab qemu` and the demo do this by themselves.
    """
    from coloctl.check import freshcode
    from coloctl.check.choose import named_qemu
    from coloctl.cli.views.downloads import Bars

    binary = named_qemu(qemu)
    with Bars() as bars:
        file = freshcode.provide(binary, report=bars.report)
    if form == "json":
        click.echo(json.dumps({"schema": 1, "binary": str(binary), "plugin": str(file)}))
    elif not quiet:
        click.echo(f"{file}\nis loaded by every pair in {binary} under TCG.")


def _build_document(build: Build) -> dict[str, Any]:
    """Return the document of a build."""
    return {
        "name": build.name,
        "suite": build.suite,
        "version": build.version,
        "binary": str(build.binary),
        "img": str(build.img),
    }


def _choice_document(choice: WorkingQemu) -> dict[str, Any]:
    """Return the document of a choice."""
    return {
        **_build_document(choice.build),
        "accel": choice.accel,
        "why": choice.why,
        "passed-over": list(choice.passed_over),
        "accelerators": choice.accelerators,
        "fresh-code": choice.fresh_code,
    }


def _choice_lines(choice: WorkingQemu) -> list[str]:
    """Format a choice for people: the build, the reason, and the builds passed over."""
    from coloctl.check.choose import called

    return [
        f"{called(choice.build)} holds COLO here under {choice.accel}.",
        f"  {choice.build.binary}",
        f"  {choice.build.img}",
        "",
        f"  {choice.why}",
        f"  {choice.accelerators}",
        *([f"  {choice.fresh_code}"] if choice.fresh_code else []),
        *(f"  Passed over: {sentence}" for sentence in choice.passed_over),
    ]


def _guest_alone(image: GuestImage) -> tuple[dict[str, Any], list[str]]:
    """Return the guest as a JSON document and as lines of text."""
    import tomli_w

    from coloctl.lab.sample import ADDRESS, guest_table

    parts = {part: str(getattr(image, part)) for part in ("kernel", "initrd", "disk")}
    append = image.append_for(ADDRESS)
    lines = [f"{part:8}{path}" for part, path in parts.items()]
    guest = guest_table(image, append=append)
    lines += ["", "In a pair file:", "", tomli_w.dumps({"guest": guest}).rstrip()]
    return {"schema": 1, **parts, "append": append}, lines


def _check_pair(file: Path, name: str, force: bool) -> None:
    """Check that a pair file of that name may be written there, with its disks.

    Raises `UsageError`, `SpecError`, or `PreconditionFailed` for a disk that a QEMU uses: --force
    does not overrule a guest that runs.
    """
    from coloctl.host import locks
    from coloctl.lab.sample import disks_beside

    require_pair_name(name)
    for one in (file, *disks_beside(file).values()):
        if one.is_dir():
            raise UsageError(f"{one} is a folder.", hint="name a file, such as web.toml")
        if one.exists() and not force:
            raise UsageError(
                f"{one} is there already.",
                hint="name another file, or replace the pair file and its disks with --force",
            )
    for disk in disks_beside(file).values():
        locks.require_free(disk)


def require_pair_name(name: str) -> None:
    """Check that ``name`` can name a pair; raises `SpecError`."""
    from coloctl import pairfile

    if wrong := [
        one for one in pairfile.problems(f"name = {json.dumps(name)}", Path()) if one.key == "name"
    ]:
        raise wrong[0]


def _write_pair(
    file: Path, name: str, lab_name: str, image: GuestImage, choice: WorkingQemu
) -> str:
    from coloctl.host import locks
    from coloctl.lab.network import Lab
    from coloctl.lab.sample import disks_beside, write_pair

    for disk in disks_beside(file).values():  # again: fetching a QEMU may have taken minutes
        locks.require_free(disk)
    written = write_pair(
        file,
        name=name,
        lab=Lab(lab_name),
        guest=image,
        qemu=choice.build.binary,
        accel=choice.accel,
    )
    return str(written)


def _written_lines(file: Path, lab_name: str, choice: WorkingQemu) -> list[str]:
    build = choice.build
    return [
        f"{file} is written, with a disk for each node beside it.",
        f"It runs in QEMU {build.version} ({build.name}) under {choice.accel}.",
        *suggest(
            (typed("up", lab_name), "builds its lab; fine when it stands"),
            (f"coloctl start {shlex.quote(str(file))}", "runs the guest on both hosts"),
        ),
    ]


def suggest(*steps: tuple[str, str]) -> list[str]:
    """Format lines with what can be typed next, each with what it does."""
    width = max(len(command) for command, _ in steps)
    return ["", "Next:", *(f"  {command:<{width}}  # {deed}" for command, deed in steps)]


def typed(words: str, name: str) -> str:
    """Return a verb of `coloctl lab` as it is typed for that lab."""
    verb, _, rest = words.partition(" ")
    option = "" if name == layout.DEFAULT else f" --lab {name}"
    return f"coloctl lab {verb}{option}{f' {rest}' if rest else ''}"
