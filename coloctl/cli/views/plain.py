"""Format views of a pair as plain text, JSON and tab-separated values; light to import.

Called by every verb that prints a document, such as `cli.verbs.status`. Tables are in
`cli.views.render` and `cli.views.pair`, which need rich.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coloctl.model.pair import Role
from coloctl.model.tuning import words
from coloctl.model.view import NodeView, PairView, SettingView

if TYPE_CHECKING:
    from coloctl.cli.reach import Looked

#: Version of every JSON document that a verb prints; grows with incompatible changes only.
SCHEMA = 1
#: Of `--dry-run -f json`; 2: the pair's name is called ``name``, as in every other document.
DIALOGUE_SCHEMA = 2

#: One row per node; a column is never taken away or moved, new ones come at the end.
TSV_COLUMNS = (
    "pair", "node", "role", "state", "protection", "checkpoints", "period_ms", "pause_p50_ms",
    "pause_p99_ms", "exposed_s", "host", "pid", "presence", "run_state", "migration", "colo_mode",
    "fencing", "generation", "qemu_version", "paused", "diagnosis", "since_s", "user",
)  # fmt: skip


#: What `list` says of each pair, in the order of its tab-separated columns.
LIST_COLUMNS = (
    "name", "supervisor", "supervisor_pid", "protection", "primary", "generation", "exposed_s",
    "reason", "spec_path", "paused", "diagnosis", "may_run",
)  # fmt: skip


def print_json(document: object) -> None:
    """Print one document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def clock(seconds: float) -> str:
    """Format seconds as ``00:03:12``, with days in front where there are some."""
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    text = f"{hours:02}:{minutes:02}:{left:02}"
    return f"{days}d {text}" if days else text


def sentence(text: str) -> str:
    """Return ``text`` with the full stop that a sentence has at its end."""
    return text if text.endswith((".", "!", "?")) or not text else f"{text}."


def changed_settings(settings: Mapping[str, SettingView]) -> list[str]:
    """Return ``compare-timeout is 500 ms (pair file: 300 ms)`` for each that was changed."""
    return [
        f"{name} is {words(name, one.value)} (pair file: {words(name, one.pair_file)})"
        for name, one in settings.items()
        if one.value != one.pair_file
    ]


def primary_of(view: PairView) -> str | None:
    """Return the name of the node whose guest serves the clients."""
    primary = view.primary()
    return None if primary is None else primary.name


def after_start(view: PairView, took_s: float) -> str:
    """Report what a start has brought about, in a sentence."""
    primary = primary_of(view)
    if view.protected:
        other = next(name for name in view.nodes if name != primary)
        done = (
            f"{view.name} is protected: the guest runs on node {primary}, "
            f"node {other} follows ({took_s:.1f} s)."
        )
        return "\n".join(filter(None, (done, view.stale_code)))
    return f"{view.name} runs on node {primary}, without protection ({took_s:.1f} s)."


def summary(looked: Looked, *, given_up: bool = False) -> dict[str, Any]:
    """Return the row of one pair for `list`; ``given_up``: what was given up of it may run."""
    view, may_run = looked.view, "given up" if given_up else ""
    if view is None:
        return {
            "name": looked.name, "supervisor": looked.supervisor, "supervisor_pid": None,
            "protection": None, "primary": None, "generation": None, "exposed_s": None,
            "reason": looked.error, "spec_path": None, "paused": None, "diagnosis": None,
            "may_run": may_run,
        }  # fmt: skip
    left = [f"left on node {name}" for name, node in view.nodes.items() if node.left]
    return {
        "name": view.name,
        "supervisor": "running",
        "supervisor_pid": view.supervisor_pid,
        "protection": view.protection,
        "primary": primary_of(view),
        "generation": view.generation,
        "exposed_s": view.exposed_s,
        "reason": view.reason,
        "spec_path": view.spec_path,
        "paused": view.paused,
        "diagnosis": view.diagnosis,
        "may_run": ", ".join([*left, *filter(None, [may_run])]),
    }


def tsv(rows: Iterable[Sequence[object]]) -> str:
    """Format rows as tab-separated lines; None is empty, and no value can break a line."""
    return "\n".join("\t".join(map(_cell, row)) for row in rows)


def _cell(value: object) -> str:
    return "" if value is None else " ".join(str(value).split())


def tsv_rows(view: PairView) -> list[list[object]]:
    """Return a row per node, in the order of `TSV_COLUMNS`."""
    return [_tsv_row(view, view.nodes[name]) for name in sorted(view.nodes)]


def _tsv_row(view: PairView, node: NodeView) -> list[object]:
    counted = view.checkpoints
    figures: list[object] = [None] * 4
    if node.role is Role.PRIMARY:
        figures = [
            counted.count, counted.period_p50_ms, counted.pause_p50_ms, counted.pause_p99_ms,
        ]  # fmt: skip
    return [
        view.name, node.name, node.role, node.doing, view.protection, *figures, view.exposed_s,
        node.host, node.pid, node.presence, node.run_state, node.migration, node.colo_mode,
        node.fencing, view.generation, node.qemu_version, view.paused, view.diagnosis,
        view.since_s, node.user,
    ]  # fmt: skip


def dialogue_lines(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """Format a dialogue for people: the node, the reason, and the exact message."""
    lines: list[str] = []
    speaking_to = ""
    for step in steps:
        if step["node"] != speaking_to:
            speaking_to = step["node"]
            lines += ["", f"# node {speaking_to}"] if lines else [f"# node {speaking_to}"]
        if step["why"]:
            lines.append(f"#   {step['why']}")
        lines += _said(step)
    return lines


def _said(step: Mapping[str, Any]) -> list[str]:
    if "launch" in step:
        first, *rest = step["launch"]
        return " \\\n".join([first, *(f"    {option}" for option in rest)]).split("\n")
    if "command" in step:
        return [json.dumps(step["command"], ensure_ascii=False)]
    return [f"[{step['act']}]"]


def show_dialogue(pair: str, verb: str, steps: Sequence[Mapping[str, Any]], form: str) -> None:
    """Print the dialogue that ``verb`` would have with QEMU; none is held."""
    if form == "json":
        print_json(
            {
                "schema": DIALOGUE_SCHEMA,
                "name": pair,
                "verb": verb,
                "dry_run": True,
                "steps": steps,
            }
        )
    elif steps:
        print("\n".join(dialogue_lines(steps)))
    else:
        print("# nothing would be sent to QEMU")
