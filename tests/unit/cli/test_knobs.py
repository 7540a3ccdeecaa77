"""set, checkpoint, pause and resume: from what is typed to a real state and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fakes import in_colo

from coloctl import paths
from coloctl.cli.verbs import run_verb
from coloctl.control.client import ControlClient
from coloctl.control.listener import listen
from coloctl.control.server import ControlServer
from coloctl.control.service import Service
from coloctl.supervisor.loop import Supervisor

pytestmark = pytest.mark.unit

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def operate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Callable[[Typed], None]], None]:
    """Calls a function with what types verbs, beside a supervisor of a pair in COLO."""
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path))

    def typed(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_verb([arguments[0], "web", *arguments[1:]])
        return code, *capsys.readouterr()

    async def serve(do: Callable[[Typed], None]) -> None:
        folder = paths.pair_dir("web")
        paths.make_private(folder)
        async with in_colo(folder) as (state, a, _):
            a.takes_checkpoints()
            service = Service(state, Supervisor(state))
            socket = listen(paths.control_socket("web"))
            control = ControlServer(socket, service.handlers(), version="1.2.3")
            serving = asyncio.create_task(control.serve())
            try:
                await asyncio.to_thread(do, typed)
            finally:
                await control.aclose()
                await serving

    return lambda do: asyncio.run(asyncio.wait_for(serve(do), 60))


def test_what_is_set_is_answered_in_sentences_and_as_a_document(
    operate: Callable[[Callable[[Typed], None]], None],
) -> None:
    def do(typed: Typed) -> None:
        assert typed("set", "compare-timeout=500ms", "checkpoint-mode=adaptive") == (
            0,
            "compare-timeout of web is 500 ms, it was 300 ms.\n"
            "checkpoint-mode of web is adaptive, it was fixed.\n",
            "",
        )
        assert json.loads(typed("set", "mirror-rate=1MiB", "-f", "json")[1]) == {
            "schema": 2,
            "name": "web",
            "changed": [{"name": "mirror-rate", "before": 0, "after": 1 << 20}],
        }

    operate(do)


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("given", "sentence", "hint"),
    [
        ("checkpoint-delay=soon",
         "checkpoint-delay must be a whole number of milliseconds from 1 to 600000, not 'soon'.",
         "write checkpoint-delay=500"),
        ("compare-timeout=",
         "compare-timeout must be a whole number of milliseconds from 1 to 60000, not ''.",
         "write compare-timeout=300"),
        ("speed=1", "'speed' is no setting that can be changed.", "these can: checkpoint-delay, "),
        ("mirror-rate=50MB",
         "mirror-rate must be bytes per second with a unit (KiB, MiB, GiB, TiB), or 0, not "
         "'50MB'.",
         "write mirror-rate=50MiB"),
        ("checkpoint-mode=fast", "checkpoint-mode must be fixed or adaptive, not 'fast'.",
         "write checkpoint-mode=adaptive"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_an_error_of_usage_and_none_is_set(
    operate: Callable[[Callable[[Typed], None]], None],
    given: str,
    sentence: str,
    hint: str,
    options: tuple[str, ...],
) -> None:
    def do(typed: Typed) -> None:
        code, out, err = typed("set", "max-queue-size=5", given, *options)
        assert (code, out) == (2, "")
        first, second = err.splitlines()
        assert first == f"error: {sentence}" and second.startswith(f"hint: {hint}")
        settings = json.loads(typed("status", "-f", "json")[1])["settings"]
        assert settings["max-queue-size"] == {"value": 1024, "pair_file": 1024}

    operate(do)


def test_a_checkpoint_and_a_pause_are_answered(
    operate: Callable[[Callable[[Typed], None]], None],
) -> None:
    def do(typed: Typed) -> None:
        assert typed("pause")[1] == (
            "web is paused: it fails over only by `coloctl failover web`.\n"
        )
        assert typed("pause")[1].startswith("web is already paused: ")
        assert json.loads(typed("resume", "-f", "json")[1]) == {
            "schema": 1, "name": "web", "paused": False, "before": True,
        }  # fmt: skip
        taken = json.loads(typed("checkpoint", "-f", "json")[1])
        assert taken.keys() == {"schema", "name", "count", "pause_ms"}
        assert typed("checkpoint")[1].startswith("Checkpoint ")

    operate(do)


def test_settings_of_an_earlier_client_hold_and_are_answered_as_it_reads_them(
    operate: Callable[[Callable[[Typed], None]], None],
) -> None:
    def do(typed: Typed) -> None:
        with ControlClient.connect(paths.control_socket("web"), 5) as client:
            more = {"max-queue-size": 5}
            answer = client.execute("pair-set", 5, name="compare-timeout", value=50, more=more)
        first = {"name": "compare-timeout", "before": 300, "after": 50}
        second = {"name": "max-queue-size", "before": 1024, "after": 5}
        assert answer == {**first, "changed": [first, second]}

    operate(do)
