"""List the verbs, import the module of the one that is called, and turn errors into exit codes.

Called by `cli.main`. Each verb has a module of its own here, such as `cli.verbs.status`, which is
imported when the verb is called: `coloctl status` must start quickly.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import signal
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

from coloctl import __version__
from coloctl.cli import complaint, streams
from coloctl.errors import ColoctlError, UsageError


class Verb(NamedTuple):
    """The module of a verb, and its line in the list of verbs."""

    module: str
    line: str
    command: str = ""  #: name in the module, where it is not the verb's


VERBS: Mapping[str, Mapping[str, Verb]] = {
    "Pairs": {
        "start": Verb("start", "Start a pair, or protect one that runs alone."),
        "run": Verb("run", "Start a pair and supervise it in the foreground."),
        "stop": Verb("stop", "Shut the guest down and end the pair."),
        "failover": Verb("failover", "Let one node run on alone; the other is fenced."),
        "switchover": Verb("switchover", "Exchange the nodes' roles; nothing is lost."),
        "reprotect": Verb(
            "protect", "Make a new secondary for a guest that runs alone.", "protect"
        ),
        "protect": Verb("protect", "Protect a guest that runs alone; the same."),
        "unprotect": Verb("protect", "Let the guest run on alone, unprotected.", "unprotect"),
        "pause": Verb("pause", "Leave failovers to operators."),
        "resume": Verb("pause", "Fail over automatically again.", "resume"),
        "fence": Verb("fence", "Confirm that a lost node is off."),
        "set": Verb("knobs", "Change settings of a running pair.", "set_values"),
        "checkpoint": Verb("knobs", "Take one checkpoint now."),
        "verify": Verb("verify", "Compare both nodes' disks, and memory, while the guest runs."),
        "qmp": Verb("knobs", "Send one QMP command to one node."),
    },
    "Inspect": {
        "list": Verb("status", "List the pairs of this machine.", "list_pairs"),
        "status": Verb("status", "Show nodes, roles, protection and checkpoints."),
        "events": Verb("events", "Show the pair, then every event, in one order."),
        "history": Verb("history", "List every failover with its times."),
        "explain": Verb("explain", "Explain the state, and what would happen next."),
        "bundle": Verb("bundle", "Pack all that a report needs into one archive."),
        "wait": Verb("wait", "Wait until a pair is in a state."),
        "query": Verb("wait", "Ask one question; the exit code answers."),
    },
    "This machine": {
        "probe": Verb("probe", "Find out whether COLO works with a QEMU here."),
        "doctor": Verb("doctor", "Check every precondition of a pair by name."),
        "completion": Verb("completion", "Print a shell's completion script."),
        "host": Verb("host", "Add, list, check and remove the machines of pairs."),
        "certs": Verb("certs", "Make the certificates that encrypt a pair on two machines."),
        "schema": Verb("schema", "Dump, check and compare QMP schemas."),
        "agent": Verb("agent", "Serve this machine to a supervisor on another one."),
        "lab": Verb("lab", "Set up namespaces, guest and QEMU for demo and tests."),
        "demo": Verb("demo", "Protect a real guest, kill its host, lose nothing."),
        "chaos": Verb("chaos", "Break pairs on purpose, and check what clients saw."),
        "bench": Verb("bench", "Measure failovers, overhead and false alarms."),
    },
}


#: Verbs whose effect or exit code stands also where their output is lost.
KEEP_THEIR_CODE = frozenset(
    {*VERBS["Pairs"], "status", "wait", "query", "bundle", "probe", "doctor"}
)


class Verbs(click.Group):
    """The group of all verbs: knows their names, and loads the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of all verbs."""
        return [name for section in VERBS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb of that name; None where there is none."""
        for section in VERBS.values():
            if verb := section.get(cmd_name):
                return _load(cmd_name, verb)
        return None

    def invoke(self, ctx: click.Context) -> Any:
        """Invoke the verb; Ctrl-C becomes `Interrupted`."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise complaint.Interrupted("Interrupted.") from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs in sections."""
        for title, section in VERBS.items():
            with formatter.section(title):
                formatter.write_dl([(name, verb.line) for name, verb in section.items()])


def _load(name: str, verb: Verb) -> click.Command:
    module_name = f"coloctl.cli.verbs.{verb.module}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        raise UsageError(
            f"This installation of coloctl has no verb '{name}'.",
            hint="`coloctl --help` lists the verbs",
        ) from None
    command: Any = getattr(module, verb.command or name)
    assert isinstance(command, click.Command)
    return command


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    options_metavar="",
    subcommand_metavar="VERB ...",
)
@click.version_option(__version__, message="coloctl %(version)s")
def cli() -> None:
    """Run QEMU virtual machines fault-tolerantly: in pairs, with COLO.

    A pair runs one guest on two nodes at once. When one node is lost the other carries on, with
    every connection open, and loses nothing that it has acknowledged to a client.

    \b
    Exit codes: 0 ok, 1 failed, 2 usage, 3 not protected, 4 no such pair,
    5 refused by a safety check, 6 timed out, 7 fencing required or failed,
    8 stop cut the guest off.
    """


def run_verb(arguments: Sequence[str]) -> int:
    """Carry the verb out and return its exit code; errors are printed on standard error."""
    _clean_up_on_hangup(arguments)
    as_json = complaint.wants_json(arguments)
    code = _carried_out(arguments, as_json=as_json)
    if (error := streams.lost()) is None:
        return code
    if error.errno != errno.EPIPE:
        complaint.say(streams.complaint_about(error), as_json=as_json)
    return code if code or (arguments and arguments[0] in KEEP_THEIR_CODE) else 1


#: A start that has begun goes on when its terminal closes, and a supervisor hears SIGHUP itself.
_OUTLIVE_THEIR_TERMINAL = frozenset({"start", "run"})


def _clean_up_on_hangup(arguments: Sequence[str]) -> None:
    """End the verb as Ctrl-C does when its terminal closes, so that no program it started is left.

    nohup(1) is honoured: a signal that is ignored stays ignored.
    """
    outlives = bool(arguments) and arguments[0] in _OUTLIVE_THEIR_TERMINAL
    if outlives or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return
    with contextlib.suppress(ValueError):  # not in the main thread: nothing to arrange
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # A script's background job: Ctrl-C is still not for it, and asyncio handles the hangup.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(*_: object) -> None:
    """Raise SIGINT in this process, also where it is blocked.

    Not KeyboardInterrupt itself: raised inside a callback of asyncio it would cut that short, and
    the end of a child that it was about would never be heard.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.raise_signal(signal.SIGINT)


def _carried_out(arguments: Sequence[str], *, as_json: bool) -> int:
    try:
        return _invoke(arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return error.exit_code
    except BrokenPipeError:
        return 1  # the reader of our output has gone
    except (ColoctlError, click.ClickException, click.Abort, OSError) as error:
        return complaint.say(complaint.from_any(error), as_json=as_json)


def _invoke(arguments: Sequence[str]) -> int:
    code = cli.main(args=list(arguments), prog_name="coloctl", standalone_mode=False)
    return code if isinstance(code, int) else 0
