"""Look at the unit of systemd that a QEMU has on a machine, and let it reach its memory limit.

Called by `sequence.py`. The machine's own systemd and kernel are asked over ssh: no word of coloctl
about a unit counts here.
"""

from __future__ import annotations

from dataclasses import dataclass

from two_kernels.machines import Machine

#: The account that `coloctl host add` makes.
ACCOUNT = "coloctl-qemu"
SLICE = "coloctl.slice"
#: Less than the heap of any QEMU: no page that the kernel could take back instead is enough.
TOO_LITTLE_MIB = 8
#: Prints KEY=VALUE lines. A process without a group of its own shows the group that it is in.
LOOK = """\
group=$(sed -n 's/^0:://p' /proc/{pid}/cgroup); unit=${{group##*/}}
echo "group=$group"
echo "uids=$(sed -n 's/^Uid:\t//p' /proc/{pid}/status)"
echo "account=$(id -u {account})"
systemctl show "$unit" --property=ActiveState,Slice,TasksMax,MemoryMax
for name in memory.max memory.current cgroup.procs; do
  echo "$name=$(tr '\\n' ' ' <"/sys/fs/cgroup$group/$name")"
done"""


@dataclass(frozen=True)
class QemuScope:
    """The unit of one QEMU, as its machine's systemd and kernel show it."""

    pid: int
    facts: dict[str, str]

    @property
    def name(self) -> str:
        return self.facts["group"].rpartition("/")[2]

    @property
    def taken_mib(self) -> int:
        """The memory that the kernel counts for it now; 0 where it has no group that counts it."""
        return int(self.facts["memory.current"] or 0) >> 20

    def wrong(self, node: str, memory_max: int) -> list[str]:
        """Return each fact that is not as docs/systemd.md promises, with its value."""
        facts, taken = self.facts, f"coloctl-web-{node}"
        due = {
            "ActiveState": "active",
            "Slice": SLICE,
            "TasksMax": "512",
            "MemoryMax": str(memory_max),
            "memory.max": str(memory_max),
            "cgroup.procs": str(self.pid),
            "uids": " ".join([facts["account"]] * 4),
        }
        found = [f"{key}={facts.get(key)}" for key, value in due.items() if facts.get(key) != value]
        if self.name not in (f"{taken}.scope", f"{taken}-{self.pid}.scope"):
            found.append(f"unit={self.name}")
        return found


def look(machine: Machine, pid: int) -> QemuScope:
    """Ask a machine for the unit in which the process is."""
    said = machine.output(LOOK.format(pid=pid, account=ACCOUNT))
    facts = dict(line.partition("=")[::2] for line in said.splitlines())
    return QemuScope(pid, {key: " ".join(value.split()) for key, value in facts.items()})


def lowering(unit: QemuScope) -> str:
    """Return the command by which a unit has reached its limit at once."""
    return f"systemctl set-property --runtime {unit.name} MemoryMax={TOO_LITTLE_MIB}M"


def records_of_end(machine: Machine, unit: QemuScope) -> list[str]:
    """Return what the machine's kernel and its systemd recorded of the end at the limit."""
    found = machine.output(
        f"journalctl -k -q -o cat --no-pager | grep 'Killed process {unit.pid} ' || true; "
        f"journalctl -q -o cat --no-pager -u {unit.name} | grep -i 'oom' || true"
    )
    return found.splitlines()
