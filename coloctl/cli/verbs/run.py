"""Define the verb `run`: a supervisor in the foreground.

Calls `control.daemon.serve` for the pair until it ends. `start` runs the same in the background, by
`cli.handed_over`, which makes the log of both.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from coloctl import paths
from coloctl.cli import complaint, handed_over
from coloctl.cli.options import free_address, metrics_option
from coloctl.cli.verbs.start import alone_option, load, preflight, spec_argument
from coloctl.cli.views.progress import plain_line
from coloctl.control.daemon.serve import serve
from coloctl.control.daemon.spawn import claim, end_stale, inherited, reclaim, stopped
from coloctl.control.listener import served
from coloctl.errors import PairBusy
from coloctl.model.pairevent import PairEvent


@click.command()
@spec_argument
@alone_option
@metrics_option
def run(spec_path: Path, alone: bool, metrics: str) -> int:
    """Start the pair that SPEC describes and supervise it until it ends.

    For systemd and for watching. Ctrl-C (SIGINT) stops the pair: the guest is asked to shut down;
    a second Ctrl-C ends it at once. SIGTERM and SIGHUP end the supervisor alone; QEMU runs on.
    What an earlier supervisor left running is taken over as it is, and a stop that it began is
    finished.
    """
    handed_over.prepare()
    pair = load(spec_path)
    if served(paths.control_socket(pair.name)):
        raise PairBusy(
            f"A supervisor already serves pair {pair.name}.",
            hint=f"`coloctl status {pair.name}` shows it",
        )
    free_address(metrics)
    if (left := inherited(pair)) is not None:
        with reclaim(left.pair) as listener:
            serving = serve(left.pair, listener, facts=left.facts, tell=_tell, metrics=metrics)
            interrupted = asyncio.run(serving)
        return complaint.INTERRUPTED if interrupted else 0
    if stopped(pair):
        asyncio.run(end_stale(pair.name))
        print(f"Pair {pair.name} was being stopped when its supervisor died; it is stopped now.")
        return 0
    facts = asyncio.run(preflight(pair, protect=not alone))
    with claim(pair, facts) as listener:
        serving = serve(pair, listener, facts=facts, begin=not alone, tell=_tell, metrics=metrics)
        interrupted = asyncio.run(serving)
    return complaint.INTERRUPTED if interrupted else 0


def _tell(event: PairEvent) -> None:
    if line := plain_line(event):
        print(line, flush=True)
