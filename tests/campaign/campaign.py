"""Goal: a guest that is moved and killed while PostgreSQL works in it loses nothing, ever.

Method: each round boots a Debian (`debian.py`) from fresh disks on a fresh pair under TCG, protects
it before its first load, lets clients transfer money (`bank.py`), switches over, waits until it is
protected again, kills the primary's QEMU, and audits (`postgres.py` plays a round).

Called by ``make campaign-postgres``. Prints what it does, the figures of each round, and a table at
the end, or with ``-f json`` one object per round on standard output. Exit code 0 if every round was
sound (with ``--both`` those with the plugin), 1 if one was not, 130 after an interruption; nothing
of a round is left in any case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import debian
import postgres

from coloctl.chaos.run import testbed
from coloctl.check import choose
from coloctl.errors import ColoctlError, UsageError
from coloctl.lab import layout
from coloctl.lab.guest import GuestImage
from coloctl.lab.progress import Progress, Report
from coloctl.machine import freshcode, image

#: What a round takes on two cores, minutes; measured, docs/qemu.md.
MINUTES = 2
WITH, WITHOUT = "with the plugin", "without"


def main() -> int:
    """Play the rounds that the command line asks for and return the exit code."""
    asked = _parse()
    # A shell ignores Ctrl-C for what it starts in the background; the other two rely on it here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _as_interrupt)
    told: list[dict[str, Any]] = []
    try:
        with testbed.free_name(asked.name) as name:
            _campaign(asked, name, told)
    except ColoctlError as error:
        _say(f"Error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
        return error.exit_code
    except KeyboardInterrupt:
        _say("Interrupted: the round under way was ended and does not count.")
        return 130
    finally:
        if told:
            _say(table(told))
    # Without the plugin a guest may be damaged: beside others such a round is there to compare.
    judged = [one for one in told if one["plugin"]] or told
    return 0 if all(one["sound"] for one in judged) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="campaign-postgres",
        usage="make campaign-postgres CAMPAIGN_ARGS='[--rounds N] [...]'",
        description="Protect a cold Debian with PostgreSQL, move it, kill its primary, and audit: "
        f"again and again. A round takes about {MINUTES} minutes; the guest is built once, into "
        "the cache, which needs root, wget, mke2fs and a Debian mirror.",
    )
    parser.add_argument(
        "--rounds", type=_positive, default=20, metavar="N", help="of each kind (default: 20)"
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--without-plugin",
        action="store_true",
        help="play without the fresh-code plugin (docs/qemu.md, Stale translations)",
    )
    kinds.add_argument("--both", action="store_true", help="play with and without it in turn")
    parser.add_argument(
        "--name", default="campaign", help="of the lab and of the pair (default: campaign)"
    )
    parser.add_argument(
        "-f", "--format", choices=("text", "json"), default="text", help="json: an object per round"
    )
    asked = parser.parse_args()
    try:
        layout.check_name(asked.name)
    except ColoctlError as error:
        parser.error(f"--name: {error.message}")
    return asked


def _positive(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word!r} is no number of rounds: 1 at least")
    return int(word)


def _campaign(asked: argparse.Namespace, name: str, told: list[dict[str, Any]]) -> None:
    """Append what each round told to ``told``."""
    report = _reporter()
    binary, accel = choose.choose("11.1", report)
    if accel != "tcg":
        _say("KVM runs guests here; the campaign uses TCG all the same.")
    if not asked.without_plugin and freshcode.find(binary) is None:
        raise UsageError(
            "The fresh-code plugin is not in force, so there is nothing to try.",
            hint=f"{freshcode.hint(binary)}; `--without-plugin` plays without it",
        )
    folder = debian.provide(image.tool(binary), report)
    guest = GuestImage(
        folder / debian.KERNEL, folder / debian.INITRD, postgres.APPEND, folder / debian.DISK
    )
    plays = testbed.Testbed(qemu=binary, accel="tcg", guest=guest, name=name)
    kinds = (True, False) if asked.both else (not asked.without_plugin,)
    total = asked.rounds * len(kinds)
    _say(f"{total} rounds of about {MINUTES} minutes; Ctrl-C ends them and cleans up.")
    for number in range(1, total + 1):
        plugin = kinds[(number - 1) % len(kinds)]
        _say(f"round {number} of {total}, {WITH if plugin else WITHOUT + ' the plugin'}")
        one = {"round": number, "plugin": plugin, **postgres.Round(plays, plugin, _steps()).play()}
        told.append(one)
        if asked.format == "json":
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(one), flush=True)
        else:
            _say(f"  {sentence(one)}")


def sentence(one: dict[str, Any]) -> str:
    """Tell a round in a line."""
    words = ["sound" if one["sound"] else "NOT SOUND"]
    if "acknowledged" in one:
        words += [
            f"{one['acknowledged']} acknowledged, {one['missing']} missing",
            f"sum {'right' if one['sum_right'] else 'WRONG'}",
            f"{one['per_s_protected']:g}/s protected",
            f"first connection {sum(one['first_s']):.2f} s",
            f"slowest transfer {one['slowest_s']:g} s",
            f"{one['cut']} connections cut",
        ]
    if one["damage"]:
        words.append(f"damaged ({one['damage'][0]})")
    if one["given_up"]:
        words.append(f"secondaries given up as diverged: {one['given_up']}")
    if "ended" in one:
        words.append(f"ended early: {one['ended']}")
    if "kept" in one:
        words.append(f"logs kept in {one['kept']}")
    return ", ".join(words)


def table(told: Sequence[dict[str, Any]]) -> str:
    """Lay what all rounds told side by side, a column for each kind that was played."""
    kinds = [kind for kind in (True, False) if any(one["plugin"] is kind for one in told)]
    columns = [_column([one for one in told if one["plugin"] is kind]) for kind in kinds]
    rows = [("", [WITH if kind else WITHOUT for kind in kinds])]
    rows += [(label, [column[label] for column in columns]) for label in columns[0]]
    wide = max(len(label) for label, _ in rows)
    return "\n".join(
        ["", *(f"{label:<{wide}}  {''.join(f'{v:>20}' for v in values)}" for label, values in rows)]
    )


def _column(told: Sequence[dict[str, Any]]) -> dict[str, str]:
    whole = [one for one in told if "acknowledged" in one]
    rates = [one["per_s_protected"] for one in whole]
    pauses = [one["pause_p50_ms"] for one in whole]
    firsts = [sum(one["first_s"]) for one in whole]

    def total(key: str) -> int:
        return sum(one[key] for one in whole)

    return {
        "rounds": str(len(told)),
        "sound": str(sum(one["sound"] for one in told)),
        "ended early": str(len(told) - len(whole)),
        "with a damaged guest": str(sum(bool(one["damage"]) for one in told)),
        "secondaries given up as diverged": str(sum(one["given_up"] for one in told)),
        "transfers acknowledged / missing": f"{total('acknowledged')} / {total('missing')}",
        "sum of all accounts wrong": str(sum(not one["sum_right"] for one in whole)),
        "clients' connections cut": str(total("cut")),
        "transfers/s protected, median (range)": (
            f"{median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})" if rates else "-"
        ),
        "first connection and answer, median (most)": (
            f"{median(firsts):.2f} ({max(firsts):.2f}) s" if firsts else "-"
        ),
        "pause of a checkpoint, p50, median": f"{median(pauses):.0f} ms" if pauses else "-",
    }


def _steps() -> postgres.Tell:
    began = time.monotonic()
    return lambda what: _say(f"  {time.monotonic() - began:4.0f} s  {what}")


def _as_interrupt(*_: object) -> None:
    """Do what Ctrl-C does now, also where that is put off."""
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, None)


def _reporter() -> Report:
    """Return what says each step of a set-up once, however often its progress is told."""
    said: list[str] = []

    def report(progress: Progress) -> None:
        if said[-1:] != [progress.what]:
            said.append(progress.what)
            _say(progress.what)

    return report


def _say(what: str) -> None:
    with contextlib.suppress(OSError):
        print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
