"""The contact with an agent: it breaks, comes back, is another one, or another machine's."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from support.dials import PlainDial, slow
from support.fakeagent import FakeAgent

from coloctl.errors import FencingFailed, HostOutOfReach, PreconditionFailed
from coloctl.host.identity import Identity
from coloctl.host.records import Contact, Reach
from coloctl.host.remote import contact, watches
from coloctl.host.remote.host import RemoteHost
from coloctl.host.wire.codec import encode
from coloctl.model.launch import Launch
from coloctl.model.observation import Life
from coloctl.model.wires import Endpoint

pytestmark = pytest.mark.unit

WAIT_S = 10.0
QEMU = Identity(77, 123, boot="boot-1", machine="hv2")


def handle(hold: int) -> dict[str, object]:
    """Return what an agent answers for a process that it holds."""
    identity = encode(QEMU)
    return {
        "hold": hold,
        "identity": identity,
        "leader": identity,
        "argv": ["qemu"],
        "unplaced": "",
    }


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    async with FakeAgent(tmp_path / "agent.sock") as agent:
        yield agent


@pytest.fixture
async def host(agent: FakeAgent) -> AsyncIterator[RemoteHost]:
    agent.answers["launch"] = handle(1)
    async with RemoteHost("ssh://hv2", agent.dial) as host:
        await host.ready(WAIT_S)
        yield host


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - many objects, none with an event
            await asyncio.sleep(0.01)


async def reached(host: RemoteHost, than: Reach, *wanted: Contact) -> Reach:
    """Wait until the host has another reach than that, and one of the contacts."""
    async with asyncio.timeout(WAIT_S):
        while (than := await host.reached(than)).contact not in wanted:
            pass
    return than


async def test_a_host_is_reached_and_names_its_machine(agent: FakeAgent, host: RemoteHost) -> None:
    assert host.machine == agent.machine
    assert (host.reach.contact, host.reach.session, host.reach.why) == (Contact.CONNECTED, 1, "")
    assert agent.hellos[0]["client"] == "supervisor"


async def test_before_the_first_contact_nothing_is_known(agent: FakeAgent) -> None:
    async with RemoteHost("ssh://hv2", agent.dial) as host:
        assert host.reach.contact is Contact.NEVER
        with pytest.raises(HostOutOfReach, match="hv2 was not reached yet"):
            _ = host.machine
        agent.answers["tap_is_up"] = True
        assert await host.tap_is_up("tap-b") is True  # what is asked first dials first


async def test_a_connection_that_breaks_is_resumed_and_holds_stay(
    agent: FakeAgent, host: RemoteHost, tmp_path: Path
) -> None:
    process = await host.launch(Launch(("qemu",)), stderr=tmp_path / "log", node="b")
    before = host.reach
    agent.hang_up()
    lost = await reached(host, before, Contact.LOST)
    assert "hv2" in lost.why
    again = await reached(host, lost, Contact.CONNECTED)
    assert again.session == before.session
    assert agent.hellos[1]["session"] == "one" and agent.hellos[1]["secret"]
    agent.mux.push("death", {"hold": 1, "pid": 77, "at_s": 0.0, "exit_code": -9})
    async with asyncio.timeout(WAIT_S):
        assert (await process.wait()).exit_code == -9


async def test_another_agent_on_the_same_boot_is_asked_for_the_process(
    agent: FakeAgent, host: RemoteHost, tmp_path: Path
) -> None:
    process = await host.launch(Launch(("qemu",)), stderr=tmp_path / "log", node="b")
    process.watch(threads=[5])
    agent.answers["adopt"] = handle(1)
    before = host.reach
    agent.begin("two")
    again = await reached(host, before, Contact.CONNECTED)
    assert again.session == before.session + 1
    assert [do for do, _ in agent.asked] == ["launch", "adopt"]
    await until(lambda: [of for of, _ in agent.pushed].count("watch"))
    agent.beat({"p": [[1, "stopped", False, 0.5, 7, None]]})
    await until(lambda: process.life() is Life.STOPPED)
    assert (process.cpu_s(), process.console_bytes()) == (0.5, 7)
    assert not process.dying()
    agent.beat({"p": [[1, "alive", True, 0.5, 7, None]]})
    await until(process.dying)
    assert process.alive() and process.life() is Life.ALIVE


async def test_an_agent_that_finds_no_such_process_proves_its_end(
    agent: FakeAgent, host: RemoteHost, tmp_path: Path
) -> None:
    process = await host.launch(Launch(("qemu",)), stderr=tmp_path / "log", node="b")
    agent.answers["adopt"] = None
    agent.begin("two")
    async with asyncio.timeout(WAIT_S):
        assert (await process.wait()).pid == 77
    assert (await process.kill(1.0)).how == "identity-gone"


async def test_another_boot_of_the_machine_proves_the_end(
    agent: FakeAgent, host: RemoteHost, tmp_path: Path
) -> None:
    process = await host.launch(Launch(("qemu",)), stderr=tmp_path / "log", node="b")
    agent.begin("two", boot_id="boot-2")
    async with asyncio.timeout(WAIT_S):
        await process.wait()
    assert process.life() is Life.DEAD
    proof = await process.kill(1.0)
    assert (proof.pid, proof.start_time, proof.how) == (77, 123, "rebooted")
    assert "adopt" not in [do for do, _ in agent.asked]


async def test_another_machine_at_the_same_name_proves_nothing(
    agent: FakeAgent, host: RemoteHost, tmp_path: Path
) -> None:
    process = await host.launch(Launch(("qemu",)), stderr=tmp_path / "log", node="b")
    agent.begin("two", machine_id="another", boot_id="boot-2")
    await until(lambda: "another machine now" in host.reach.why)
    assert process.alive() and host.reach.contact is Contact.LOST
    with pytest.raises(FencingFailed, match="machine-id is another") as caught:
        await process.kill(1.0)
    assert caught.value.out_of_reach


async def test_a_process_that_was_recorded_on_another_machine_is_unknown(
    agent: FakeAgent, host: RemoteHost
) -> None:
    """An earlier supervisor recorded it; the name leads to another machine since."""
    recorded = Identity(77, 123, boot="boot-0", machine="the-machine-of-then")
    process = host.known(recorded, node="b")
    await host.ready(WAIT_S)
    agent.beat({})
    assert process.life() is Life.UNKNOWN
    assert "adopt" not in [do for do, _ in agent.asked]
    with pytest.raises(FencingFailed) as caught:
        await process.kill(1.0)
    assert caught.value.out_of_reach


async def test_in_a_case_of_doubt_the_process_is_unknown(
    agent: FakeAgent, host: RemoteHost, tmp_path: Path
) -> None:
    process = await host.launch(Launch(("qemu",)), stderr=tmp_path / "log", node="b")
    agent.answers["adopt"] = PreconditionFailed("Process 77 runs another program.")
    before = host.reach
    agent.begin("two")
    await reached(host, before, Contact.CONNECTED)
    agent.beat({})
    assert process.life() is Life.UNKNOWN and process.alive()
    with pytest.raises(FencingFailed, match="not held") as caught:
        await process.kill(1.0)
    assert caught.value.out_of_reach


async def test_what_was_reported_too_long_ago_is_unknown(
    agent: FakeAgent, host: RemoteHost, tmp_path: Path
) -> None:
    process = await host.launch(Launch(("qemu",)), stderr=tmp_path / "log", node="b")
    here = Endpoint("10.0.0.2", 7000)
    agent.answers |= {
        "beacon": {"hold": 2, "session": {"b": "AAAA"}},
        "deliveries": 3,
    }
    beacon = await host.beacon(here, here, b"key", 20)
    deliveries = await host.deliveries("10.0.0.2", "10.0.0.1", [7000])
    assert deliveries is not None

    def carried() -> bool | None:
        agent.beat(
            {
                "p": [[1, "alive", False, 1.0, 0, [0.0, [[1.0, 0.5]]]]],
                "l": [[2, 3, 1, 4, 0.001]],
                "d": [[3, [["AAAA", 7000, 1, 0, 9]]]],
            }
        )
        return process.life() is Life.ALIVE and beacon.beat()

    await until(carried)
    assert (beacon.lost, beacon.refused, beacon.delay_s) == (1, 4, 0.001)
    assert [(one.port, one.heard) for one in deliveries.look()] == [(7000, 9)]
    assert beacon.beat() is False  # nothing has come since
    await until(lambda: process.life() is Life.UNKNOWN)
    assert beacon.beat() is None and deliveries.look() == () and process.cpu_s() is None
    assert process.worked() is None and process.alive()


async def test_beacons_that_have_not_met_say_nothing_of_the_link(
    agent: FakeAgent, host: RemoteHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a link that is watched anew is not taken for broken because ssh is slow."""
    process = await host.launch(Launch(("qemu",)), stderr=tmp_path / "log", node="b")
    here = Endpoint("10.0.0.2", 7000)
    agent.answers |= {"beacon": {"hold": 2, "session": {"b": "AAAA"}}}
    beacon = await host.beacon(here, here, b"key", 20)

    async def reported(carried: int, t: float = 9.0) -> bool | None:
        """Return what the beacon shows right after a report of that."""
        await until(lambda: process.life() is Life.UNKNOWN)
        row = [2, carried, 0, 0, None]

        def fresh() -> bool:
            agent.beat({"t": t, "p": [[1, "alive", False, 1.0, 0, None]], "l": [row]})
            return process.life() is Life.ALIVE

        await until(fresh)
        return beacon.beat()

    beacon.meet(b"12345678")
    assert await reported(0) is None
    assert await reported(1, t=10.0) is True
    assert (await reported(1, t=10.04), beacon.reported_ms) == (False, pytest.approx(40))
    assert (await reported(2, t=10.08), beacon.reported_ms) == (True, 0.0)
    monkeypatch.setattr(watches, "MEET_S", 0.0)
    beacon = await host.beacon(here, here, b"key", 20)
    beacon.meet(b"12345678")
    assert await reported(0) is False  # none came in the time for it


async def test_a_host_out_of_reach_refuses_at_once_and_says_why(
    agent: FakeAgent, host: RemoteHost, tmp_path: Path
) -> None:
    process = await host.launch(Launch(("qemu",)), stderr=tmp_path / "log", node="b")
    agent.greeting = "COLOCTL-PYTHON 3.9.2\n"
    agent.hang_up()
    await until(lambda: "Python 3.9.2" in host.reach.why)
    began_s = time.monotonic()
    with pytest.raises(HostOutOfReach, match=r"hv2 has Python 3\.9\.2, and coloctl needs 3\.11"):
        await host.tap("tap-b", up=False)
    with pytest.raises(FencingFailed) as caught:
        await process.kill(WAIT_S)
    assert caught.value.out_of_reach and time.monotonic() - began_s < WAIT_S / 2
    with pytest.raises(HostOutOfReach) as refused:
        await host.ready(WAIT_S)
    assert refused.value.hint and "3.11" in refused.value.hint


async def test_a_silent_connection_is_ended_and_dialled_again(
    agent: FakeAgent, host: RemoteHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact, "SILENCE_S", 0.5)
    lost = await reached(host, host.reach, Contact.LOST)
    assert lost.why.startswith("Nothing came from hv2 for ")
    await reached(host, lost, Contact.CONNECTED)


async def test_a_machine_that_is_slow_to_connect_may_be_silent_for_twice_as_long(
    agent: FakeAgent, host: RemoteHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    greet = contact.greet

    async def slow(*args: object) -> None:
        await asyncio.sleep(0.4)
        await greet(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(contact, "greet", slow)
    monkeypatch.setattr(contact, "SILENCE_S", 0.1)
    await reached(host, await reached(host, host.reach, Contact.LOST), Contact.CONNECTED)
    lost = await reached(host, host.reach, Contact.LOST)
    silence_s = float(lost.why.removeprefix("Nothing came from hv2 for ").removesuffix(" s."))
    assert silence_s >= 0.8


async def test_a_request_without_an_answer_may_have_been_performed(
    agent: FakeAgent, host: RemoteHost
) -> None:
    asked = asyncio.Event()

    async def hang() -> None:
        asked.set()
        await asyncio.sleep(WAIT_S)

    agent.answers["tap"] = hang
    setting = asyncio.create_task(host.tap("tap-b", up=True))
    await asked.wait()
    agent.begin("two")
    with pytest.raises(HostOutOfReach) as caught:
        async with asyncio.timeout(WAIT_S):
            await setting
    assert caught.value.sent


async def test_a_launch_for_which_no_caller_waits_is_ended(
    agent: FakeAgent, host: RemoteHost, tmp_path: Path
) -> None:
    async def slow() -> object:  # it has done it before the cancellation came
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(WAIT_S)
        return handle(1)

    agent.answers["launch"] = slow
    agent.answers["end"] = {
        **{"pid": 77, "start_time": 123, "how": "sigkill", "at_s": 0.0, "exit_code": -9}
    }
    launching = asyncio.create_task(host.launch(Launch(("q",)), stderr=tmp_path / "log"))
    await until(lambda: agent.asked)
    launching.cancel()
    await until(lambda: [do for do, _ in agent.asked] == ["launch", "end"])
    await until(lambda: ("release", {"of": "release", "hold": 1}) in agent.pushed)


@pytest.mark.parametrize(
    ("greeting", "sentence"),
    [
        ("COLOCTL-NOPYTHON\n", "hv2 has no Python on the PATH of its login shell."),
        ("COLOCTL-PYTHON 3.6.8\n", "hv2 has Python 3.6.8, and coloctl needs 3.11."),
        ("COLOCTL-NOROOM /x: No space\n", "hv2 cannot keep the agent: /x: No space."),
        ("COLOCTL-LOADER 9 3.11\n", "The loader on hv2 has version 9."),
        ("COLOCTL-AGENT 1 0.0.7\n", "The agent on hv2 is coloctl 0.0.7 with protocol 1"),
        ("COLOCTL-AGENT 99 0.1.0\n", "The agent on hv2 is coloctl 0.1.0 with protocol 99"),
        ("no such shell\n" * 400, 'No agent answers on hv2, but "no such shell".'),
    ],
)
async def test_another_greeting_is_one_sentence_that_names_the_machine(
    agent: FakeAgent, greeting: str, sentence: str
) -> None:
    agent.greeting = greeting
    async with RemoteHost("ssh://hv2", agent.dial) as host:
        with pytest.raises(HostOutOfReach) as caught:
            await host.ready(WAIT_S)
    assert caught.value.message.startswith(sentence) and caught.value.hint


async def test_a_message_of_the_day_is_skipped(agent: FakeAgent) -> None:
    agent.greeting = f"Welcome!\n\nLast login: today{agent.greeting}"
    async with RemoteHost("ssh://hv2", agent.dial) as host:
        await host.ready(WAIT_S)
        assert host.reach.contact is Contact.CONNECTED


async def test_a_command_that_cannot_be_started_is_one_sentence() -> None:
    async with RemoteHost("ssh://hv2", PlainDial(("/no/such/ssh",), "hv2")) as host:
        with pytest.raises(HostOutOfReach, match="hv2 cannot be dialled: /no/such/ssh could not"):
            await host.ready(WAIT_S)


async def test_a_command_that_ends_is_explained_and_tried_again() -> None:
    dial = PlainDial((sys.executable, "-c", "import sys; sys.exit('no way there')"), "hv2")
    async with RemoteHost("ssh://hv2", dial) as host:
        for _ in range(2):
            with pytest.raises(HostOutOfReach, match="exit code 1: no way there"):
                await host.ready(WAIT_S)


async def test_the_waits_between_dials_grow_and_begin_again_after_a_good_connection(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    class Clock:
        """Monotonic time that lets the redial's waits pass at once."""

        def now(self) -> float:
            return time.monotonic()

        async def sleep(self, seconds: float) -> None:
            slept.append(seconds)
            await asyncio.sleep(0.01)

    dial = PlainDial((sys.executable, "-c", "pass"), "hv2")
    async with RemoteHost("ssh://hv2", dial, clock=Clock()) as host:
        waiting = asyncio.create_task(host.reached(host.reach))
        await until(lambda: len(slept) > 6)
        waiting.cancel()
    assert slept[:7] == [0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0]


async def test_a_round_trip_of_two_seconds_is_slow_and_nothing_else(tmp_path: Path) -> None:
    async with RemoteHost("ssh://hv2", slow(2.0)) as host:
        await host.ready(30)
        process = await host.launch(Launch(("sleep", "99")), stderr=tmp_path / "log", node="b")
        try:
            assert process.life() is Life.ALIVE
            await until(lambda: process.cpu_s() is not None)
            assert 1900 < host.reach.round_trip_ms < 20_000
            began_s = time.monotonic()
            os.kill(process.identity.pid, signal.SIGKILL)
            death = await asyncio.wait_for(process.wait(), WAIT_S)
            # It was noticed there a second before it was here; half the round trip is the error.
            assert began_s - 1.1 < death.at_s < time.monotonic() - 0.5
            assert host.reach.contact is Contact.CONNECTED
        finally:
            await process.kill(WAIT_S)
