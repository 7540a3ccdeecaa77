"""What ``--dry-run`` prints is what the acts say, and costs nothing."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fakes import DIALECTS, Log, fake_state, fake_vm, in_colo, make_spec, seat_pair

from coloctl.colo import plan
from coloctl.colo.ground import Ground, same_on_both
from coloctl.errors import FailoverRefused, NotProtected, PairBusy, UsageError
from coloctl.model.pair import (
    MigrationTransport,
    NodeName,
    PairSpec,
    ReplicationSpec,
    Role,
)
from coloctl.model.protection import Protection
from coloctl.model.tuning import with_settings
from coloctl.supervisor import acts
from coloctl.supervisor.dialogue import dialogue
from coloctl.vm import Binary

pytestmark = pytest.mark.unit

P = Protection
SPEC = make_spec(disks=2, nics=2)
BINARY = Binary(Path("/usr/bin/qemu"), DIALECTS["reconnect-ms"])
GROUND = Ground({}, same_on_both(BINARY, "kvm"), Path("/run/x"))

CHANGES = {
    "checkpoint-delay": 200, "compare-timeout": 400, "expired-scan-cycle": 50,
    "max-queue-size": 2048, "mirror-rate": 1 << 20,
}  # fmt: skip
EVERYTHING = with_settings(SPEC, CHANGES)


def said(steps: list[dict[str, Any]], node: str) -> list[str]:
    """The QMP commands to one node, by name."""
    commands = [step["command"] for step in steps if step["node"] == node and "command" in step]
    return [command.get("execute") or command["exec-oob"] for command in commands]


def everything() -> list[list[dict[str, Any]]]:
    """Every dialogue that there is."""
    return [
        *(dialogue(SPEC, GROUND, "start", P.DOWN, in_sync=sync) for sync in (True, False)),
        dialogue(SPEC, GROUND, "start", P.DOWN, protect=False),
        dialogue(SPEC, GROUND, "start", P.UNPROTECTED, primary="b"),
        *(dialogue(SPEC, GROUND, "failover", P.COLO, to) for to in ("a", "b", None)),  # type: ignore[arg-type]
        *(dialogue(SPEC, GROUND, "stop", state) for state in (P.COLO, P.UNPROTECTED, P.DOWN)),
        *(dialogue(SPEC, GROUND, "set", state, changed=EVERYTHING) for state in P),
        dialogue(SPEC, GROUND, "checkpoint", P.COLO),
        *(dialogue(SPEC, GROUND, "verify", P.COLO, memory=memory) for memory in (True, False)),
    ]


def test_memory_is_read_on_both_nodes_where_that_is_asked_for() -> None:
    asked = dialogue(SPEC, GROUND, "verify", P.COLO, primary="b", memory=True)
    for node in "ab":
        assert {"query-memory-size-summary", "add-fd", "remove-fd"} <= set(said(asked, node))
    assert dialogue(SPEC, GROUND, "verify", P.COLO) == dialogue(
        SPEC, GROUND, "verify", P.COLO, memory=False
    )


def test_every_step_names_a_node_and_is_exactly_one_thing() -> None:
    for steps in everything():
        json.dumps(steps)
        for step in steps:
            assert step["node"] in ("a", "b")
            assert isinstance(step["why"], str)
            assert len({"launch", "command", "act"} & set(step)) == 1


def test_a_start_from_equal_images_copies_no_disk() -> None:
    steps = dialogue(SPEC, GROUND, "start", P.DOWN)
    launches = [(step["node"], step["launch"]) for step in steps if "launch" in step]
    assert [node for node, _ in launches] == ["a", "b"]
    assert "-S" in launches[0][1] and "-incoming defer" in launches[1][1]
    assert "blockdev-mirror" not in said(steps, "a")
    assert said(steps, "a").index("x-blockdev-change") < said(steps, "a").index("migrate")
    assert said(steps, "b").index("block-export-add") < said(steps, "b").index("migrate-incoming")


def test_a_start_from_unequal_images_mirrors_them_while_the_guest_runs() -> None:
    steps = dialogue(SPEC, GROUND, "start", P.DOWN, in_sync=False)
    assert all(
        "-S" not in step["launch"] for step in steps if step["node"] == "a" and "launch" in step
    )
    words = said(steps, "a")
    assert words.count("blockdev-mirror") == words.count("block-job-cancel") == len(SPEC.disks)
    assert words.index("stop") < words.index("x-blockdev-change") < words.index("cont")


def test_a_guest_that_runs_alone_is_only_protected() -> None:
    steps = dialogue(SPEC, GROUND, "start", P.UNPROTECTED, primary="b")
    assert [step["node"] for step in steps if "launch" in step] == ["a"]
    assert "migrate" in said(steps, "b") and "block-dirty-bitmap-add" in said(steps, "b")


def test_a_guest_that_must_boot_alone_is_not_held() -> None:
    spec = replace(SPEC, guest=replace(SPEC.guest, ready_line="ready"))
    steps = dialogue(spec, replace(GROUND, facts=same_on_both(BINARY, "tcg")), "start", P.DOWN)
    assert not any("-S" in step.get("launch", ()) for step in steps)
    assert any("console says 'ready'" in step.get("act", "") for step in steps)


def test_the_channel_of_the_pair_is_the_one_that_is_shown() -> None:
    tcp = replace(SPEC, replication=ReplicationSpec(channel=MigrationTransport.TCP))
    assert "getfd" in said(dialogue(SPEC, GROUND, "start", P.DOWN), "a")
    assert "getfd" not in said(dialogue(tcp, GROUND, "start", P.DOWN), "a")


@pytest.mark.parametrize("to", ["a", "b"])
async def test_a_failover_says_what_it_announced(to: NodeName, tmp_path: Path) -> None:
    """Questions that an act asks besides, to see where it stands, are not part of the dialogue."""
    spec: PairSpec = make_spec()
    planned = dialogue(spec, GROUND, "failover", P.COLO, to)
    log: Log = []

    everything_there = plan.peer_instances_primary(spec) + plan.peer_instances_secondary(spec)
    answers = {"query_yank": everything_there}
    async with (
        fake_state(tmp_path, spec, log=log) as state,
        fake_vm("a", log, **answers) as a,
        fake_vm("b", log, **answers) as b,
    ):
        seat_pair(state, a, b)
        log.clear()
        await acts.failover(state, to)
    spoken = [line.removeprefix(f"{to}: ") for line in log if line.startswith(f"{to}: ")]
    changing = [line for line in spoken if not line.startswith("query-") and " " not in line]
    assert changing == [name for name in said(planned, to) if not name.startswith("query-")]
    fenced = f"{'b' if to == 'a' else 'a'}: killed"
    assert log.index(fenced) < log.index(f"{to}: yank")


@pytest.mark.parametrize(("primary", "to"), list(itertools.product("ab", "ab")))
def test_the_survivor_of_a_failover_is_promoted_by_its_role(
    primary: NodeName, to: NodeName
) -> None:
    steps = dialogue(SPEC, GROUND, "failover", P.COLO, to, primary=primary)
    role = Role.PRIMARY if primary == to else Role.SECONDARY
    assert ("nbd-server-stop" in said(steps, to)) is (role is Role.SECONDARY)
    assert said(steps, "b" if to == "a" else "a") == []


@pytest.mark.parametrize("primary", ["a", "b"])
def test_a_stop_never_leaves_a_secondary_that_could_take_over(primary: NodeName) -> None:
    steps = dialogue(SPEC, GROUND, "stop", P.COLO, primary=primary)
    ended = [step["node"] for step in steps if step.get("act", "").startswith("SIGKILL")]
    assert ended == ["b" if primary == "a" else "a", primary]


@pytest.mark.parametrize("state", P)
def test_ending_the_protection_gives_up_a_secondary_that_joins(state: Protection) -> None:
    """A guest that runs alone is left as it is; one in COLO is failed over to where it runs."""
    steps = dialogue(SPEC, GROUND, "unprotect", state)
    killed = [step["node"] for step in steps if step.get("act", "").startswith("SIGKILL")]
    assert killed == (["b"] if state in (P.RESYNC, P.MIGRATING, P.COLO) else [])
    assert bool(steps) is bool(killed)
    if killed:
        assert "yank" in said(steps, "a") and "quit" not in said(steps, "a")
        assert not said(steps, "b")


def test_stopping_what_does_not_run_says_nothing() -> None:
    assert dialogue(SPEC, GROUND, "stop", P.DOWN) == []


@pytest.mark.parametrize(
    ("verb", "state", "error"),
    [
        ("start", P.COLO, PairBusy),
        ("start", P.FAILOVER, PairBusy),
        ("failover", P.UNPROTECTED, FailoverRefused),
        ("failover", P.MIGRATING, FailoverRefused),
        ("checkpoint", P.UNPROTECTED, NotProtected),
        ("fly", P.COLO, UsageError),
    ],
)
def test_a_dialogue_that_would_not_begin(
    verb: str, state: Protection, error: type[Exception]
) -> None:
    with pytest.raises(error):
        dialogue(SPEC, GROUND, verb, state)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (P.COLO, ["migrate-set-parameters", *["qom-set"] * 6]),
        (P.UNPROTECTED, ["qom-set"] * 6),
        (P.RESYNC, [*["qom-set"] * 6, *["block-job-set-speed"] * 2]),
        (P.DOWN, []),
    ],
)
def test_what_is_set_is_said_where_there_is_somebody_to_hear_it(state: P, words: list[str]) -> None:
    assert said(dialogue(SPEC, GROUND, "set", state, changed=EVERYTHING), "a") == words
    assert dialogue(SPEC, GROUND, "set", state, changed=SPEC) == []


async def test_a_set_says_what_it_announced(tmp_path: Path) -> None:
    spec = make_spec(nics=2)
    planned = dialogue(spec, GROUND, "set", P.COLO, changed=with_settings(spec, CHANGES))
    log: Log = []

    async with in_colo(tmp_path, spec, log) as (state, a, _):
        a.takes_checkpoints()
        log.clear()
        await acts.set_values(state, CHANGES)
    spoken = [line.removeprefix("a: ") for line in log if line.startswith("a: ")]
    assert spoken == said(planned, "a")


@pytest.mark.parametrize("guard", [True, False])
def test_a_plan_is_as_cautious_as_the_start_itself(guard: bool) -> None:
    checkpoint = replace(SPEC.checkpoint, delay_ms=5000, guard_first_connection=guard)
    steps = dialogue(replace(SPEC, checkpoint=checkpoint), GROUND, "start", P.DOWN)
    given = [step["command"].get("arguments", {}) for step in steps if "command" in step]
    delays = {one["x-checkpoint-delay"] for one in given if "x-checkpoint-delay" in one}
    assert delays == {1000 if guard else 5000}
