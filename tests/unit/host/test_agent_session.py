"""The agent as a real process: what it does for a client, and what it leaves when that is gone."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.agents import AGENT, HELLO, Client, agent_client, agent_process, connected

from coloctl.errors import DeadlineMissed, HostOutOfReach, PreconditionFailed, Unreachable
from coloctl.host.agent.handles import ProcessHandle
from coloctl.host.beacon import new_key
from coloctl.host.wire.frames import receive_hello, send_hello
from coloctl.model.launch import Launch
from coloctl.model.wires import Endpoint
from coloctl.procfs import read_stat

pytestmark = pytest.mark.unit

SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(1000)")
#: Greets at each connection, then answers each line with its length and the descriptors in it.
MONITOR = """
import array, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    sock = listener.accept()[0]
    sock.sendall(b"hello\\n")
    while True:
        data, notes, _, _ = sock.recvmsg(65536, 64)
        if not data:
            break
        numbers = array.array("i")
        for _, _, raw in notes:
            numbers.frombytes(raw)
        for number in numbers:
            with socket.socket(fileno=number) as passed:
                passed.sendall(b"from the monitor")
        sock.sendall(b"%d %d\\n" % (len(data), len(numbers)))
    sock.close()
"""


def runs(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state != "Z"


async def gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while runs(pid):  # noqa: ASYNC110  # another process's child has no event here
            await asyncio.sleep(0.01)


async def launched(client: Client, folder: Path, argv: tuple[str, ...] = SLEEPER) -> ProcessHandle:
    handle = await client.ask("launch", program=Launch(argv), stderr=folder / "log", node="b")
    assert isinstance(handle, ProcessHandle)
    return handle


async def test_hello_shows_the_machine_and_a_session() -> None:
    async with agent_client() as client:
        assert client.hello["machine"]["boot_id"]
        assert client.hello["machine"]["euid"] == os.geteuid()
        assert len(client.hello["session"]) == 32
        assert client.hello["resumed"] is False


async def test_a_death_is_pushed_and_its_life_is_in_the_beats(tmp_path: Path) -> None:
    async with agent_client() as client:
        handle = await launched(client, tmp_path)
        assert handle.argv == SLEEPER and handle.leader == handle.identity
        await client.row("p", handle.hold, lambda row: row[1] == "alive" and row[2] is not None)
        os.kill(handle.identity.pid, signal.SIGSTOP)
        await client.row("p", handle.hold, lambda row: row[1] == "stopped")
        before_s = time.monotonic()
        os.kill(handle.identity.pid, signal.SIGKILL)
        death = await client.pushed("death", handle.hold)
        assert death["pid"] == handle.identity.pid and death["exit_code"] == -signal.SIGKILL
        assert before_s <= death["at_s"] <= time.monotonic()
        await client.row("p", handle.hold, lambda row: row[1] == "dead")


async def test_a_held_program_is_ended_with_a_proof(tmp_path: Path) -> None:
    async with agent_client() as client:
        handle = await launched(client, tmp_path)
        proof = await client.ask("end", hold=handle.hold, gently=True, deadline_s=10.0)
        assert (proof.pid, proof.how) == (handle.identity.pid, "sigterm")
        proof = await client.ask("end", hold=handle.hold, gently=False, deadline_s=10.0)
        assert proof.how == "already-dead"
        adopted = await client.ask(
            "adopt", identity=handle.identity, node="b", leader=None, sockets=()
        )
        assert adopted is None


async def test_a_program_outlives_its_agent_and_the_next_one_adopts_it(tmp_path: Path) -> None:
    async with agent_client() as client:
        handle = await launched(client, tmp_path)
    assert runs(handle.identity.pid)
    async with agent_client() as client:
        adopted = await client.ask(
            "adopt", identity=handle.identity, node="b", leader=handle.leader, sockets=()
        )
        assert adopted.identity == handle.identity
        await client.ask("end", hold=adopted.hold, gently=False, deadline_s=10.0)
        assert not runs(handle.identity.pid)


async def test_what_runs_for_the_client_ends_with_the_session(tmp_path: Path) -> None:
    """`run` and `converse` are for their caller alone; a folder of the client goes too."""
    note = tmp_path / "pid"
    write = f"import os; open({str(note)!r}, 'w').write(str(os.getpid()))"
    argv = (sys.executable, "-S", "-c", f"{write}; import time; time.sleep(1000)")
    async with agent_client() as client:
        folder = (await client.ask("workspace", prefix="probe-")).path
        (folder / "draft").write_text("")
        running = asyncio.create_task(client.ask("run", argv=argv, deadline_s=100.0, stdin=b""))
        talking = await client.ask("converse", argv=("cat",))
        async with asyncio.timeout(20):
            while not (note.exists() and note.read_text()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert runs(int(note.read_text())) and talking.stream % 2 == 0
    with pytest.raises(HostOutOfReach):
        await running
    await gone(int(note.read_text()))
    assert not folder.exists()


async def test_a_cancelled_request_is_cancelled_there(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    argv = ("sh", "-c", f"echo $$ > {note}; sleep 1000")
    async with agent_client() as client:
        running = asyncio.create_task(client.ask("run", argv=argv, deadline_s=100.0, stdin=b""))
        async with asyncio.timeout(20):
            while not (note.exists() and note.read_text()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await gone(int(note.read_text()))
        with pytest.raises(DeadlineMissed, match=r"did not end within 0\.1 s"):
            await client.ask("run", argv=("sleep", "1000"), deadline_s=0.1, stdin=b"")
        done = await client.ask("run", argv=("cat",), deadline_s=10.0, stdin=b"as it is")
        assert (done.code, done.stdout) == (0, "as it is")


async def test_a_conversation_goes_both_ways_and_its_end_is_pushed() -> None:
    argv = ("sh", "-c", "read line; echo you sent $line; echo a complaint >&2")
    async with agent_client() as client:
        handle = await client.ask("converse", argv=argv)
        lines = client.mux.stream(handle.stream)
        await lines.write(b"this\n")
        assert (await lines.read()).data == b"you sent this\n"
        assert (await client.pushed("over", handle.hold))["words"] == "a complaint\n"
        assert (await lines.read()).data == b""


async def test_a_monitor_is_relayed_with_its_process_and_a_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "qmp.sock"
    program = Launch((sys.executable, "-S", "-c", MONITOR, "{fd:qmp}"), {"qmp": path})
    async with agent_client() as client:
        with pytest.raises(Unreachable, match="No process answers"):
            await client.ask("monitor", path=path, deadline_s=5.0)
        handle = await client.ask("launch", program=program, stderr=tmp_path / "log", node="b")
        number = await client.ask("monitor", path=path, deadline_s=5.0)
        monitor = client.mux.stream(number)
        assert await client.ask("speaker", stream=number, deadline_s=20.0) == handle.identity
        assert (await monitor.read()).data == b"hello\n"
        settled = await client.ask("answers", hold=handle.hold, speaker=handle.identity, files=())
        assert settled == handle
        one, two = await client.ask("unix_channels")
        await monitor.write(b"x" * 1000 + b"\n", hold=one.hold)
        seen = b""
        while seen.count(b"\n") < 1 or not seen.endswith(b" 1\n"):
            seen += (await monitor.read()).data
        received = await client.ask("receive", hold=two.hold, length=16, deadline_s=10.0)
        assert received == b"from the monitor"
        monitor.end()
        assert (await monitor.read()).data == b""
        await client.ask("end", hold=handle.hold, gently=False, deadline_s=10.0)


async def test_channels_are_connected_and_released() -> None:
    async with agent_client() as client:
        listener = await client.ask("listen", at=Endpoint("127.0.0.1", 0))
        assert listener.at.port
        with pytest.raises(PreconditionFailed, match="in use"):
            await client.ask("listen", at=listener.at)
        one = await client.ask("connect", to=listener.at, nodelay=True, deadline_s=5.0)
        two = await client.ask(
            "accept", hold=listener.hold, peer=one.local, nodelay=True, deadline_s=5.0
        )
        await client.ask("send", hold=one.hold, data=b"?", deadline_s=5.0)
        assert await client.ask("receive", hold=two.hold, length=1, deadline_s=5.0) == b"?"
        client.mux.push("release", {"hold": listener.hold})
        client.mux.push("release", {"hold": one.hold})
        assert await client.ask("receive", hold=two.hold, length=1, deadline_s=5.0) == b""
        with pytest.raises(PreconditionFailed, match="holds no LocalChannel of number"):
            await client.ask("send", hold=one.hold, data=b"?", deadline_s=5.0)


async def test_beacons_are_beaten_without_their_client() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        ends = [Endpoint(*sock.getsockname()) for sock in (one, two)]
    key = new_key()
    async with agent_client() as client:
        here = await client.ask("beacon", at=ends[0], peer=ends[1], key=key, beat_ms=10)
        there = await client.ask("beacon", at=ends[1], peer=ends[0], key=key, beat_ms=10)
        for mine, theirs in ((here, there), (there, here)):
            session = base64.b64encode(theirs.session).decode()
            client.mux.push("meet", {"hold": mine.hold, "session": session})
        row = await client.row("l", here.hold, lambda row: row[1] >= 10)
        assert row[4] is not None
        client.mux.push("release", {"hold": there.hold})
        await client.until(lambda: [row[0] for row in client.beat["l"]] == [here.hold])


async def test_the_rest_of_the_client_s_clock_is_echoed() -> None:
    async with agent_client() as client:
        await client.until(lambda: client.beat)
        client.mux.beat({"t": 12.5})
        await client.until(lambda: client.beat["echo"] == 12.5)
        assert client.beat["held"] >= 0
        assert abs(client.beat["t"] - time.monotonic()) < 60


@pytest.mark.parametrize("change", [{"proto": 0}, {"version": "0.0.1"}])
async def test_a_client_of_another_version_gets_one_sentence(change: dict[str, object]) -> None:
    async with agent_process() as (process, sock):
        reader, writer = await asyncio.open_unix_connection(sock=sock.dup())
        await reader.readline()
        await send_hello(writer, {**HELLO, **change})
        error = (await receive_hello(reader, 60))["error"]
        assert "The agent is coloctl" in error["desc"] and error["class"] == "precondition"
        assert await reader.read() == b""
        writer.transport.abort()
        assert await asyncio.to_thread(process.wait, 20) == 0


async def test_what_is_no_client_ends_the_agent_with_one_sentence() -> None:
    async with agent_process() as (process, sock):
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        out, err = await asyncio.to_thread(process.communicate, timeout=20)
        assert process.returncode == 1
        assert err.decode().startswith("coloctl agent: No coloctl is at the other end.")
        assert b"Traceback" not in err and out is None


async def test_a_signal_ends_the_agent_and_not_what_it_launched(tmp_path: Path) -> None:
    async with agent_process() as (process, sock), connected(sock) as client:
        handle = await launched(client, tmp_path)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0
        assert runs(handle.identity.pid)
        os.kill(handle.identity.pid, signal.SIGKILL)
        await gone(handle.identity.pid)


def test_an_agent_over_two_pipes_and_one_over_no_connection() -> None:
    done = subprocess.run(
        AGENT, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert done.returncode == 2
    assert b"Standard input of the agent is no connection." in done.stderr
    done = subprocess.run(AGENT, check=False, input=b"", capture_output=True)
    assert done.stdout.startswith(b"COLOCTL-AGENT ")
    assert done.returncode == 1 and b"hung up before it sent anything" in done.stderr


async def test_an_operation_that_is_unknown_or_misses_an_argument_is_refused() -> None:
    async with agent_client() as client:
        with pytest.raises(PreconditionFailed, match="has no operation 'fly'"):
            await client.mux.ask("fly", {}, 5.0)
        with pytest.raises(PreconditionFailed, match="cannot perform tap"):
            await client.mux.ask("tap", {"name": "tap0"}, 5.0)
