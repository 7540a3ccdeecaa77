"""Machines of the lab: what each has of its own, how it ends and comes back, and its networks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from labtools import ping
from support import sshhost

from coloctl.errors import LabError
from coloctl.lab import layout, machine_group, machine_store, netns
from coloctl.lab.machine import LabMachine, MachineState
from coloctl.lab.machine_layout import ADDRESSES, AHEAD_S, NAMES
from coloctl.lab.machines import Machines, labs

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

NAME = f"t{os.getpid()}-m"
DEADLINE_S = 60.0
#: A server that sends a line every 10 ms to each that connects.
TALKER = (
    "import socket,time\n"
    "s=socket.create_server(('',7777)); print('ready',flush=True)\n"
    "c,_=s.accept()\n"
    "while True: c.sendall(b'x'*100); time.sleep(0.01)"
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Machines]:
    with Machines.up(NAME, clocks=True) as standing:
        yield standing
    assert NAME not in labs()
    assert not machine_store.home(NAME).exists()
    assert not [name for name in machine_group.names() if name.startswith(NAME)]
    assert not [name for name in netns.names() if name.startswith(NAME)]


@pytest.fixture(autouse=True)
def whole(lab: Machines) -> Iterator[None]:
    """Every machine is on and every link whole when the next test begins."""
    yield
    lab.heal()
    for machine in lab.machines.values():
        if machine.state() is MachineState.FROZEN:
            machine.thaw()
        if machine.state() is MachineState.OFF:
            machine.boot()


def inside(machine: LabMachine, *argv: str, code: int = 0) -> str:
    with machine.popen(argv, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, out
    return str(out)


def by_ssh(lab: Machines, host: str, command: str, patience_s: float = DEADLINE_S) -> str:
    words = [*lab.ssh(), "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={patience_s:g}"]
    done = subprocess.run(
        [*words, host, command], capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def boot_of(machine: LabMachine) -> str:
    return inside(machine, "cat", "/proc/sys/kernel/random/boot_id").strip()


def until(state: MachineState, machine: LabMachine) -> None:
    end = time.monotonic() + DEADLINE_S
    while machine.state() is not state:
        assert time.monotonic() < end, machine.state()
        time.sleep(0.01)


def test_each_machine_has_its_own_identity_folders_and_processes(lab: Machines) -> None:
    facts = {
        name: inside(machine, "sh", "-c", "hostname; cat /etc/machine-id; ls /run/coloctl /tmp")
        for name, machine in lab.machines.items()
        if not inside(machine, "mkdir", "-p", "/run/coloctl", "/var/lib/coloctl/disks")
    }
    assert [text.split()[0] for text in facts.values()] == list(NAMES)
    assert len({text.split()[1] for text in facts.values()}) == len(NAMES)
    boots = {boot_of(machine) for machine in lab.machines.values()}
    boots.add(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    assert len(boots) == len(NAMES) + 1
    first, second = lab.machine("hv1"), lab.machine("hv2")
    for folder in ("/tmp", "/run", "/var/lib/coloctl", "/root"):
        inside(first, "touch", f"{folder}/of-hv1")
        assert "of-hv1" not in inside(second, "ls", folder)
        assert not Path(folder, "of-hv1").exists()
        assert first.here(Path(folder, "of-hv1")).exists()
    script = "echo ready; exec sleep 60"
    with second.popen(["sh", "-c", script], stdout=subprocess.PIPE) as sleeper:
        assert sleeper.stdout is not None and sleeper.stdout.readline() == b"ready\n"
        end = time.monotonic() + DEADLINE_S
        while "sleep" not in inside(second, "ps", "-e", "-o", "comm"):
            assert time.monotonic() < end  # the shell becomes it a moment after its line
        assert "sleep" not in inside(first, "ps", "-e", "-o", "comm")
        pid = int(inside(second, "pgrep", "sleep"))
        outer = second.outer(pid)
        assert outer is not None and outer != pid
        assert Path(f"/proc/{outer}/comm").read_text() == "sleep\n"
        second.crash()
    assert sleeper.returncode
    until(MachineState.OFF, second)
    with pytest.raises(LabError, match="hv2 is off"):
        second.popen(["true"])


def test_no_machine_has_the_monotonic_clock_of_another(lab: Machines) -> None:
    """Commands in a machine and those of a client of ssh see the same clock, also after a boot."""
    asked = "import time; print(int(time.monotonic()))"
    for name, ahead_s in AHEAD_S.items():
        for again in (False, True):
            here = time.monotonic()
            clocks = [
                int(inside(lab.machine(name), "python3", "-c", asked)),
                int(by_ssh(lab, name, f"python3 -c '{asked}'")),
            ]
            assert all(0 <= one - ahead_s - int(here) < 1000 for one in clocks), (clocks, here)
            if not again:
                lab.machine(name).crash()
                lab.machine(name).boot()


def test_ssh_reaches_every_machine_and_leads_from_one_to_another(lab: Machines) -> None:
    for name in NAMES:
        assert by_ssh(lab, name, "hostname; id -u; echo $COLOCTL_STATE_DIR") == f"{name}\n0\n\n"
    leap = "ssh -o BatchMode=yes operator@hv2 'hostname; id -un'"
    assert by_ssh(lab, "hv1", leap) == "hv2\noperator\n"


def test_a_command_has_its_exit_code_and_the_machines_own_environment(lab: Machines) -> None:
    process = lab.machine("hv1").popen(["sh", "-c", "exit 7"])
    assert process.wait(DEADLINE_S) == 7
    assert "COLOCTL_" not in inside(lab.machine("hv1"), "env")


def test_a_crash_is_silent_and_the_machine_comes_back_with_its_files(lab: Machines) -> None:
    machine = lab.machine("hv2")
    before = boot_of(machine)
    inside(machine, "sh", "-c", "echo kept >/var/lib/coloctl/kept; echo lost >/tmp/lost")
    with machine.popen([sys.executable, "-I", "-c", TALKER], stdout=subprocess.PIPE) as talker:
        assert talker.stdout is not None and talker.stdout.readline() == b"ready\n"
        here = netns.inside(
            lab.host_a, lambda: socket.create_connection((layout.REPLICATION_B, 7777), 10)
        )
        with here:
            here.settimeout(0.5)
            assert here.recv(100)
            machine.crash()
            assert machine.state() is MachineState.OFF
            with pytest.raises(TimeoutError):
                while True:
                    # Neither an end of the stream nor a reset comes, only what was on its way.
                    assert here.recv(65536)
    assert not netns.exists(machine.namespace)
    assert lab.link("replication").state() == "up"
    assert not ping(lab.host_a, layout.REPLICATION_B, 0.3)
    machine.crash()
    machine.boot()
    assert ping(lab.host_a, layout.REPLICATION_B)
    assert boot_of(machine) != before
    assert (
        inside(machine, "sh", "-c", "cat /var/lib/coloctl/kept; ls /tmp/lost", code=2) == "kept\n"
    )
    with pytest.raises(LabError, match="hv2 is on already"):
        machine.boot()


def test_shutdown_lets_programs_end_first(lab: Machines) -> None:
    machine = lab.machine("hv1")
    at_end = "trap 'echo ended >/var/lib/coloctl/ended; exit' TERM"
    script = f"{at_end}; echo ready; while :; do sleep 0.01; done"
    with machine.popen(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        machine.shutdown()
    machine.boot()
    assert inside(machine, "cat", "/var/lib/coloctl/ended") == "ended\n"


def test_a_frozen_machine_stands_still_and_goes_on(lab: Machines) -> None:
    machine = lab.machine("hv2")
    script = "while :; do echo x; sleep 0.01; done"
    with machine.popen(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"x\n"
        machine.freeze()
        assert machine.state() is MachineState.FROZEN
        os.set_blocking(process.stdout.fileno(), False)
        while process.stdout.read(65536):
            pass
        time.sleep(0.2)
        assert not process.stdout.read(65536)
        assert ping(lab.host_a, layout.REPLICATION_B), "its kernel answers"
        machine.thaw()
        os.set_blocking(process.stdout.fileno(), True)
        assert process.stdout.readline()
        machine.freeze()
        machine.crash()
        assert machine.state() is MachineState.OFF


def test_networks_are_cut_one_way_or_both_and_healed(lab: Machines) -> None:
    def reach() -> tuple[bool, bool]:
        return ping(lab.host_a, layout.REPLICATION_B, 0.3), ping(lab.third, ADDRESSES["hv1"], 0.3)

    assert reach() == (True, True)
    assert lab.cut("management", at="hv1") == ["management-a"]
    assert reach() == (True, False)
    assert lab.cut("replication") == ["replication"]
    assert reach() == (False, False)
    lab.heal("management")
    assert reach() == (False, True)
    lab.heal()
    assert reach() == (True, True)
    with pytest.raises(LabError, match="witness has no end in guest"):
        lab.cut("guest", at="witness")
    with pytest.raises(LabError, match="no network or link 'wan'"):
        lab.cut("wan")


@pytest.mark.parametrize(("way", "arrives"), [("sends", "hv2"), ("receives", "hv1")])
def test_one_way_of_a_network_is_cut(lab: Machines, way: str, arrives: str) -> None:
    """A datagram crosses the replication link in the one direction that is left."""
    places = {"hv1": (lab.host_a, layout.REPLICATION_A), "hv2": (lab.host_b, layout.REPLICATION_B)}

    def passes(to: str) -> bool:
        other = "hv1" if to == "hv2" else "hv2"

        def receive() -> socket.socket:
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            receiver.bind((places[to][1], 0))
            receiver.settimeout(0.3)
            return receiver

        with netns.inside(places[to][0], receive) as receiver:
            at = receiver.getsockname()

            def send() -> None:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    sender.sendto(b"x", at)

            netns.inside(places[other][0], send)
            try:
                return receiver.recv(1) == b"x"
            except TimeoutError:
                return False

    assert passes("hv1") and passes("hv2")  # each knows the other's address of Ethernet now
    lab.cut("replication", at="hv2", way=way)
    assert lab.link("replication").state() == "mixed"
    assert [to for to in ("hv1", "hv2") if passes(to)] == [arrives]


def test_a_cut_outlives_a_reboot_of_the_machine(lab: Machines) -> None:
    machine = lab.machine("hv2")
    lab.cut("replication", at="hv2", way="sends")
    machine.crash()
    assert lab.link("replication").state() == "mixed"
    machine.boot()
    assert lab.link("replication").state() == "mixed"
    assert not ping(lab.host_a, layout.REPLICATION_B, 0.3)
    lab.cut("guest", at="hv2", carrier=True)
    machine.crash()
    machine.boot()
    assert lab.link("lan-b").state() == "unplugged"
    lab.heal()
    assert ping(lab.host_a, layout.REPLICATION_B)


def test_up_mends_what_is_not_whole(lab: Machines) -> None:
    lab.machine("hv1").crash()
    lab.cut("management")
    Machines.up(NAME)
    assert lab.machine("hv1").state() is MachineState.UP
    assert set(lab.describe()["networks"]["management"].values()) == {"up"}
    assert by_ssh(lab, "hv1", "hostname") == "hv1\n"


def test_the_verbs_say_and_do_what_the_machines_do(lab: Machines) -> None:
    def coloctl(*words: str) -> str:
        argv = [sys.executable, "-m", "coloctl.cli.main", "lab", "machines", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    own = ("--name", NAME)
    assert coloctl("crash", "hv2", *own) == "hv2 is off.\n"
    shown = json.loads(coloctl("show", *own, "-f", "json"))
    assert shown["machines"]["hv2"]["state"] == "off"
    assert coloctl("boot", "hv2", *own) == "hv2 is up.\n"
    assert coloctl("reboot", "hv2", *own) == "hv2 is up again.\n"
    assert coloctl("freeze", "hv2", *own) == "hv2 is frozen.\n"
    assert coloctl("thaw", "hv2", *own) == "hv2 is up.\n"
    cut = coloctl("cut", "replication", "--at", "hv1", "--sends", *own)
    assert cut == "replication is mixed.\n"
    assert coloctl("heal", "replication", *own) == "replication is up.\n"
    assert coloctl("exec", *own, "hv1", "--", "hostname") == "hv1\n"
    assert coloctl("ssh", *own, "hv1", "hostname") == "hv1\n"
    assert coloctl("config", *own).startswith("COLOCTL_SSH=")
    assert f"{NAME}: hv1 up, hv2 up, witness up\n" in coloctl("list")
    with lab.machine("hv1").popen(["sleep", "60"]) as sleeper:
        argv = [sys.executable, "-m", "coloctl.cli.main", "lab", "machines", "down", *own]
        refused = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert refused.returncode and "are in use: " in refused.stderr
        sleeper.kill()
        lab.machine("hv1").crash()
