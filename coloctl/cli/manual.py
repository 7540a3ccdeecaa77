"""Write manual pages: coloctl(1), a page per verb such as coloctl-start(1), and coloctl.toml(5).

Run as ``python -m coloctl.cli.manual FOLDER`` by `.ci/deb`. The texts are those that `--help`
prints, from `cli.verbs`, and those of the pair file's JSON Schema, from `pairfile`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from coloctl import __version__
from coloctl.cli.verbs import VERBS, cli
from coloctl.pairfile import json_schema


def main(folder: Path) -> None:
    """Write all pages into ``folder``, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


def pages() -> dict[str, str]:
    """Return the text of every page by the name of its file."""
    context = click.Context(cli, info_name="coloctl", **cli.context_settings)
    found = {"coloctl.1": _overview(), "coloctl.toml.5": _pair_file(json_schema())}
    for verb in cli.list_commands(context):
        command = cli.get_command(context, verb)
        assert command is not None
        found[f"coloctl-{verb}.1"] = "\n".join(_verb(command, verb, context)) + "\n"
    return found


def _overview() -> str:
    lines = [*_head("coloctl", 1, "fault tolerance for QEMU virtual machines")]
    lines += [".SH SYNOPSIS", r".B coloctl", r".I VERB", "[...]", ".SH DESCRIPTION"]
    lines += [*_prose(cli.help or "")]
    for title, verbs in VERBS.items():
        lines.append(f".SH {title.upper()}")
        for name, verb in verbs.items():
            lines += [".TP", rf".BR coloctl\-{_plain(name)} (1)", _plain(verb.line)]
    lines += [".SH FILES"]
    for path, meaning in (
        ("/run/coloctl/PAIR/", "sockets, journal and logs of a pair that runs"),
        ("/var/lib/coloctl/disks/", "what is known of each disk of this machine"),
        ("/etc/coloctl/", "pair files, certificates and keys"),
        ("/var/cache/coloctl/", "downloads, and what was built from them"),
    ):
        lines += [".TP", rf".I {_plain(path)}", _plain(meaning) + "."]
    lines += [".SH SEE ALSO", ".BR coloctl.toml (5),", ".BR qemu\\-system\\-x86_64 (1)"]
    return "\n".join(lines) + "\n"


def _verb(command: click.Command, verb: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=verb, parent=parent)
    yield from _head(f"coloctl-{verb}", 1, command.get_short_help_str(100).rstrip("."))
    yield ".SH SYNOPSIS"
    yield from _synopsis(command, context)
    yield ".SH DESCRIPTION"
    yield from _prose(command.help or "")
    yield from _options(command, context, ".SH OPTIONS")
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        yield from _commands(command, context)
    yield ".SH SEE ALSO"
    yield ".BR coloctl (1),"
    yield ".BR coloctl.toml (5)"


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    """Format each command of a group, and those of a group in it, as subsections."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        yield f".SS {_plain(inner.command_path)}"
        yield from _synopsis(command, inner)
        yield ".PP"
        yield from _prose(command.help or "")
        yield from _options(command, inner, "")
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _synopsis(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f".B {_plain(context.command_path)}"
    yield _plain(" ".join(command.collect_usage_pieces(context)))


def _options(command: click.Command, context: click.Context, title: str) -> Iterator[str]:
    records = [
        record
        for one in command.get_params(context)
        if isinstance(one, click.Option) and (record := one.get_help_record(context)) is not None
    ]
    if records and title:
        yield title
    for names, meaning in records:
        yield ".TP"
        yield rf".B {_plain(names)}"
        yield _plain(" ".join(meaning.split()))


def _head(name: str, section: int, meaning: str) -> Iterator[str]:
    yield f'.TH "{_plain(name.upper())}" {section} "" "coloctl {__version__}" "coloctl"'
    yield ".SH NAME"
    yield rf"{_plain(name)} \- {_plain(meaning)}"


def _prose(text: str) -> Iterator[str]:
    """Format the paragraphs of a help text; one that begins with a backspace keeps its lines."""
    for paragraph in text.strip().split("\n\n"):
        lines = [line.strip() for line in paragraph.strip().splitlines()]
        yield ".PP"
        if lines[0] == "\b":
            yield ".nf"
            yield from map(_plain, lines[1:])
            yield ".fi"
        else:
            yield _plain(" ".join(lines))


def _pair_file(schema: Mapping[str, Any]) -> str:
    lines = [*_head("coloctl.toml", 5, "a pair file of coloctl")]
    lines += [".SH DESCRIPTION", _plain(schema["description"])]
    lines += [".SH KEYS"]
    lines += [*_table("", schema, schema["$defs"])]
    lines += [".SH SEE ALSO", ".BR coloctl (1),", ".BR coloctl\\-start (1)"]
    return "\n".join(lines) + "\n"


def _table(name: str, table: Mapping[str, Any], parts: Mapping[str, Any]) -> Iterator[str]:
    """Format the keys of a table, then the tables in it, each with its dotted name."""
    inner = []
    for key, value in table.get("properties", {}).items():
        path = f"{name}.{key}" if name else key
        target = _target(value, parts)
        if target is not None:
            title = f"[[{path}]]" if value.get("type") == "array" else f"[{path}]"
            inner.append((path, title, target))
            continue
        yield ".TP"
        yield rf".B {_plain(path)}"
        described = " ".join(str(value.get("description", "")).split())
        limits = _limits(value, required=key in table.get("required", ()))
        yield _plain(f"{described} {limits}".strip())
    for path, title, target in inner:
        yield f".SS {_plain(title)}"
        yield _plain(" ".join(str(target.get("description", "")).split()))
        yield from _table(path, target, parts)


def _target(value: Mapping[str, Any], parts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find the table that a key holds, or an array of: None for a plain value."""
    for one in (value, value.get("items", {}), *value.get("anyOf", ())):
        if isinstance(one, Mapping) and "$ref" in one:
            found: Mapping[str, Any] = parts[one["$ref"].rpartition("/")[2]]
            return found if "properties" in found else None
    return None


def _limits(value: Mapping[str, Any], *, required: bool) -> str:
    """Format type, bounds and default of a key."""
    kinds = [value, *value.get("anyOf", ())]
    types = [one["type"] for one in kinds if "type" in one]
    flat = [kind for one in types for kind in (one if isinstance(one, list) else [one])]
    words = [" or ".join(kind for kind in flat if kind != "null")]
    if choices := next((one["enum"] for one in kinds if "enum" in one), None):
        words = ["one of " + ", ".join(map(str, choices))]
    for bound, meaning in (("minimum", "at least"), ("maximum", "at most")):
        words += [f"{meaning} {one[bound]}" for one in kinds if bound in one]
    if required:
        words.append("required")
    elif value.get("default") not in (None, "", [], {}):
        default = value["default"]
        words.append(f"default {str(default).lower() if isinstance(default, bool) else default}")
    return f"({', '.join(filter(None, words))})" if any(words) else ""


def _plain(text: str) -> str:
    """Escape text for roff: backslashes, dashes, and a dot or apostrophe that begins a line."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("`", r"\(ga")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    main(Path(sys.argv[1]))
