"""ssh's command line, and each failure of a real ssh as one sentence that names the machine."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.dials import PlainDial

from coloctl.host.launch import ConversingProgram
from coloctl.host.remote import connection, dial
from coloctl.host.remote.dial import SshDial
from coloctl.model.sshaddress import SshAddress

pytestmark = pytest.mark.unit

#: What ssh of Debian 12 and of Debian 13 wrote, each case produced with a real server or network.
SAMPLES = Path(__file__).parent / "ssh_stderr"

SENTENCES = {
    "host-key-unknown": "The host key of hv2 is not known on this machine.",
    "host-key-unknown-strict": "The host key of hv2 is not known on this machine.",
    "host-key-changed": "The host key of hv2 is another one than this machine knows.",
    "denied": "hv2 accepts none of this user's keys (publickey).",
    "denied-locked": "hv2 accepts none of this user's keys (publickey).",
    "denied-open": "ssh does not use its key for hv2, because others can read /root/.ssh/openkey.",
    "too-many": "hv2 refused the first keys that ssh offered, and then the connection.",
    "unresolved": "The name hv2 cannot be resolved: Name or service not known.",
    "refused": "No ssh server answers on hv2: its port refuses connections.",
    "timed-out": "hv2 does not answer: no connection came about in time.",
    "no-route": "hv2 cannot be reached: No route to host.",
    "unreachable": "hv2 cannot be reached: Network is unreachable.",
    "proxy-closed": "The proxy command for hv2 failed: /bin/bash: line 1: /usr/local/bin/proxy: "
    "No such file or directory.",
    "proxy-failed": "hv2 closed the connection before ssh could log in.",
    "server-killed": "hv2 closed the connection.",
    "silent": "The connection to hv2 is gone: ssh ended with exit code 255.",
    "forced-missing": "hv2 has no program for its forced command: bash: line 1: "
    "/usr/local/bin/coloctl: No such file or directory.",
}

#: ssh 10.0 writes nothing at all there with LogLevel=ERROR.
EXCEPTIONS = {
    ("10.0", "proxy-failed"): "The connection to hv2 is gone: ssh ended with exit code 255."
}


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*/*.txt")), ids=lambda p: str(p)[-30:])
def test_each_failure_of_ssh_is_a_sentence_with_a_command_to_type(sample: Path) -> None:
    version, case = sample.parent.name, sample.stem
    code = 127 if case == "forced-missing" else 255
    error = SshDial(SshAddress("hv2", "root", 2222)).failure(code, sample.read_text())
    assert error.message == EXCEPTIONS.get((version, case), SENTENCES[case])
    assert error.hint
    if case != "forced-missing":
        assert "`ssh -p 2222 -l root hv2 true`" in error.hint
    if case == "host-key-changed":
        assert "`ssh-keygen -R [hv2]:2222`" in error.hint


def test_both_releases_were_sampled_for_each_case() -> None:
    assert {path.parent.name for path in SAMPLES.glob("*/*")} == {"9.2", "10.0"}
    for version in SAMPLES.iterdir():
        assert {path.stem for path in version.iterdir()} == set(SENTENCES)


def test_a_proxy_that_passes_no_descriptor_back_is_named() -> None:
    """As ssh 9.2 writes it with ProxyUseFdpass; the second proxy has said why before it ended."""
    passed = "proxy dialer did not pass back a connection\n"
    dialled = SshDial(SshAddress("hv2"))
    error = dialled.failure(255, passed)
    assert error.message == "hv2 does not answer: the proxy command for it made no connection."
    assert error.hint and "`ssh hv2 true`" in error.hint
    error = dialled.failure(255, f"OSError: [Errno 113] No route to host\n{passed}")
    assert error.message == "hv2 cannot be reached: No route to host."


def test_a_failure_of_a_plain_command_names_the_machine() -> None:
    error = PlainDial(("agent",), "hv2").failure(-9, "one\ntwo.\n")
    assert error.message == "The connection to hv2 is gone: agent was ended: two."


def test_the_command_line_shares_no_connection_and_asks_no_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(dial.SSH_VARIABLE, raising=False)
    argv = list(SshDial(SshAddress("hv2", "root", 2222)).argv())
    assert argv[:2] == ["ssh", "-T"]
    assert argv[-7:-1] == ["-p", "2222", "-l", "root", "--", "hv2"]
    assert argv[-1] == dial.command()
    for option in ("BatchMode=yes", "ControlMaster=no", "ControlPath=none", "ForwardAgent=no"):
        assert argv[argv.index(option) - 1] == "-o"
    monkeypatch.setenv(dial.SSH_VARIABLE, "'/opt/my ssh' -F FILE")
    assert SshDial(SshAddress("hv2")).argv()[:4] == ["/opt/my ssh", "-F", "FILE", "-T"]
    assert "-p" not in SshDial(SshAddress("hv2")).argv()


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_remote_command_works_in_a_login_shell(shell: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [shell, "-c", dial.command()],
        input=b"",
        capture_output=True,
        check=True,
        start_new_session=True,  # the command weighs it
        env={"PATH": "/usr/bin:/bin", "COLOCTL_CACHE_DIR": str(tmp_path)},
    )
    assert done.stdout.startswith(b"COLOCTL-LOADER 1 3.")
    assert not done.stderr


def test_the_remote_command_has_no_sign_that_a_login_shell_of_another_kind_would_expand() -> None:
    command = dial.command()
    assert command.startswith("exec /bin/sh -c '")
    assert command.count("'") == 2
    assert not set(command) & set("!\\`\n")
    assert len(command) < 16_384  # one argument may have 128 KiB


def test_a_machine_without_python_answers_with_one_line() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", dial.command()],
        input=b"",
        capture_output=True,
        check=True,
        start_new_session=True,  # the command weighs it
        env={"PATH": "/nowhere"},
    )
    assert done.stdout == b"COLOCTL-NOPYTHON\n"


def test_a_command_that_starts_when_its_event_loop_ends_is_ended_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    programs = []
    start_talking = connection.start_talking

    def started(argv: Sequence[str]) -> ConversingProgram:
        programs.append(start_talking(argv))
        begun.set()
        go_on.wait(30)
        return programs[0]

    async def dialled() -> None:
        async with connection.dialled(PlainDial(("sleep", "300"), "hv2")):
            raise AssertionError("it was cancelled before")

    async def cancelled() -> None:
        dialling = asyncio.create_task(dialled())
        await asyncio.to_thread(begun.wait, 30)
        dialling.cancel()
        await asyncio.wait([dialling])

    monkeypatch.setattr(connection, "start_talking", started)
    asyncio.run(cancelled())
    go_on.set()
    end = time.monotonic() + 30
    while Path(f"/proc/{programs[0].process.identity.pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
