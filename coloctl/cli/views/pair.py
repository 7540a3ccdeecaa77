"""Draw views of pairs as tables; pure.

Called by `cli.verbs.status` with what `cli.reach` found, and by `cli.verbs.demo`. Nothing is asked
here, nothing is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coloctl.cli.reach import Looked
from coloctl.cli.views.plain import changed_settings, clock, sentence
from coloctl.cli.views.render import Widest, milliseconds, plain_table
from coloctl.model.encryption import ENCRYPTED
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import Role
from coloctl.model.protection import Protection
from coloctl.model.strangers import summary
from coloctl.model.verified import VerifyOutcome, last_verified
from coloctl.model.view import (
    ActProgress,
    CheckpointView,
    Fencing,
    NodeView,
    PairView,
    Presence,
)

#: The colour of each state, to be read from the other end of the room.
STATE_STYLE: Mapping[str, str] = {
    "colo": "green",
    "unprotected": "yellow",
    "resync": "cyan",
    "migrating": "cyan",
    "failover": "red",
    "failed": "red",
    "down": "dim",
}
_NOTHING = Text("-", style="dim")
#: States in which the checkpoints that were counted are those of the pair as it is.
_COUNTING = (Protection.COLO, Protection.FAILOVER)
#: What `status -e` says of each node.
_FACTS: Mapping[str, str] = {
    "host": "host",
    "pid": "process",
    "qemu_version": "QEMU",
    "user": "QEMU's user",
    "presence": "presence",
    "run_state": "run state",
    "migration": "migration",
    "colo_mode": "COLO mode",
    "fencing": "fencing",
    "impairments": "impaired",
    "fresh_code": "fresh code",
}


def statuses(looked: Sequence[Looked], *, extended: bool = False) -> RenderableType:
    """Draw pairs below each other, as `reach.survey` found them."""
    parts: list[RenderableType] = []
    for one in looked:
        if parts:
            parts.append(Text())
        parts.append(_unseen(one) if one.view is None else status(one.view, extended=extended))
    return Group(*parts)


def status(view: PairView, *, extended: bool = False) -> RenderableType:
    """Draw one pair: protection and news on top, its nodes below."""
    parts: list[RenderableType] = [headline(view), Text(sentence(view.reason), style="dim")]
    parts += news(view)
    if view.progress:
        parts.append(_progress(view.progress))
    parts += [Text(), nodes(view)]
    if extended:
        parts += [Text(), details(view)]
    return Group(*parts)


def headline(view: PairView) -> Text:
    """Draw pair, protection and its age, generation; the exposure clock while it runs."""
    state, exposed = view.protection, view.exposed_s
    style = STATE_STYLE.get(state, "")
    alone = state is Protection.UNPROTECTED and exposed is not None
    lasting = exposed if alone and exposed is not None else view.since_s
    line = Text.assemble(
        (view.name, "bold"),
        "   ",
        ("● ", style),
        (state, f"bold {style}"),
        f" for {clock(lasting)}",
    )
    if exposed is not None and not alone:
        line.append(f"   unprotected for {clock(exposed)}", "yellow")
    line.append("   generation ", "dim").append(str(view.generation))
    return line.append("   paused", "bold yellow") if view.paused else line


def news(view: PairView) -> Iterator[Text]:
    """List what an operator should know beyond the state: what is wrong, and what is awaited."""
    name = view.name
    if view.diagnosis is not Diagnosis.HEALTHY:
        yield Text.assemble(("✘ ", "red"), (view.diagnosis, "bold red"), " is what is seen; ",
                            f"`coloctl explain {name}` says why.")  # fmt: skip
    if view.unwritten:
        yield Text(sentence(view.unwritten), style="red")
    if view.waiting and view.waiting != view.reason:
        yield Text(sentence(view.waiting), style="yellow")
    if view.verified and view.verified.outcome is VerifyOutcome.DIFFERENT:
        yield Text.assemble(("✘ ", "red"), last_verified(view.verified))
    if view.exposure:
        yield Text(sentence(view.exposure), style="yellow")
    elif view.paused and not view.waiting:
        yield Text(
            f"Automatic failover is off; `coloctl resume {name}` switches it on.", style="yellow"
        )
    if view.stale_code:
        yield Text(view.stale_code, style="yellow")
    if view.encryption not in ("", ENCRYPTED):
        yield Text(view.encryption, style="yellow")
    if view.given_up:
        yield Text(view.given_up, style="yellow")
    if strangers := summary(view.turned_away):
        yield Text(strangers, style="yellow")
    if changed := changed_settings(view.settings):
        yield Text(f"Set while it runs: {', '.join(changed)}.", style="dim")
    yield from _of_nodes(view)


def _of_nodes(view: PairView) -> Iterator[Text]:
    """List what an operator should know of single nodes."""
    for node in _nodes_of(view):
        if node.left:
            yield Text(node.left, style="yellow")
        if node.late:
            yield Text(node.late, style="yellow")
        if node.unit:
            yield Text(node.unit, style="yellow")
        if node.fencing is Fencing.REQUIRED:
            yield Text(
                f"Make sure that node {node.name} is off, then "
                f"`coloctl fence confirm {view.name} {node.name}`.",
                style="bold red",
            )


def _nodes_of(view: PairView) -> list[NodeView]:
    return [view.nodes[name] for name in sorted(view.nodes)]


def _progress(progress: ActProgress) -> Text:
    from coloctl.cli.views.progress import in_words

    line = Text.assemble(("→ ", "cyan"), f"{progress.act}: {in_words(progress.step)}")
    if progress.total:
        line.append(f", {100 * (progress.done or 0) // progress.total} %")
    if progress.bytes_per_s is not None:
        line.append(f", {progress.bytes_per_s / 1e6:.1f} MB/s")
    if progress.left_s is not None:
        line.append(f", {clock(progress.left_s)} left")
    return line


def nodes(view: PairView) -> RenderableType:
    """Draw a row per node; a narrow terminal shows no figures of checkpoints but their number."""
    figures = ("CHECKPOINTS", "PERIOD", "PAUSE p50/p99")
    return Widest(_nodes(view, figures), _nodes(view, figures[:1]))


def _nodes(view: PairView, figures: Sequence[str]) -> Table:
    """Draw a row per node; checkpoints are counted at the primary."""
    table = plain_table("NODE", "ROLE", "STATE", "PROTECTION")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    for node in _nodes_of(view):
        table.add_row(
            Text(node.name, style="bold" if node.role is Role.PRIMARY else ""),
            _NOTHING if node.role is Role.NONE else Text(node.role),
            _state(node),
            _protection(view, node),
            *_checkpoints(view, node)[: len(figures)],
        )
    return table


def _state(node: NodeView) -> Text:
    state = node.doing
    styles = {"dead": "red", "not answering": "red", "left": "yellow", "absent": "dim"}
    return Text("-" if state == Presence.ABSENT else state, style=styles.get(state, ""))


def _protection(view: PairView, node: NodeView) -> Text:
    """Return the pair's state where the node has a QEMU, or the state of its fence."""
    if node.fencing not in (Fencing.CLEAR, Fencing.FENCED):
        return Text(f"fencing {node.fencing}", style="red")
    if node.role is Role.NONE:
        fenced = node.fencing is Fencing.FENCED and not node.left
        return Text("fenced", style="dim") if fenced else _NOTHING
    return Text(view.protection, style=STATE_STYLE.get(view.protection, ""))


def _checkpoints(view: PairView, node: NodeView) -> list[Text]:
    counted = view.checkpoints
    counts = node.role is Role.PRIMARY and view.protection in _COUNTING
    if not counts or not counted.count or counted.pause_p50_ms is None:
        return [_NOTHING] * 3
    return [
        Text(str(counted.count)),
        Text(milliseconds(counted.period_p50_ms, digits=0)),
        Text(f"{counted.pause_p50_ms:.1f} / {milliseconds(counted.pause_p99_ms)}"),
    ]


def details(view: PairView) -> RenderableType:
    """Draw all facts: of the nodes side by side, then of the pair."""
    return Group(_node_facts(_nodes_of(view)), Text(), _pair_facts(view))


def _node_facts(nodes: Sequence[NodeView]) -> Table:
    table = plain_table("")
    for node in nodes:
        table.add_column(f"NODE {node.name}", overflow="fold")
    for key, label in _FACTS.items():
        table.add_row(Text(label, "dim"), *(_fact(getattr(node, key)) for node in nodes))
    return table


def _fact(value: object) -> Text:
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    if isinstance(value, bool):
        value = "yes" if value else "no"
    return _NOTHING if value in (None, "") else Text(str(value))


def _pair_facts(view: PairView) -> Table:
    counted = view.checkpoints
    table = plain_table("", "")
    table.show_header = False
    table.add_row(Text("checkpoint delay", "dim"), f"{counted.delay_ms} ms")
    if view.pace:
        table.add_row(Text("adaptive mode", "dim"), view.pace)
    table.add_row(Text("last checkpoint", "dim"), _last(counted))
    table.add_row(Text("paused", "dim"), "yes" if view.paused else "no")
    # Every monitoring path may answer where a failover has failed, and where nothing runs at all.
    unsound = view.protection in (Protection.DOWN, Protection.FAILED, Protection.FAILOVER)
    well = view.diagnosis is Diagnosis.HEALTHY
    table.add_row(Text("diagnosis", "dim"), "-" if unsound and well else view.diagnosis)
    table.add_row(Text("last resync", "dim"), view.copied or "-")
    if view.encryption:
        table.add_row(Text("encryption", "dim"), view.encryption)
    if verified := last_verified(view.verified):
        table.add_row(Text("last verified", "dim"), verified)
    table.add_row(Text("pair file", "dim"), view.spec_path or "-")
    table.add_row(Text("supervisor", "dim"), f"process {view.supervisor_pid}")
    return table


def _last(counted: CheckpointView) -> str:
    """Return the latest checkpoint's figures."""
    if counted.last_pause_ms is None:
        return "-"
    text = f"{milliseconds(counted.last_pause_ms)} pause"
    if counted.last_period_ms is not None:
        text += f", {counted.last_period_ms:.0f} ms after the one before"
    return text


def watched(drawn: RenderableType, every_s: float) -> RenderableType:
    """Draw a status that renews itself, and how to end it."""
    return Group(drawn, Text(), Text(f"every {every_s:g} s; Ctrl-C ends", style="dim"))


#: What is shown instead of a state.
_UNSEEN: Mapping[str, str] = {
    "running": "supervisor of another version",
    "silent": "supervisor does not answer",
    "gone": "no supervisor",
}


def _unseen(looked: Looked) -> RenderableType:
    """Draw a pair whose status could not be had, and what can be done."""
    name, gone = looked.name, looked.supervisor == "gone"
    word = _UNSEEN[looked.supervisor]
    hint = looked.hint or (
        "it may be frozen" if not gone else f"`coloctl stop {name} --force` clears what it left"
    )
    line = Text.assemble((name, "bold"), "   ", ("● ", "red"), (word, "red"))
    return Group(line, Text(looked.error or "", style="dim"), Text(hint, style="dim"))


def pairs(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Draw a row per pair; ``rows`` are those of `plain.summary`."""
    table = plain_table("PAIR", "PROTECTION", "GUEST ON", "GENERATION", "EXPOSED")
    table.add_column("REASON")  # takes what room is left, on one line
    for row in rows:
        exposed = row["exposed_s"]
        table.add_row(
            Text(row["name"], style="bold"),
            _short(row),
            Text(f"node {row['primary']}") if row["primary"] else _NOTHING,
            _NOTHING if row["generation"] is None else Text(str(row["generation"])),
            _NOTHING if exposed is None else Text(clock(exposed), style="yellow"),
            Text(row["reason"], style="dim", no_wrap=True, overflow="ellipsis"),
        )
    return table


def _short(row: Mapping[str, Any]) -> Text:
    state = row["protection"]
    if not state:
        text = Text(row["supervisor"], style="red")
    else:
        text = Text(state, style=STATE_STYLE.get(state, ""))
    for word in ("paused" if row.get("paused") else "", row["may_run"]):
        text.append(f", {word}" if word else "", "yellow")
    return text
