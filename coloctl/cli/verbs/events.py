"""Define the verb `events`: show the pair, a mark, and then every event, in one order.

Asks for a dump through `control.acts` and follows the events of `control.client`; the number of the
dump joins both without a gap.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from coloctl import paths
from coloctl.cli import reach, streams
from coloctl.cli.options import format_option, pair_argument
from coloctl.cli.views.progress import plain_line
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient, ControlEvent
from coloctl.errors import ColoctlError, Unreachable
from coloctl.model import pairevent
from coloctl.model.pairevent import (
    CheckpointPhase,
    DiagnosisChanged,
    FailedOver,
    NodeEvent,
    PaceChanged,
    PairEvent,
    PauseChanged,
    VerificationOver,
)
from coloctl.model.revive import revive
from coloctl.model.view import CheckpointView, Fencing, NodeView

#: Of `events -f json`; 2: the members of every event are written with underscores.
SCHEMA = 2


@click.command()
@pair_argument
@click.option("--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@format_option("pretty", "json")
def events(pair: str, follow: bool, form: str) -> None:
    """Show what PAIR is now, and with --follow everything that happens to it from then on.

    First come records of what is: the pair, each node, the checkpoints, the diagnosis. A mark ends
    them. The events of both QEMUs and of the supervisor follow in the order in which the supervisor
    sent them, each with its number, none left out and none twice. A reader that is too slow gets a
    message and no more events; it asks again then.
    """
    with reach.connect(pair) as client:
        try:
            dump = Acts(client).dump()
            for record in dump["records"]:
                _say(record, form)
            _say({"exists": None, "end-of-dump": True, "seq": dump["seq"]}, form)
            if follow:
                _follow(client, pair, dump["seq"], form)
        except KeyboardInterrupt:
            return  # how it is meant to end


def _follow(client: ControlClient, pair: str, seq: int, form: str) -> None:
    """Print every event after number ``seq``; return when the pair was stopped and is gone."""
    try:
        for event in client.events():
            if event.name == "CLIENT_DROPPED":
                raise _left_behind(pair, event.data["reason"])
            if event.seq <= seq:
                continue  # the dump knows of it
            if event.seq > seq + 1:
                raise _left_behind(pair, f"{event.seq - seq - 1} events are missing.")
            seq = event.seq
            _say(_record(event), form)
    except Unreachable:
        if paths.pair_dir(pair).exists():
            raise


class LeftBehind(ColoctlError):
    """The supervisor went on without this reader."""

    code = "left-behind"


def _left_behind(pair: str, reason: str) -> LeftBehind:
    return LeftBehind(
        f"The stream of {pair} broke off: {reason}",
        hint=f"`coloctl events {pair} --follow` begins again with a dump; read it faster",
    )


def _record(event: ControlEvent) -> dict[str, Any]:
    return {"event": event.name, "seq": event.seq, "at_s": event.at_s, "data": event.data}


def _say(record: dict[str, Any], form: str) -> None:
    """Write ``record`` and flush it, so that the reader of a pipe gets it at once."""
    if form == "json":
        shown = {name: value for name, value in record.items() if name != "exists" or value}
        line = json.dumps({"schema": SCHEMA, **shown}, ensure_ascii=False)
    else:
        line = _happened(record) if "event" in record else _exists(record)
    print(line)
    streams.require()


def _exists(record: dict[str, Any]) -> str:
    what = record["exists"]
    if what is None:
        return f"--- all of this was so at event {record['seq']}; what follows came after it ---"
    try:
        state = _state(what, record)
    except ValueError:  # of a supervisor of another version
        state = json.dumps(record, ensure_ascii=False)
    return f"{_subject(what, record):13}{state}"


def _subject(what: str, record: dict[str, Any]) -> str:
    return f"node {record['name']}" if what == "node" else str(what)


def _state(what: str, record: dict[str, Any]) -> str:
    if what == "pair":
        paused = ", paused" if record.get("paused") else ""
        state = f"{record['protection']}, generation {record['generation']}{paused}"
        return f"{state}: {record['reason']}"
    if what == "node":
        return _node_line(revive(NodeView, record))
    if what == "checkpoints":
        counted = revive(CheckpointView, record)
        last = counted.last_pause_ms
        pause = "" if last is None else f", the last paused the guest for {last:.1f} ms"
        return f"{counted.count}, one every {counted.delay_ms} ms at least{pause}"
    if what == "diagnosis":
        return " ".join([f"{record['name']}.", *record["evidence"]])
    return json.dumps(record, ensure_ascii=False)


def _node_line(node: NodeView) -> str:
    pid = f", process {node.pid}" if node.pid else ""
    fence = "" if node.fencing is Fencing.CLEAR else f", fencing {node.fencing}"
    return f"{node.role}, {node.doing}{pid}{fence}"


def _happened(record: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(record["at_s"]).astimezone()
    return f"{at:%H:%M:%S.%f}"[:-3] + f"  {record['seq']:>6}  {in_words(record)}"


def in_words(record: dict[str, Any]) -> str:
    """Return an event for people, on one line."""
    name, data = record["event"], record["data"]
    happened = pairevent.read(name, data)
    line = None if happened is None else _line(happened)
    return line or f"{name} {json.dumps(data, ensure_ascii=False)}"


def _line(event: PairEvent) -> str | None:
    line: str | None
    match event:
        case NodeEvent(node=node, event=name, data=data):
            inside = f" {json.dumps(data, ensure_ascii=False)}" if data else ""
            line = f"node {node}: {name}{inside}"
        case CheckpointPhase(node=node, phase=phase, count=count, pause_ms=pause_ms):
            pause = "" if pause_ms is None else f", the guest paused for {pause_ms} ms"
            line = f"checkpoint {count} of node {node}: {phase}{pause}"
        case FailedOver(timeline=done):
            line = f"failed over from node {done.lost} to node {done.survivor}"
        case DiagnosisChanged(diagnosis=diagnosis, evidence=evidence):
            line = f"seen: {diagnosis}. {evidence}".rstrip()
        case VerificationOver(outcome=outcome):
            line = f"both copies: {outcome}"
        case PaceChanged(before_ms=before_ms, after_ms=after_ms, why=why):
            line = f"a checkpoint after {after_ms} ms, not {before_ms}: {why}"
        case PauseChanged(paused=paused):
            line = "paused" if paused else "not paused any more"
        case _:
            line = plain_line(event)
    return line
