"""Define the parameters that verbs share: pair names, lengths of time, formats, confirmation.

Called by all of `cli.verbs`. An address for metrics is checked by `control.daemon.http`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import click
from click.shell_completion import CompletionItem

from coloctl import paths
from coloctl.errors import NoSuchPair, NotConfirmed, PreconditionFailed, UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class PairName(click.ParamType[str]):
    """The name of a pair: also a folder, so nothing with a slash passes."""

    name = "pair"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the name of a pair; raises `NoSuchPair` for a name that no pair can have."""
        if not _NAME.fullmatch(value):
            raise NoSuchPair(
                f"'{value}' cannot be the name of a pair.",
                hint="give the name that is written in the pair file, such as web",
            )
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """List the pairs of this machine that begin with ``incomplete``."""
        try:
            names = pair_names()
        except (OSError, PreconditionFailed):  # a completion shows no errors
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def typed_verb() -> str:
    """Return the verb that was typed, without the program's name: ``lab machines crash``."""
    return click.get_current_context().command_path.partition(" ")[2]


class Duration(click.ParamType[float]):
    """A length of time in seconds: 90, 90s, 1.5m, 500ms."""

    name = "T"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Convert a length of time to seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.fullmatch(value)
        if match is None:
            self.fail(f"'{value}' is not a length of time such as 90, 90s or 2m.", param, ctx)
        return float(match[1]) * _UNIT_S[match[2] or "s"]


class WaitingCommand(click.Command):
    """A command whose ``--wait`` may stand without a value, and never eats the next argument."""

    default_wait: ClassVar[str] = "120"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Fill in the value of a ``--wait`` that stands alone, then parse."""
        end = args.index("--") if "--" in args else len(args)
        filled = [
            f"--wait={self.default_wait}" if word == "--wait" else word for word in args[:end]
        ]
        return super().parse_args(ctx, filled + args[end:])


class ListenAddress(click.ParamType[str]):
    """An address to listen at; kept as it was typed, once it is known to be an address."""

    name = "ADDR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the address."""
        from coloctl.control.daemon.http import parse_address

        parse_address(value)
        return str(value)


def free_address(address: str) -> None:
    """Check that ``address`` can be listened at, if given; raises `PreconditionFailed`."""
    if address:
        from coloctl.control.daemon.http import check_free, parse_address

        check_free(parse_address(address))


def pair_names() -> list[str]:
    """List every pair that has a folder here, whether its supervisor runs or not."""
    try:
        folders = list(paths.state_dir().iterdir())
    except OSError:
        return []
    return sorted(one.name for one in folders if _NAME.fullmatch(one.name) and one.is_dir())


pair_argument = click.argument("pair", type=PairName())


def format_option(*choices: str) -> Callable[..., Any]:
    """Build the option ``-f``; the first choice is the default."""
    return click.option(
        "-f",
        "--format",
        "form",
        type=click.Choice(choices),
        default=choices[0],
        show_default=True,
        help="How the result is written.",
    )


def wait_option(default_s: float, meaning: str) -> Callable[..., Any]:
    """Build the option ``--wait`` of a `WaitingCommand`."""
    return click.option("--wait", type=Duration(), metavar="[=T]", default=default_s, help=meaning)


metrics_option = click.option(
    "--metrics",
    type=ListenAddress(),
    metavar="ADDR",
    callback=lambda _ctx, _param, value: value or "",
    help="Serve metrics and health over HTTP at HOST:PORT, or at :PORT for this machine alone.",
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask for the pair's name again.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print the QMP dialogue per node instead of holding it."
)


def confirm(pair: str, question: str, *, yes: bool) -> None:
    """Ask the operator to type the pair's name, unless ``--yes`` was given.

    Raises `UsageError` without a terminal, `NotConfirmed` when other text was typed.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"{question} Without a terminal to ask at, this needs --yes.",
            hint="add --yes when you are sure",
        )
    answer = click.prompt(f"{question} Type the pair's name to go on", err=True, default="",
                          show_default=False)  # fmt: skip
    if answer.strip() != pair:
        raise NotConfirmed("That is not the pair's name; nothing was done.")
