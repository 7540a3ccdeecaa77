"""A real pair watched through the command alone: the stream, the reasons, the pause, the bundle."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli_pair import NAME, PATIENCE_S, Operator, build, operator

pytestmark = pytest.mark.qemu

__all__ = ["build", "operator"]

#: Unlike any word of a command line, a log or a guest.
SECRET = "zq9-hunter2-7k"


@contextlib.contextmanager
def following(operator: Operator, file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The pair's events go into ``file`` inside the block, from a dump that is complete."""
    with file.open("wb") as out:
        process = subprocess.Popen(
            operator.argv("events", NAME, "--follow", "-f", "json"),
            stdout=out,
            stderr=subprocess.PIPE,
        )
    try:
        operator.until(lambda: "end-of-dump" in file.read_text())
        yield process
    finally:
        process.kill()
        process.communicate()


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def asked(operator: Operator, *words: str, code: int = 0) -> Any:
    return json.loads(operator.type(*words, "-f", "json", code=code).stdout)


def test_events_through_a_failover_that_waited_for_its_operator(
    operator: Operator, tmp_path: Path
) -> None:
    operator.start()
    file = tmp_path / "events.jsonl"
    with following(operator, file) as stream:
        assert "is paused" in operator.type("pause", NAME).stdout
        assert "already paused" in operator.type("pause", NAME).stdout
        assert "paused" in operator.type("status", NAME).stdout.splitlines()[0]

        os.kill(operator.node("primary")["pid"], signal.SIGKILL)
        operator.until(lambda: operator.view()["waiting"])
        why = asked(operator, "explain", NAME)
        assert (why["diagnosis"]["name"], why["decision"]["action"]) == ("primary-dead", "wait")
        assert "paused" in operator.type("explain", NAME).stdout
        assert operator.view()["protection"] == "failover"
        assert asked(operator, "history", NAME)["failovers"] == []

        operator.type("resume", NAME)
        operator.until(lambda: operator.view()["protection"] == "unprotected")
        operator.until(lambda: '"FAILED_OVER"' in file.read_text())
        stream.send_signal(signal.SIGINT)
        _, said = stream.communicate(timeout=PATIENCE_S)
        assert (stream.returncode, said) == (0, b"")

    told = lines(file)
    end = next(i for i, line in enumerate(told) if "end-of-dump" in line)
    assert [(line["exists"], line.get("name")) for line in told[: end - 2]] == [
        ("pair", NAME),
        ("node", "a"),
        ("node", "b"),
    ]
    assert [line["exists"] for line in told[end - 2 : end]] == ["checkpoints", "diagnosis"]
    stream_of = told[end + 1 :]
    first = told[end]["seq"] + 1
    assert [line["seq"] for line in stream_of] == list(range(first, first + len(stream_of)))
    assert {line["data"]["node"] for line in stream_of if line["event"] == "NODE_EVENT"} == {
        "a",
        "b",
    }

    marks = [mark(line) for line in stream_of]
    wanted = [
        "paused True", "NODE_DEAD a", "-> failover", "paused False", "fenced", "running",
        "-> unprotected", "FAILED_OVER",
    ]  # fmt: skip
    assert [one for one in marks if one in wanted] == wanted

    (past,) = asked(operator, "history", NAME)["failovers"]
    assert (past["generation"], past["cause"], past["survivor"]) == (1, "primary-dead", "b")
    assert past["steps"]["fenced"] <= past["steps"]["running"]
    assert " a -> b " in operator.type("history", NAME, "-e").stdout
    (fence,) = asked(operator, "fence", "history", NAME)["fences"]
    assert (fence["node"], fence["fenced"]) == ("a", True)


def mark(line: dict[str, Any]) -> str:
    """An event as a word, where the order matters."""
    data = line["data"]
    words = {
        "PAUSE_CHANGED": lambda: f"paused {data['paused']}",
        "NODE_DEAD": lambda: f"NODE_DEAD {data['node']}",
        "STATE_CHANGED": lambda: f"-> {data['after']}",
        "STEP": lambda: str(data["step"]),
    }
    return words.get(line["event"], lambda: str(line["event"]))()


def contents(file: Path) -> dict[str, str]:
    """The files of a bundle, without the folder that they lie in."""
    with tarfile.open(file) as archive:
        found = {}
        for one in archive.getmembers():
            data = archive.extractfile(one)
            assert data is not None
            found[one.name.partition("/")[2]] = data.read().decode()
    return found


def missing(bundle: dict[str, str]) -> set[str]:
    return {one["name"] for one in json.loads(bundle["MANIFEST.json"])["missing"]}


def test_a_person_fences_a_frozen_node_and_bundles_tell_of_it(
    operator: Operator, tmp_path: Path
) -> None:
    text = operator.file.read_text()
    secret = f'extra_args = ["-object", "secret,id=sec0,data={SECRET}"]'
    text = text.replace('accel = "tcg"\n', f'accel = "tcg"\n{secret}\n')
    operator.file.write_text(f'{text}[fencing]\nmethod = "manual"\n')
    operator.start()
    file = tmp_path / "whole.tar.gz"
    # On a busy machine an answer may come after the deadline.
    operator.until(lambda: not missing(bundled(operator, file)))
    whole = contents(file)
    qmp = json.loads(whole["b/qmp.json"])
    assert {"query-named-block-nodes", "x-debug-query-block-graph", "query-yank"} <= set(qmp)
    assert "/objects/sec0" not in qmp
    flight = [json.loads(line) for line in whole["a/flight.jsonl"].splitlines()]
    assert any(line.get("message", {}).get("execute") == "migrate" for line in flight)
    assert json.loads(whole["a/process.json"])["argv"]

    frozen = operator.node("primary")["pid"]
    os.kill(frozen, signal.SIGSTOP)
    operator.until(lambda: operator.view()["nodes"][0]["fencing"] == "required")
    assert "`coloctl fence confirm web a`" in operator.type("status", NAME, code=3).stdout
    assert operator.type("fence", "confirm", NAME, "a", code=2).stdout == ""
    half = bundled(operator, tmp_path / "half.tar.gz")
    assert "a/qmp.json, after 0 answers" in missing(half)
    assert json.loads(half["a/process.json"])["threads"][0]["state"] == "T"

    operator.type("fence", "confirm", NAME, "a", "--yes")
    operator.until(lambda: operator.view()["protection"] == "unprotected")
    (fence,) = asked(operator, "fence", "history", NAME)["fences"]
    assert (fence["node"], fence["method"], fence["fenced"]) == ("a", "manual", True)
    assert not Path(f"/proc/{frozen}").exists()

    supervisor = operator.view()["supervisor_pid"]
    os.kill(supervisor, signal.SIGTERM)
    operator.until(lambda: not Path(f"/proc/{supervisor}").exists())
    left = bundled(operator, tmp_path / "left.tar.gz")
    assert {"status.json", "a/flight.jsonl", "b/qmp.json"} <= missing(left)
    assert json.loads(left["b/process.json"])["argv"]
    assert asked(operator, "history", NAME)["failovers"][0]["survivor"] == "b"
    for bundle in (whole, half, left):
        assert SECRET not in "".join(bundle.values())
        assert "[redacted]" in bundle["pair.json"]


def bundled(operator: Operator, file: Path) -> dict[str, str]:
    manifest = asked(operator, "bundle", NAME, "-o", str(file))
    assert manifest["file"] == str(file)
    assert file.stat().st_mode & 0o777 == 0o600
    return contents(file)
