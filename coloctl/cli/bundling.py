"""Collect what a bundle holds within short deadlines, and pack it without secrets.

Called by `cli.verbs.bundle`; asks the supervisor through `control.client`, reads the pair's folder
that `supervisor.leftovers` knows, and takes secrets out with `supervisor.redact`.

Invariant: no part that cannot be had, for any reason, keeps another part out. Each ends in the
manifest as a file or as a thing that is missing, with the reason.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from coloctl import __version__
from coloctl.cli.views import plain
from coloctl.control.client import ControlClient
from coloctl.errors import (
    ColoctlError,
    CommandRefused,
    DeadlineMissed,
    OutcomeUnknown,
    Unreachable,
)
from coloctl.model.pair import NODES
from coloctl.model.view import PairView
from coloctl.reading import read_toml
from coloctl.regular import open_regular
from coloctl.supervisor import leftovers, redact
from coloctl.supervisor.started import PAIR_FILE

#: Of a log its end, of a journal as much as it may grow to.
LOG_MAX, JOURNAL_MAX = 1 << 20, 8 << 20
#: A QEMU or a supervisor that works answers within milliseconds, in a checkpoint within a second.
DEADLINE_S = 2.0
#: A shorter word cannot be distinguished from words that are no secret.
SECRET_MIN = 4

#: What each QEMU is asked.
QUESTIONS = (
    "query-status", "query-migrate", "query-colo-status", "query-version", "query-jobs",
    "query-block", "query-named-block-nodes", "x-debug-query-block-graph", "query-chardev",
    "query-migrate-capabilities", "query-migrate-parameters",
)  # fmt: skip
#: The objects that a pair is made of; others, such as secrets, are only listed.
OBJECTS = ("filter-", "colo-compare", "iothread")

#: What not every pair has: one that never failed over, or whose journal is short.
SOMETIMES = frozenset({"claim.json", "history.jsonl", "journal.jsonl.1"})

#: What the supervisor is asked, by the name of the file that gets the answer.
PAIR_QUESTIONS = {
    "status.json": "query-pair",
    "explain.json": "query-explain",
    "evidence.json": "query-evidence",
    "history.json": "query-history",
}


class Parts:
    """The files of a bundle so far, and what is missing."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.missing: list[dict[str, str]] = []
        self.secrets: list[str] = []
        self.silent = ""  #: why the next question will not be answered either

    def lack(self, name: str, why: str) -> None:
        """Note that ``name`` is missing, and why."""
        self.missing.append({"name": name, "why": self._unnamed(why)})

    def text(self, name: str, text: str) -> None:
        """Add a text line by line, because most secrets end with their line."""
        self.files[name] = self._unnamed(redact.lines(text)).encode()

    def learn(self, document: object) -> None:
        """Look for the secrets of ``document`` in everything that is added from here on."""
        found = {one for one in redact.secrets_in(document) if len(one) >= SECRET_MIN}
        self.secrets = sorted({*self.secrets, *found}, key=len, reverse=True)

    def document(self, name: str, document: object) -> None:
        """Add a document as JSON, without its secrets."""
        said = json.dumps(redact.value(document), indent=2, ensure_ascii=False, default=str)
        self.files[name] = self._unnamed(said).encode() + b"\n"

    def _unnamed(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, redact.REDACTED)
        return text

    def attempt(self, name: str, get: Callable[[], object]) -> Any:
        """Add the answer of ``get`` as the file ``name`` and return it.

        Where it raises, the reason is recorded and None is returned.
        """
        try:
            answer = get()
        except (ColoctlError, OSError, ValueError, KeyError, TypeError) as error:
            why = error.message if isinstance(error, ColoctlError) else str(error)
            self.lack(name, why)
            if isinstance(error, DeadlineMissed | Unreachable | OutcomeUnknown):
                self.silent = why
            return None
        self.document(name, answer)
        return answer


def collect(pair: str, folder: Path, client: ControlClient | None, why_not: str) -> Parts:
    """Collect all that can be had of the pair.

    ``client`` is None where no supervisor answers for it; ``why_not`` is the reason then.
    """
    parts = Parts()
    _collect_pair_file(parts, folder)
    parts.attempt("versions.json", lambda: _versions(folder))
    view: Mapping[str, Any] | None = None
    for name, question in PAIR_QUESTIONS.items():
        if client is None:
            parts.lack(name, why_not)
            continue
        answer = parts.attempt(name, partial(client.execute, question, DEADLINE_S))
        view = answer if name == "status.json" else view
        if parts.silent:
            client, why_not = None, parts.silent
    pids = _pids(parts, folder, view)
    for node in NODES:  # before the logs, in which secrets are not marked
        _collect_process(parts, node, pids.get(node))
    _collect_logs(parts, folder)
    for node in NODES:
        _collect_node(parts, node, client, why_not)
    return parts


def _collect_pair_file(parts: Parts, folder: Path) -> None:
    """Add the pair file without its secrets, which all later parts are searched for."""

    def read() -> object:
        document = read_toml((folder / PAIR_FILE).read_text())
        parts.learn(document)
        return document

    parts.attempt("pair.json", read)


def _collect_logs(parts: Parts, folder: Path) -> None:
    for name, most in (
        ("supervisor.log", LOG_MAX),
        ("history.jsonl", LOG_MAX),
        ("claim.json", LOG_MAX),
        ("journal.jsonl", JOURNAL_MAX),
        ("journal.jsonl.1", JOURNAL_MAX),
        *((f"{node}/{log}.log", LOG_MAX) for node in NODES for log in ("qemu", "console")),
    ):
        try:
            text, cut = _tail(folder / name, most)
        except FileNotFoundError:
            if name not in SOMETIMES:
                parts.lack(name, "it does not exist")
        except OSError as error:
            parts.lack(name, error.strerror or str(error))
        else:
            parts.text(name, text)
            if cut:
                parts.lack(f"{name}, its beginning", f"{cut} bytes are left out")


def _tail(path: Path, most: int) -> tuple[str, int]:
    """Return the last ``most`` bytes from the start of a line, and how many stand before."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = file.seek(0, os.SEEK_END)
        begin = max(0, size - most)
        file.seek(begin)
        data = file.read(most)
    if begin:
        rest = data.partition(b"\n")[2]
        begin, data = size - len(rest), rest
    return data.decode(errors="replace"), begin


def _versions(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "coloctl": __version__,
        "python": sys.version,
        "system": dict(zip(("system", "node", "release", "version", "machine"), os.uname(),
                           strict=True)),
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
    }  # fmt: skip
    guest = read_toml((folder / PAIR_FILE).read_text()).get("guest", {})
    binary = str(guest.get("qemu") or "qemu-system-x86_64")
    try:
        done = subprocess.run(
            [binary, "--version"],
            capture_output=True,
            text=True,
            timeout=5 * DEADLINE_S,
            check=False,
        )
        found["qemu"] = {"binary": binary, "says": (done.stdout or done.stderr).strip()}
    except (OSError, subprocess.TimeoutExpired) as error:
        found["qemu"] = {"binary": binary, "says": f"nothing: {error}"}
    return found


def _pids(parts: Parts, folder: Path, view: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the QEMU of each node; without a supervisor's status, those that it left."""
    if view is not None:
        with contextlib.suppress(ValueError):  # a supervisor of another version
            nodes = PairView.from_json(view).nodes.values()
            return {node.name: node.pid for node in nodes if node.pid}
    try:
        return {one.node: one.identity.pid for one in leftovers.find(folder, dial=False)}
    except ColoctlError as error:
        parts.lack("QEMUs that the supervisor left", error.message)
        return {one.node: one.identity.pid for one in leftovers.find_strays(folder)}


def _collect_process(parts: Parts, node: str, pid: int | None) -> None:
    if pid is None:
        parts.lack(f"{node}/process.json", f"node {node} has no QEMU")
        return

    def read() -> object:
        found = _process(Path(f"/proc/{pid}"))
        parts.learn(found["argv"])
        return found

    parts.attempt(f"{node}/process.json", read)


def _process(entry: Path) -> dict[str, Any]:
    """Read the command line, and the kernel's state of each thread: a frozen one shows here."""
    argv = [word.decode(errors="replace") for word in (entry / "cmdline").read_bytes().split(b"\0")]
    threads = []
    for thread in sorted((entry / "task").iterdir(), key=lambda one: int(one.name)):
        state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
        name = (thread / "comm").read_text().strip()
        threads.append({"thread": int(thread.name), "name": name, "state": state})
    return {"pid": int(entry.name), "argv": argv[:-1], "threads": threads}


def _collect_node(parts: Parts, node: str, client: ControlClient | None, why_not: str) -> None:
    """Add the answers of a node's QEMU, and the last messages with it.

    A QEMU that was silent once is asked no further.
    """
    name = f"{node}/flight.jsonl"
    if client is None:
        parts.lack(name, why_not)
        parts.lack(f"{node}/qmp.json", why_not)
        return
    try:
        lines = client.execute("query-recording", DEADLINE_S, node=node)
        parts.text(name, "".join(f"{json.dumps(line)}\n" for line in lines))
    except ColoctlError as error:
        parts.lack(name, error.message)
    answers: dict[str, Any] = {}
    try:
        for question, answer in _answers(client, node):
            answers[question] = answer
    except (ColoctlError, KeyError, TypeError) as error:
        said = error.message if isinstance(error, ColoctlError) else f"half an answer: {error}"
        parts.lack(f"{node}/qmp.json, after {len(answers)} answers", said)
    parts.document(f"{node}/qmp.json", answers)


def _answers(client: ControlClient, node: str) -> Iterator[tuple[str, Any]]:
    """Ask QEMU each question, with its answer; raises what the first question without one raises.

    The first goes out of band, so that it is answered also when the main loop hangs.
    """

    def ask(execute: str, *, oob: bool = False, **arguments: Any) -> Any:
        try:
            return client.execute(
                "node-qmp", 2 * DEADLINE_S, node=node, execute=execute,
                arguments=arguments or None, oob=oob or None, timeout_s=DEADLINE_S,
            )  # fmt: skip
        except CommandRefused as error:
            return {"refused": error.message}

    yield "query-yank", ask("query-yank", oob=True)
    for question in QUESTIONS:
        yield question, ask(question)
    listed = ask("qom-list", path="/objects")
    yield "qom-list /objects", listed
    for one in listed:
        kind = one["type"].removeprefix("child<")
        if kind.startswith(OBJECTS):
            path = f"/objects/{one['name']}"
            properties = ask("qom-list", path=path)
            yield (
                path,
                {
                    each["name"]: ask("qom-get", path=path, property=each["name"])
                    for each in properties
                    if not each["type"].startswith(("child<", "link<"))
                },
            )


def pack(parts: Parts, file: Path, pair: str) -> dict[str, Any]:
    """Write the archive ``file``, complete or not at all, readable by its owner alone.

    Returns its manifest.
    """
    now = time.time()
    top = file.name.removesuffix(".gz").removesuffix(".tar") or pair
    manifest = {
        "schema": plain.SCHEMA,
        "name": pair,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "coloctl": __version__,
        "files": {name: len(data) for name, data in sorted(parts.files.items())},
        "missing": parts.missing,
    }
    content = {
        "MANIFEST.json": (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode(),
        **dict(sorted(parts.files.items())),
    }
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with (
            os.fdopen(fd, "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=now) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            for name, data in content.items():
                member = tarfile.TarInfo(f"{top}/{name}")
                member.size, member.mode, member.mtime = len(data), 0o600, int(now)
                archive.addfile(member, io.BytesIO(data))
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
    return manifest
