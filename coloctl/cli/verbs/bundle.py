"""Define the verb `bundle`: pack all that a report needs into one archive.

`cli.bundling` collects and packs; here the supervisor is reached through `control.client`.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from coloctl import paths
from coloctl.cli.options import format_option, pair_argument
from coloctl.cli.views import plain
from coloctl.control.client import ControlClient
from coloctl.errors import ColoctlError, NoSuchPair, PreconditionFailed


@click.command()
@pair_argument
@click.option(
    "-o", "--output", "file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="The archive to write; without it PAIR-bundle-TIME.tar.gz here.",
)  # fmt: skip
@format_option("pretty", "json")
def bundle(pair: str, file: Path | None, form: str) -> None:
    """Pack what a report on PAIR needs into one .tar.gz that only you can read.

    Logs, command lines, pair file, journal, history, status and explanation, what each QEMU says of
    its disks, filters and migration, the last messages with it, and versions. Passwords and other
    secrets are taken out where coloctl knows them; what the guest wrote to its console is in it.

    It works without a supervisor and with QEMUs that hang: MANIFEST.json in it says what is missing
    and why.
    """
    folder = paths.pair_dir(pair)
    client, why_not = _reached(pair, folder)
    if file is None:
        file = Path(f"{pair}-bundle-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz")
    _require_folder(file)
    from coloctl.cli import bundling

    try:
        parts = bundling.collect(pair, folder, client, why_not)
    finally:
        if client is not None:
            client.close()
    try:
        manifest = bundling.pack(parts, file, pair)
    except OSError as error:
        raise PreconditionFailed(
            f"{file} cannot be written: {error.strerror}.", hint="name another file with -o"
        ) from None
    if form == "json":
        plain.print_json({**manifest, "file": str(file.absolute())})
        return
    print(f"{file} has {len(manifest['files'])} files, {file.stat().st_size} bytes.")
    reasons = dict.fromkeys(one["why"] for one in manifest["missing"])
    for why in reasons:
        names = ", ".join(one["name"] for one in manifest["missing"] if one["why"] == why)
        print(f"missing: {names}: {plain.sentence(why)}")


def _require_folder(file: Path) -> None:
    """Raise `PreconditionFailed` where ``file`` has no folder to lie in; nothing was read yet."""
    try:
        where = file.absolute().parent  # raises where the folder of this process was removed
        there = where.is_dir()
    except OSError:
        where, there = file.parent, False
    if there:
        return
    if file.parent == Path():
        said, hint = "The folder in which this was typed is gone.", "change to one that exists"
    else:
        said, hint = f"There is no folder {where} for {file.name}.", f"`mkdir -p {where}` makes it"
    raise PreconditionFailed(said, hint=f"{hint}, or name another file with -o")


def _reached(pair: str, folder: Path) -> tuple[ControlClient | None, str]:
    """Connect to the supervisor, or return the reason why there is none.

    Raises `NoSuchPair` where there is no folder either.
    """
    from coloctl.cli.bundling import DEADLINE_S

    try:
        return ControlClient.connect(paths.control_socket(pair), DEADLINE_S), ""
    except ColoctlError as error:
        if isinstance(error, NoSuchPair) and folder.is_dir():
            return None, "its supervisor is gone"
        if not folder.is_dir():
            raise
        return None, error.message
