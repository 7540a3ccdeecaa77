"""Fence agents as small scripts: only a confirmed "off" is one, and nothing of theirs hangs us."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import Log, fake_vm, make_spec

from coloctl.errors import FencingFailed
from coloctl.ha import agent
from coloctl.ha.fencing import Confirmation, Fenced, Means, fence
from coloctl.host.base import Completed
from coloctl.model.pair import FencingMethod, FencingSpec, PairSpec

pytestmark = pytest.mark.unit

#: Reads its options, keeps them beside itself, and does what the test wrote for the action.
AGENT = """\
#!/bin/sh
options=$(cat)
action=$(printf '%s\\n' "$options" | sed -n 's/^action=//p')
printf '%s\\n--\\n' "$options" >> "$0.told"
case "$action" in
  off) {off} ;;
  status) {status} ;;
  *) echo "unknown action $action" >&2; exit 1 ;;
esac
"""
#: As the agents of the package fence-agents do.
SAYS_OFF = "echo Status: OFF; exit 2"
OPTIONS = {"ip": "10.0.0.9", "password": "hunter2", "plug": "7"}


def with_agent(folder: Path, off: str, status: str, *words: str, timeout_s: int = 20) -> PairSpec:
    script = folder / "fence_test"
    script.write_text(AGENT.format(off=off, status=status))
    script.chmod(0o700)
    options = {"a": OPTIONS, "b": {}}
    command = (str(script), *words)
    fencing = FencingSpec(FencingMethod.COMMAND, command, timeout_s, options)  # type: ignore[arg-type]
    return replace(make_spec(), fencing=fencing)


def told(folder: Path) -> list[dict[str, str]]:
    """The options of each call."""
    calls = (folder / "fence_test.told").read_text().split("--\n")[:-1]
    return [dict(line.split("=", 1) for line in call.splitlines()) for call in calls]


def fenced(spec: PairSpec, log: Log, *, dead: bool = False, immortal: bool = False) -> Fenced:
    async def act() -> Fenced:
        async with fake_vm("a", log) as vm:
            vm.process.immortal = immortal
            if dead:
                vm.process.die()
            return await fence(spec, vm)

    return asyncio.run(act())


def refusal(spec: PairSpec, log: Log) -> FencingFailed:
    with pytest.raises(FencingFailed) as failed:
        fenced(spec, log)
    assert failed.value.node == "a"
    assert failed.value.hint
    assert "a: killed" not in log
    return failed.value


def test_a_good_agent_is_told_and_its_word_confirmed(tmp_path: Path) -> None:
    log: Log = []
    done = fenced(with_agent(tmp_path, "exit 0", "echo it is off; exit 2"), log)
    assert (done.method, done.how) == (FencingMethod.COMMAND, "agent-sigkill")
    assert done.said == "it is off"
    assert [call["action"] for call in told(tmp_path)] == ["off", "status"]
    assert told(tmp_path)[0] == {"action": "off", "nodename": "a", **OPTIONS}
    assert log == ["a: tap-a0 down", "a: killed"]  # it lived on within reach


async def test_a_node_without_options_has_its_name(tmp_path: Path) -> None:
    spec = with_agent(tmp_path, "exit 0", SAYS_OFF)

    async with fake_vm("b", []) as vm:
        await fence(spec, vm)
    assert told(tmp_path)[0] == {"action": "off", "plug": "b", "nodename": "b"}


def test_what_is_off_already_needs_no_success(tmp_path: Path) -> None:
    spec = with_agent(tmp_path, "echo cannot switch off twice >&2; exit 1", SAYS_OFF)
    assert fenced(spec, []).how == "agent-sigkill"


def test_a_refusing_agent_is_quoted(tmp_path: Path) -> None:
    log: Log = []
    said = "echo Unable to log in to 10.0.0.9 >&2; exit 1"
    error = refusal(with_agent(tmp_path, said, said), log)
    assert "Unable to log in to 10.0.0.9" in error.message
    assert "fence_test" in error.message
    assert log == ["a: tap-a0 down"]


def test_a_lying_agent_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "STATUS_PERIOD_S", 20.0)  # no time to ask again
    spec = with_agent(tmp_path, "exit 0", "echo still humming >&2; exit 0")
    assert "says that node a is still on: still humming" in refusal(spec, []).message


def test_a_node_that_takes_a_while_is_asked_about_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "STATUS_PERIOD_S", 0.01)
    later = 'test -e "$0.asked" && exit 2; touch "$0.asked"; exit 0'
    assert fenced(with_agent(tmp_path, "exit 0", later), []).how == "agent-sigkill"
    assert [call["action"] for call in told(tmp_path)] == ["off", "status", "status"]


@pytest.mark.parametrize("hanging", ["off", "status"])
def test_a_hanging_agent_is_killed_at_its_deadline(tmp_path: Path, hanging: str) -> None:
    acts = {"off": "exit 0", "status": "exit 1", hanging: "exec sleep 1000"}
    error = refusal(with_agent(tmp_path, acts["off"], acts["status"], timeout_s=3), [])
    assert f"did not end in time at action={hanging}" in error.message


def test_an_agent_that_hangs_while_it_works_may_still_be_confirmed(tmp_path: Path) -> None:
    assert fenced(with_agent(tmp_path, "exec sleep 1000", SAYS_OFF, timeout_s=4), []).how


def test_an_agent_that_is_not_there_says_so(tmp_path: Path) -> None:
    spec = with_agent(tmp_path, "exit 0", SAYS_OFF)
    (tmp_path / "fence_test").unlink()
    assert "could not be started" in refusal(spec, []).message


@pytest.mark.parametrize("words", [(), ("--password=hunter2",), ("-p", "hunter2")])
def test_secrets_stay_where_they_are(tmp_path: Path, words: tuple[str, ...]) -> None:
    said = 'echo "login with hunter2 failed, options were $options" >&2; exit 1'
    error = refusal(with_agent(tmp_path, said, said, *words), [])
    assert "login with *** failed" in error.message
    assert "hunter2" not in error.message + str(error.hint)


def test_the_kernel_outweighs_an_agent(tmp_path: Path) -> None:
    """Whatever the agent says, a QEMU within reach must be gone; one that is gone needs no agent"""
    spec = with_agent(tmp_path, "exit 0", SAYS_OFF)
    with pytest.raises(FencingFailed, match="does not die"):
        fenced(spec, [], immortal=True)
    (tmp_path / "fence_test.told").unlink()
    assert fenced(spec, [], dead=True).how == "already-dead"
    assert not (tmp_path / "fence_test.told").exists()


async def test_an_interrupted_fence_leaves_no_agent(tmp_path: Path) -> None:
    spec = with_agent(tmp_path, 'echo $$ > "$0.pid"; exec sleep 1000', SAYS_OFF)
    pid = tmp_path / "fence_test.pid"

    async with fake_vm("a", []) as vm:
        fencing = asyncio.create_task(fence(spec, vm))
        async with asyncio.timeout(60):
            while not (pid.exists() and pid.read_text().strip()):  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.01)
        fencing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fencing
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


@pytest.mark.parametrize(
    "always",
    [
        "echo 'usage: fence_test [-o ACTION]' >&2; exit 2",
        "echo 'Action: status, reboot, on or off'; exit 2",
        "echo 'unknown option --plug, valid actions: on, off'; exit 2",
        "echo 'cannot tell whether it is off'; exit 2",
        "exit 2",
    ],
)
def test_an_agent_that_never_worked_confirms_nothing(tmp_path: Path, always: str) -> None:
    """Most programs that do not understand what they are told end with 2, as "off" does."""
    log: Log = []
    error = refusal(with_agent(tmp_path, always, always), log)
    assert "did not say that node a is off" in error.message
    assert "do not understand their options" in error.message
    heard = asyncio.run(agent.ask(with_agent(tmp_path, always, always).fencing, "a"))
    assert not heard.works and "neither" in heard.said


def test_silence_confirms_only_what_an_agent_said_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "STATUS_PERIOD_S", 20.0)  # no time to ask again
    spec = with_agent(tmp_path, "exit 0", "exit 2")
    assert "did not say" in refusal(spec, []).message

    async def known() -> Fenced:
        async with fake_vm("a", []) as vm:
            return await fence(spec, vm, Means(agent_known=True))

    assert asyncio.run(known()).how == "agent-sigkill"
    broken = with_agent(tmp_path, "exit 0", "echo 'Syntax error: \")\" unexpected' >&2; exit 2")
    assert not agent.confirms_off(Completed(2, "", "Syntax error"), known=True)
    assert "did not say" in refusal(broken, []).message


@pytest.mark.parametrize("code, out, works, on", [
    (0, "Status: ON", True, True), (0, "", True, True), (2, "Status: OFF", True, False),
    (2, "", False, False), (1, "Status: OFF", False, False), (3, "", False, False),
])  # fmt: skip
def test_an_agent_is_asked_before_it_is_needed(
    tmp_path: Path, code: int, out: str, works: bool, on: bool
) -> None:
    spec = with_agent(tmp_path, "exit 1", f"echo '{out}'; exit {code}")
    heard = asyncio.run(agent.ask(spec.fencing, "a"))
    assert (heard.works, heard.on) == (works, on)
    assert [call["action"] for call in told(tmp_path)] == ["status"]
    missing = replace(spec.fencing, command=("/nowhere/fence_none",))
    assert "could not be started" in asyncio.run(agent.ask(missing, "a")).said


@pytest.mark.parametrize("proof", ["kernel", "person"])
async def test_a_proof_that_comes_while_the_agent_is_busy_counts_at_once(
    tmp_path: Path, proof: str
) -> None:
    spec = with_agent(tmp_path, "exec sleep 1000", "exit 1", timeout_s=60)

    async def act() -> str:
        confirmation = Confirmation()
        async with fake_vm("a", []) as vm:
            fencing = asyncio.create_task(fence(spec, vm, Means(confirmation)))
            async with asyncio.timeout(30):
                while not (tmp_path / "fence_test.told").exists():  # noqa: ASYNC110 - a file
                    await asyncio.sleep(0.01)
                if proof == "kernel":
                    vm.process.die()
                else:
                    confirmation.give()
                return (await fencing).how

    assert await act() == ("already-dead" if proof == "kernel" else "confirmed-sigkill")


async def test_force_tries_the_kernel_before_a_broken_agent(tmp_path: Path) -> None:
    spec = with_agent(tmp_path, "exit 1", "exit 1")

    async def act() -> Fenced:
        async with fake_vm("a", []) as vm:
            return await fence(spec, vm, Means(forced=True))

    assert (await act()).how == "sigkill"
    assert not (tmp_path / "fence_test.told").exists()
