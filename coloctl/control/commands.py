"""The commands and events of the control socket: two tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from coloctl.model.tuning import SETTINGS

Type = Literal["str", "int", "number", "bool", "object", "scalar"]


@dataclass(frozen=True)
class Argument:
    """One member of a command's arguments, or of an event's data."""

    name: str
    type: Type
    doc: str
    optional: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    name: str
    doc: str
    returns: str
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Event:
    name: str
    doc: str
    data: tuple[Argument, ...] = ()


_NODE = ("a", "b")

ALL_COMMANDS = (
    Command("query-commands", "The commands that this supervisor answers.", "[{name}]"),
    Command("query-schema", "This schema.", "the document stored as qmp_schemas/coloctl.json"),
    Command(
        "query-version",
        "The version of the coloctl that runs the supervisor.",
        "{qemu: {major, minor, micro}, package}, with coloctl's numbers where QEMU has its own",
    ),
    Command("query-pair", "The pair as last seen.", "the document of `coloctl status -f json`"),
    Command(
        "query-dump",
        "What is: the pair, its nodes, its checkpoints, in records, and where the stream goes on.",
        "{seq, records}: every event with a greater seq came after what the records say",
    ),
    Command(
        "query-explain",
        "Why the state is what it is, how silent each road is, and what would happen next.",
        "the document of `coloctl explain -f json`",
    ),
    Command(
        "query-evidence",
        "The last observation of the pair, from which its diagnosis can be made again.",
        "{observation, finding}; each null where nothing was observed yet",
    ),
    Command(
        "query-history",
        "Every failover of this pair, oldest first.",
        "{failovers, unreadable}: timelines as of pair-failover, and lines that were damaged",
    ),
    Command(
        "query-recording",
        "The last messages between the supervisor and the QEMU of a node, without secrets.",
        "[{at_s, what, message}], the latest last; answered probes are only counted",
        (Argument("node", "str", "the node", choices=_NODE),),
    ),
    Command(
        "query-plan",
        "The QMP commands that a verb would send to each node now; nothing is sent.",
        "the steps in order, each with node, why, and one of launch, command or act",
        (
            Argument("verb", "str", "the verb as on the command line, such as failover"),
            Argument("to", "str", "the node to promote, for failover", True, _NODE),
            Argument("settings", "object", "new values by name, for set", True),
            Argument("memory", "bool", "for verify: whether memory is compared", True),
        ),
    ),
    Command(
        "pair-start",
        "Starts what does not run yet and brings the pair into COLO; answers when that is done.",
        "the pair as in query-pair",
        (
            Argument("protect", "bool", "false leaves the guest without a secondary", True),
            Argument("from", "str", "the node whose disks are taken all the same", True, _NODE),
        ),
    ),
    Command(
        "pair-failover",
        "Proves one node dead and promotes the other.",
        "the timeline of the failover",
        (
            Argument("to", "str", "the node that survives; without it the valid one", True, _NODE),
            Argument("force", "bool", "give up the checks that protect data", True),
        ),
    ),
    Command(
        "pair-protect",
        "Makes a fresh secondary for a guest that runs alone; answers when the pair is in COLO.",
        "the pair as in query-pair",
    ),
    Command(
        "pair-unprotect",
        "Ends the secondary; the guest runs on alone, and nobody protects it again by himself.",
        "the pair as in query-pair",
    ),
    Command(
        "pair-switchover",
        "The nodes change their roles, nothing is lost, and the pair is protected again.",
        "the timeline of the failover behind it, with cause switchover",
        (Argument("force", "bool", "also where TCG may run stale code", True),),
    ),
    Command(
        "pair-stop",
        "Shuts the guest down, ends both QEMUs and the supervisor.",
        "{}",
        (
            Argument("force", "bool", "end QEMU without asking the guest", True),
            Argument("timeout-s", "number", "how long the guest may take to shut down", True),
        ),
    ),
    Command(
        "pair-pause",
        "The supervisor only watches: nobody but an operator fails the pair over.",
        "{paused, before}",
    ),
    Command(
        "pair-resume",
        "The supervisor fails the pair over by itself again, where its policy lets it.",
        "{paused, before}",
    ),
    Command(
        "pair-fence-confirm",
        "A person vouches that a node is off, so that its partner may be promoted.",
        "the pair as in query-pair",
        (Argument("node", "str", "the node that is off", choices=_NODE),),
    ),
    Command(
        "pair-set",
        "Changes settings of the running pair.",
        "{name, before, after, changed: [{name, before, after}]}, the first one twice",
        (
            Argument("name", "str", "the setting", choices=tuple(SETTINGS)),
            Argument("value", "scalar", "the new value; a number, or as it is typed for `set`"),
            Argument("more", "object", "values of further settings by name, set with it", True),
        ),
    ),
    Command(
        "pair-checkpoint",
        "Takes one checkpoint now; answers when it is completed.",
        "{count, pause-ms}",
    ),
    Command(
        "pair-verify",
        "Compares disks and memory of both nodes while the guest runs; answers when that is over.",
        "{at, outcome, took_s, ended_s, primary, secondary, disks: [{disk, size, read, differs, "
        "unsettled}], reason, memory, pages: {block, pages, same, moving, different, places, "
        "left_out} or null}; outcome is equal, different or broken-off, and memory says why pages "
        "is null",
        (
            Argument(
                "memory", "bool", "whether memory is compared; as the pair file unless given", True
            ),
        ),
    ),
    Command(
        "node-qmp",
        "Sends one QMP command to the QEMU of a node.",
        "what QEMU returned",
        (
            Argument("node", "str", "the node", choices=_NODE),
            Argument("execute", "str", "the QMP command"),
            Argument("arguments", "object", "its arguments", True),
            Argument("oob", "bool", "send it out of band, over the rescue monitor", True),
            Argument("timeout-s", "number", "how long QEMU may take; 30 unless given", True),
        ),
    ),
)

ALL_EVENTS = (
    Event(
        "STATE_CHANGED",
        "The protection of the pair changed.",
        (
            Argument("before", "str", "the state that was left"),
            Argument("fact", "str", "what happened"),
            Argument("after", "str", "the state now"),
            Argument("reason", "str", "why, in a sentence"),
        ),
    ),
    Event(
        "CHECKPOINT",
        "A checkpoint began (the guest is paused) or ended (it runs again).",
        (
            Argument("node", "str", "the primary", choices=_NODE),
            Argument("phase", "str", "begin or end", choices=("begin", "end")),
            Argument("count", "int", "checkpoints since the pair entered COLO"),
            Argument("pause-ms", "number", "how long the guest was paused, at the end", True),
        ),
    ),
    Event(
        "NODE_EVENT",
        "The QEMU of a node sent an event.",
        (
            Argument("node", "str", "the node", choices=_NODE),
            Argument("event", "str", "the name of the event, as in QEMU's schema"),
            Argument("data", "object", "its data, as in QEMU's schema"),
            Argument("timestamp", "number", "seconds since the epoch, by QEMU's clock"),
        ),
    ),
    Event(
        "NODE_DEAD",
        "The QEMU process of a node is gone.",
        (
            Argument("node", "str", "the node", choices=_NODE),
            Argument("how", "str", "exit code or signal, in words"),
        ),
    ),
    Event(
        "DIAGNOSIS",
        "What is the matter with the pair is something else than before.",
        (
            Argument("diagnosis", "str", "its name, healthy when nothing is the matter any more"),
            Argument("node", "str", "the node that it is about, if it is about one", True, _NODE),
            Argument("evidence", "str", "what it rests on, in sentences"),
        ),
    ),
    Event(
        "STEP",
        "An act has reached one of its steps.",
        (
            Argument("act", "str", "the act, such as failover"),
            Argument("step", "str", "the step, such as fenced"),
            Argument("at-ms", "number", "milliseconds since the act began, where measured", True),
            Argument("limit-s", "number", "how much longer the step may take, seconds", True),
        ),
    ),
    Event(
        "PROGRESS",
        "An act moved on within a long step.",
        (
            Argument("act", "str", "the act, such as start"),
            Argument("step", "str", "the step, such as mirror"),
            Argument("done", "int", "bytes done"),
            Argument("total", "int", "bytes in all"),
        ),
    ),
    Event(
        "FAILED_OVER",
        "A failover is over: the survivor runs the guest alone.",
        (Argument("timeline", "object", "what pair-failover returns"),),
    ),
    Event(
        "VERIFIED",
        "A comparison of both nodes' disks is over.",
        (
            Argument("outcome", "str", "equal, different or broken-off"),
            Argument("report", "object", "what pair-verify returns"),
        ),
    ),
    Event(
        "PAUSE_CHANGED",
        "Automatic failover was switched off or on.",
        (Argument("paused", "bool", "whether the supervisor only watches"),),
    ),
    Event(
        "PACE_CHANGED",
        "Adaptive mode has chosen another checkpoint delay.",
        (
            Argument("before-ms", "int", "the delay until now"),
            Argument("after-ms", "int", "the delay from the checkpoint under way on"),
            Argument("why", "str", "why, in a sentence"),
        ),
    ),
    Event(
        "CLIENT_DROPPED",
        "The last message to a client that read too slowly; events after it are lost to it.",
        (Argument("reason", "str", "why, in a sentence"),),
    ),
)
