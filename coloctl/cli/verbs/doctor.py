"""Define the verb `doctor`: check every precondition of a pair, or of this machine, by name.

Calls `check.doctor` for a pair file and `check.machine` without one.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import click

from coloctl import pairfile
from coloctl.check.doctor import examine_pair
from coloctl.check.finding import Precondition, document, worst
from coloctl.check.machine import examine_machine
from coloctl.cli import world
from coloctl.cli.options import format_option
from coloctl.cli.views import plain, render
from coloctl.cli.views.findings import EXIT_CODES, show
from coloctl.host import open_host


@click.command()
@click.argument("spec_path", metavar="[SPEC]", required=False, type=click.Path(path_type=Path))
@format_option("pretty", "json")
def doctor(*, spec_path: Path | None, form: str) -> int:
    """Check every precondition of the pair that SPEC describes; without SPEC, of this machine.

    Nothing is changed. Each node's QEMU is started once as the pair would start it, with its
    guest held and its images only read, is asked what it holds, and ends.

    \b
    Exit codes: 0 all is well, 3 there are warnings, 1 there are errors.
    """
    if spec_path is None:
        findings = asyncio.run(_machine())
    else:
        pair = pairfile.load(spec_path)
        world.enter(pair)
        findings = asyncio.run(examine_pair(pair))
    if form == "json":
        plain.print_json(document(findings))
    else:
        show(findings, render.console())
    return EXIT_CODES[worst(findings)]


async def _machine() -> list[Precondition]:
    found = shutil.which("qemu-system-x86_64")
    async with open_host("local") as host:
        return await examine_machine(host, Path(found) if found else None)
