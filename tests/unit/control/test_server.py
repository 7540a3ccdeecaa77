"""What the control socket promises to its clients, and what no client can do to the others."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.asked import given

from coloctl.control import connection, listener, schema, server
from coloctl.control.client import ControlClient, ControlEvent
from coloctl.control.commands import COMMANDS, ControlCommand
from coloctl.control.listener import listen
from coloctl.control.server import ControlServer, Handler
from coloctl.errors import (
    ColoctlError,
    CommandRefused,
    DeadlineMissed,
    FencingFailed,
    NoSuchPair,
    OutcomeUnknown,
    PairBusy,
    PreconditionFailed,
    Unreachable,
    UsageError,
)
from coloctl.model.pairevent import NodeEvent, StepReached

pytestmark = pytest.mark.unit

STEP = StepReached(act="protect", step="fenced", at_ms=1.5)
BIG = StepReached(act="protect", step="x" * 20_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    folder.mkdir()
    return folder / "control.sock"


@asynccontextmanager
async def serving(path: Path, handlers: Mapping[str, Handler]) -> AsyncIterator[ControlServer]:
    by_kind = {COMMANDS[name]: handler for name, handler in handlers.items()}
    control = ControlServer(listen(path), by_kind, version="1.2.3")
    task = asyncio.create_task(control.serve())
    try:
        yield control
    finally:
        await control.aclose()
        await task
        path.unlink(missing_ok=True)


def talk(
    path: Path, handlers: Mapping[str, Handler], story: Callable[[ControlServer], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with serving(path, handlers) as control, asyncio.timeout(20):
            await story(control)

    asyncio.run(main())


async def echo(asked: ControlCommand) -> Any:
    return given(asked)


def raising(error: Exception) -> Handler:
    async def handler(asked: ControlCommand) -> Any:
        raise error

    return handler


async def dialogue(path: Path, raw: bytes, lines: int) -> list[dict[str, Any]]:
    """The first ``lines`` messages after the greeting, for raw bytes sent at once."""
    reader, writer = await asyncio.open_unix_connection(path)
    greeting = json.loads(await reader.readline())
    assert greeting["QMP"]["capabilities"] == []
    assert greeting["QMP"]["version"]["qemu"] == {"major": 1, "minor": 2, "micro": 3}
    writer.write(raw)
    got = [json.loads(await reader.readline()) for _ in range(lines)]
    writer.close()
    return got


def test_the_dialogue_is_qmp(path: Path) -> None:
    async def story(control: ControlServer) -> None:
        raw = (
            b'{"execute":"query-version"}'  # before negotiation
            b'{"execute":"qmp_capabilities","id":[1]}{"execute":"qmp_capabilities"}\n\n'
            b'{"execute":"pair-set","arguments":{"settings":{"checkpoint-delay":"}{"}},"id":"x"}'
            b'{"execute":"no-such-thing","id":7}'
            b'{"execute":5} {"execute":"query-pair","arguments":[]} {"exec-oob":"yank"}'
            b'{"execute" "query-pair"}'
        )
        got = await dialogue(path, raw, 9)
        assert got[0]["error"]["class"] == "CommandNotFound"
        assert got[1] == {"return": {}, "id": [1]}
        assert got[2]["error"]["class"] == "CommandNotFound"
        assert got[3] == {"return": {"settings": {"checkpoint-delay": "}{"}}, "id": "x"}
        assert (got[4]["id"], got[4]["error"]["class"]) == (7, "CommandNotFound")
        assert [message["error"]["class"] for message in got[5:]] == ["GenericError"] * 4

    talk(path, {"pair-set": echo}, story)


def test_garbage_is_answered_and_forgotten(path: Path) -> None:
    async def story(control: ControlServer) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        await reader.readline()
        for garbage in (b"hello\n", b'{"execute":"query-version","id":NaN}'):
            writer.write(garbage)
            assert "error" in json.loads(await reader.readline())
        writer.write(b'{"execute":"qmp_capabilities"}\n')
        assert json.loads(await reader.readline()) == {"return": {}}
        writer.close()

    talk(path, {}, story)


def test_an_endless_message_ends_the_connection(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coloctl.control.wire.MESSAGE_MAX", 1000)

    async def story(control: ControlServer) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        await reader.readline()
        writer.write(b'{"execute":"' + b"x" * 2000)
        last = json.loads(await reader.readline())
        assert last["event"] == "CLIENT_DROPPED"
        assert "1000 bytes" in last["data"]["reason"]
        assert await reader.read() == b""
        writer.close()

    talk(path, {}, story)


def test_arguments_are_checked_with_sentences(path: Path) -> None:
    def ask() -> None:
        with ControlClient.connect(path, 5) as client:
            for arguments, words in (
                ({}, "needs the argument settings"),
                ({"settings": {}}, "settings must be an object that is not empty"),
                ({"settings": "checkpoint-delay"}, "settings must be an object"),
                ({"settings": {"checkpoint-delay": [1]}}, "settings.checkpoint-delay must be"),
                ({"setting": {"checkpoint-delay": 1}}, "did you mean settings?"),
            ):
                with pytest.raises(UsageError, match=words) as caught:
                    client.execute("pair-set", 5, **arguments)
                assert caught.value.exit_code == 2
            answer = client.execute("pair-set", 5, settings={"checkpoint-delay": 5})
            assert answer == {"settings": {"checkpoint-delay": 5}}

    talk(path, {"pair-set": echo}, lambda control: asyncio.to_thread(ask))


def test_client_speaks_dashes_and_omits_none(path: Path) -> None:
    def ask() -> None:
        with ControlClient.connect(path, 5) as client:
            assert client.version == "coloctl 1.2.3"
            assert client.execute("pair-stop", 5, timeout_s=2.5, force=None) == {"timeout_s": 2.5}

    talk(path, {"pair-stop": echo}, lambda control: asyncio.to_thread(ask))


@pytest.mark.parametrize(
    "error",
    [
        PairBusy("Another act is under way.", hint="wait for it"),
        FencingFailed("a", "Node a may still run.", hint="coloctl fence confirm"),
        CommandRefused("migrate", "no such thing", error_class="DeviceNotFound"),
    ],
)
def test_errors_survive_the_socket(error: ColoctlError, path: Path) -> None:
    def ask() -> None:
        with ControlClient.connect(path, 5) as client:
            with pytest.raises(type(error)) as caught:
                client.execute("pair-start", 5)
            again = caught.value
            assert (again.message, again.hint) == (error.message, error.hint)
            assert (again.code, again.exit_code) == (error.code, error.exit_code)
            assert vars(again) == vars(error)

    talk(path, {"pair-start": raising(error)}, lambda control: asyncio.to_thread(ask))


def test_a_mistake_in_a_handler_is_an_answer(path: Path) -> None:
    def ask() -> None:
        with ControlClient.connect(path, 5) as client:
            with pytest.raises(ColoctlError, match="KeyError") as caught:
                client.execute("pair-start", 5)
            assert caught.value.exit_code == 1
            with pytest.raises(ColoctlError, match="TypeError"):
                client.execute("query-pair", 5)
            assert client.execute("query-version", 5)["package"] == "coloctl 1.2.3"

    async def not_json(asked: ControlCommand) -> Any:
        return {"path": Path("/")}

    handlers = {"pair-start": raising(KeyError("x")), "query-pair": not_json}
    talk(path, handlers, lambda control: asyncio.to_thread(ask))


async def test_a_long_act_delays_only_its_own_client(path: Path) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def protect(asked: ControlCommand) -> Any:
        begun.set()
        await release.wait()
        return "protected"

    def ask_for_act() -> Any:
        with ControlClient.connect(path, 5) as client:
            return client.execute("pair-start", 10)

    async with serving(path, {"pair-start": protect, "query-pair": echo}):
        with await asyncio.to_thread(ControlClient.connect, path, 5) as other:
            act = asyncio.create_task(asyncio.to_thread(ask_for_act))
            await begun.wait()
            assert await asyncio.to_thread(other.execute, "query-pair", 5) == {}
            assert not act.done()
            release.set()
            assert await act == "protected"


def test_requests_of_one_client_run_in_order(path: Path) -> None:
    order: list[str] = []

    async def slow(asked: ControlCommand) -> Any:
        order.append("slow begins")
        await asyncio.sleep(0.05)
        order.append("slow ends")

    async def quick(asked: ControlCommand) -> Any:
        order.append("quick")

    async def story(control: ControlServer) -> None:
        raw = b'{"execute":"qmp_capabilities"}{"execute":"pair-start"}{"execute":"query-pair"}'
        await dialogue(path, raw, 3)
        assert order == ["slow begins", "slow ends", "quick"]

    talk(path, {"pair-start": slow, "query-pair": quick}, story)


async def test_an_act_outlives_its_client(path: Path) -> None:
    begun, release, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def failover(asked: ControlCommand) -> Any:
        begun.set()
        await release.wait()
        ended.set()

    async with serving(path, {"pair-failover": failover}) as control, asyncio.timeout(60):
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"execute":"qmp_capabilities"}{"execute":"pair-failover"}')
        await begun.wait()
        writer.transport.abort()
        for _ in range(3):
            control.emit(STEP)  # the server notices that nobody listens
            await asyncio.sleep(0.01)
        release.set()
        await ended.wait()


def test_events_reach_every_negotiated_client(path: Path) -> None:
    async def story(control: ControlServer) -> None:
        seen: list[ControlEvent] = []
        first = await asyncio.to_thread(ControlClient.connect, path, 5, seen.append)
        second = await asyncio.to_thread(ControlClient.connect, path, 5)
        silent, silent_writer = await asyncio.open_unix_connection(path)
        await silent.readline()
        control.emit(STEP)
        await asyncio.to_thread(first.execute, "query-version", 5)
        assert [(event.name, event.data) for event in seen] == [("STEP", STEP.to_json())]
        assert seen[0].happened == STEP
        await asyncio.to_thread(second.execute, "query-version", 5)
        control.emit(StepReached(act="protect", step="promoted"))
        got = await asyncio.to_thread(lambda: list(second.events(0.2)))
        assert [event.data["step"] for event in got] == ["fenced", "promoted"]
        assert got[0].at_s > 1.7e9
        first.close()
        second.close()
        silent_writer.write(b'{"execute":"qmp_capabilities"}')
        assert json.loads(await silent.readline()) == {"return": {}}
        silent_writer.close()

    talk(path, {}, story)


def test_a_slow_client_is_dropped_and_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "OUTBOX_MAX", 20)

    async def story(control: ControlServer) -> None:
        slow = socket.socket(socket.AF_UNIX)
        slow.connect(os.fspath(path))
        slow.sendall(b'{"execute":"qmp_capabilities"}')
        await asyncio.sleep(0.05)
        quick = await asyncio.to_thread(ControlClient.connect, path, 5)
        for _ in range(60):
            control.emit(BIG)
            await asyncio.to_thread(quick.execute, "query-version", 5)
        slow.settimeout(5)
        received = await asyncio.to_thread(drain, slow)
        last = json.loads(received.splitlines()[-1])
        assert last["event"] == "CLIENT_DROPPED"
        assert "20 messages" in last["data"]["reason"]
        assert len(list(quick._events)) == 60
        quick.close()
        slow.close()

    def drain(client: socket.socket) -> bytes:
        received = b""
        while data := client.recv(1 << 16):
            received += data
        return received

    talk(path, {}, story)


def test_a_client_that_never_reads_cannot_hold_up_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FLUSH_WAIT_S", 0.1)
    monkeypatch.setattr(server, "FINISH_WAIT_S", 0.1)

    async def story(control: ControlServer) -> None:
        stuck = socket.socket(socket.AF_UNIX)
        stuck.connect(os.fspath(path))
        stuck.sendall(b'{"execute":"qmp_capabilities"}')
        await asyncio.sleep(0.05)
        for _ in range(60):
            control.emit(BIG)
        await asyncio.wait_for(control.aclose(), 60)
        stuck.close()

    talk(path, {}, story)


def test_an_event_that_json_cannot_hold_is_logged_not_raised(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(control: ControlServer) -> None:
        control.emit(NodeEvent(node="a", event="X", data={"path": Path("/")}, timestamp=1.0))

    talk(path, {}, story)
    assert "The event NODE_EVENT cannot be written as JSON" in caplog.text


async def test_the_last_answer_is_delivered_before_the_end(path: Path) -> None:
    stopping = asyncio.Event()

    async def stop(asked: ControlCommand) -> Any:
        stopping.set()
        await asyncio.sleep(0.05)
        return "stopped"

    def ask() -> Any:
        with ControlClient.connect(path, 5) as client:
            answer = client.execute("pair-stop", 5)
            with pytest.raises(Unreachable):
                list(client.events(5))
            return answer

    async with serving(path, {"pair-stop": stop}) as control:
        asking = asyncio.create_task(asyncio.to_thread(ask))
        await stopping.wait()
        await control.aclose()
        assert await asking == "stopped"


async def test_an_endless_request_is_cut_off_at_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FLUSH_WAIT_S", 0.1)
    monkeypatch.setattr(server, "FINISH_WAIT_S", 0.1)

    begun = asyncio.Event()

    async def endless(asked: ControlCommand) -> Any:
        begun.set()
        await asyncio.Event().wait()

    def ask() -> None:
        with ControlClient.connect(path, 5) as client, pytest.raises(OutcomeUnknown):
            client.execute("pair-start", 10)

    async with serving(path, {"pair-start": endless}) as control:
        asking = asyncio.create_task(asyncio.to_thread(ask))
        await begun.wait()
        await control.aclose()
        await asking


async def test_an_act_that_another_request_cancels_is_answered(path: Path) -> None:
    acts: list[asyncio.Task[Any]] = []
    begun = asyncio.Event()

    async def start(asked: ControlCommand) -> Any:
        task = asyncio.current_task()
        assert task is not None
        acts.append(task)
        begun.set()
        await asyncio.Event().wait()

    async def stop(asked: ControlCommand) -> Any:
        acts[0].cancel()

    def ask() -> None:
        with ControlClient.connect(path, 5) as client:
            with pytest.raises(ColoctlError, match="pair-start was interrupted"):
                client.execute("pair-start", 10)
            assert client.execute("query-version", 5)

    async with serving(path, {"pair-start": start, "pair-stop": stop}):
        asking = asyncio.create_task(asyncio.to_thread(ask))
        await begun.wait()
        raw = b'{"execute":"qmp_capabilities"}{"execute":"pair-stop"}'
        assert (await dialogue(path, raw, 2))[1] == {"return": None}
        await asking


def test_deadline_of_the_client(path: Path) -> None:
    async def slow(asked: ControlCommand) -> Any:
        await asyncio.sleep(0.3)
        return "late"

    def ask() -> None:
        with ControlClient.connect(path, 5) as client:
            with pytest.raises(DeadlineMissed) as caught:
                client.execute("pair-start", 0.05)
            assert caught.value.exit_code == 6
            # the late answer is not taken for the next command's
            assert client.execute("query-version", 5)["package"] == "coloctl 1.2.3"

    talk(path, {"pair-start": slow}, lambda control: asyncio.to_thread(ask))


def test_who_can_only_read_the_folder_keeps_nobody_from_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any user can lock a folder that it may open, and every start would wait for ever."""
    monkeypatch.setattr(listener, "LOCK_WAIT_S", 0.05)
    path.parent.chmod(0o755)
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        listen(path).close()
        lock = path.parent / listener.LOCK_NAME
        assert lock.stat().st_mode & 0o777 == 0o600
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(PreconditionFailed, match="has held the lock") as refused:
                listen(path)
        assert refused.value.hint and str(lock) in refused.value.hint
    finally:
        os.close(fd)


def idle(path: Path, count: int) -> list[socket.socket]:
    """Clients that connect, read what comes, and never say anything."""
    made = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(count)]
    for one in made:
        one.settimeout(5)
        one.connect(str(path))
        assert b"QMP" in one.recv(4096)
    return made


def test_idle_clients_lock_nobody_out(path: Path) -> None:
    """As many as there is room for, twice over, and a verb still gets in and is answered."""

    def ask() -> None:
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(one) for one in idle(path, 2 * server.CLIENTS_MAX)]
            with ControlClient.connect(path, 5) as client:
                assert client.execute("query-version", 5)["package"] == "coloctl 1.2.3"
                assert b"CLIENT_DROPPED" in crowd[0].recv(4096)
                assert crowd[0].recv(4096) == b""
                for one in idle(path, server.CLIENTS_MAX):  # who greeted stays
                    stack.enter_context(one)
                assert client.execute("query-version", 5)["package"] == "coloctl 1.2.3"

    talk(path, {}, lambda control: asyncio.to_thread(ask))


def test_who_asks_for_something_stays_longer_than_who_listens(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLIENTS_MAX", 2)
    asked, may_end = asyncio.Event(), asyncio.Event()

    async def act(_: ControlCommand) -> Any:
        asked.set()
        await may_end.wait()
        return {"done": True}

    def listen_only() -> str:
        with ControlClient.connect(path, 5) as older, ControlClient.connect(path, 5) as newer:
            assert newer.execute("query-version", 5)
            with pytest.raises(Unreachable):
                older.execute("query-version", 5)
        return "the older listener made room"

    def stop() -> Any:
        with ControlClient.connect(path, 5) as client:
            return client.execute("pair-stop", 10)

    async def story(control: ControlServer) -> None:
        stopping = asyncio.ensure_future(asyncio.to_thread(stop))
        await asked.wait()
        await asyncio.to_thread(listen_only)
        may_end.set()
        assert await stopping == {"done": True}

    talk(path, {"pair-stop": act}, story)


def test_no_socket_no_pair(path: Path) -> None:
    with pytest.raises(NoSuchPair, match="web") as caught:
        ControlClient.connect(path, 1)
    assert caught.value.exit_code == 4


def test_supervisor_gone(path: Path) -> None:
    listen(path).close()
    with pytest.raises(Unreachable, match="gone") as caught:
        ControlClient.connect(path, 1)
    assert "stop web --force" in (caught.value.hint or "")


def test_supervisor_frozen(path: Path) -> None:
    with listen(path), pytest.raises(DeadlineMissed, match="did not greet"):
        ControlClient.connect(path, 0.05)


async def test_something_else_answers(path: Path) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp ready\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(greet, sock=listen(path)):
        with pytest.raises(Unreachable, match="does not speak QMP"):
            await asyncio.to_thread(ControlClient.connect, path, 5)


def test_listen_is_private_and_exclusive(path: Path) -> None:
    first = listen(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(PairBusy):
        listen(path)
    first.close()
    listen(path).close()  # a stale one is replaced
    with pytest.raises(PreconditionFailed):
        listen(path.parent / "missing" / "control.sock")
    with pytest.raises(PreconditionFailed, match="can have 107"):
        listen(path.parent / ("x" * 110))


async def test_closing_a_server_that_never_served(path: Path) -> None:
    async def main() -> None:
        await ControlServer(listen(path), {}, version="1").aclose()

    await asyncio.wait_for(main(), 60)


QMP_SHELL = Path(sys.executable).with_name("qmp-shell")


def test_qmp_shell_works_on_it(path: Path, tmp_path: Path) -> None:
    assert QMP_SHELL.exists() or shutil.which("qmp-shell"), "qemu.qmp installs qmp-shell"
    typed = (
        "query-version\n"
        "pair-set name=checkpoint-delay value=500\n"
        "node-qmp node=a execute=query-status arguments={'x':true}\n"
        "pair-failover to=c\n"
        "no-such-command\n"
        "\n"
    )

    def shell() -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HOME": os.fspath(tmp_path)}
        return subprocess.run(
            [QMP_SHELL, os.fspath(path)],
            input=typed,
            capture_output=True,
            text=True,
            timeout=30,
            env=environment,
            check=False,
        )

    async def story(control: ControlServer) -> None:
        async def set_and_tell(asked: ControlCommand) -> Any:
            control.emit(STEP)
            return await echo(asked)

        control._handlers["pair-set"] = set_and_tell
        done = await asyncio.to_thread(shell)
        assert done.returncode == 0, done.stderr
        assert "Connected to QEMU 1.2.3" in done.stdout
        assert '"package": "coloctl 1.2.3"' in done.stdout
        assert '{"settings": {"checkpoint-delay": 500}}' in done.stdout
        assert '{"node": "a", "execute": "query-status", "arguments": {"x": true}}' in done.stdout
        assert "to must be a or b, not c." in done.stdout
        assert "CommandNotFound" in done.stdout
        assert "'event': 'STEP'" in done.stdout

    talk(path, {"node-qmp": echo, "pair-failover": echo}, story)


def test_query_commands_are_those_of_the_schema(path: Path) -> None:
    def ask() -> None:
        with ControlClient.connect(path, 5) as client:
            names = {entry["name"] for entry in client.execute("query-commands", 5)}
            assert names - {"qmp_capabilities"} == set(COMMANDS)
            assert client.execute("query-schema", 5) == schema.document()

    own = {"query-commands", "query-schema", "query-version"}
    handlers = {name: echo for name in COMMANDS if name not in own}
    talk(path, handlers, lambda control: asyncio.to_thread(ask))
