"""Find out by asking what a QEMU binary, an accelerator and a machine type can do; nothing runs.

Called by `check.doctor`, `check.machine` and `cli.verbs.probe`; asks through `asked`. Each question
is a `StaticCheck` with a name. Their common result is in `conclude`; only a trial (`check.trial`)
proves that COLO works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from coloctl import paths
from coloctl.asked import asked
from coloctl.check.verdict import CheckResult, ColoSupport, FullVerdict, StaticCheck
from coloctl.colo.inspect import kvm_trial, qemu_img, tcg_measurement
from coloctl.colo.known_bugs import Combination, threatening
from coloctl.errors import ColoctlError, CommandRefused, UsageError
from coloctl.host.base import Host
from coloctl.machine import freshcode
from coloctl.machine.accel import Measurement
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.qmp import command as qmp
from coloctl.qmp.dialect import discover, learn_schema
from coloctl.qmp.schema import Schema, load_required, required_missing
from coloctl.qmp.session import Session

#: Of colo-proxy. Asking QEMU 7.2 for colo-compare takes it down; it is built with the rewriter.
OBJECTS = ("filter-mirror", "filter-redirector", "filter-rewriter", "iothread")
DRIVERS = ("quorum", "replication", "nbd", "qcow2")

#: A QEMU that runs for the questions alone answers within milliseconds.
ANSWER_WAIT_S = 10.0


@dataclass(frozen=True)
class Answers:
    """The answers of one binary."""

    schema: Schema
    dialect: Dialect
    missing_objects: tuple[str, ...]
    machines: tuple[str, ...]  #: names and aliases


@dataclass(frozen=True)
class Report:
    """The facts about a binary with an accelerator and a machine type."""

    binary: str
    version: str
    accel: str  #: what ``auto`` stands for here
    machine: str
    checks: tuple[StaticCheck, ...]
    outcome: ColoSupport
    sentence: str
    hint: str = ""
    full: FullVerdict | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object, version 1."""
        return {"schema": 1, **asdict(self)}


async def probe(binary: Path, accel: str, machine: str, host: Host) -> Report:
    """Find what asking alone can show; ``accel`` may be ``auto``. Takes a second or two."""
    try:
        answers = await _ask(binary, host)
    except ColoctlError as error:
        check = StaticCheck("binary", CheckResult.FAIL, error.message, error.hint or "")
        return conclude(Report(str(binary), "", accel, machine, (check,), ColoSupport.FAILS, ""))
    accel, accelerator = await _accelerator(binary, accel, host)
    checks = (
        StaticCheck("binary", CheckResult.OK, f"QEMU {answers.dialect.version} answers."),
        *_colo(answers),
        _machine(answers, machine),
        accelerator,
        *_fresh_code(binary, accel, answers.dialect),
        await _qemu_img(binary, host),
        *_known_bugs(Combination(answers.dialect, accel, machine)),
    )
    version = answers.dialect.version
    return conclude(Report(str(binary), version, accel, machine, checks, ColoSupport.UNKNOWN, ""))


def with_trial(report: Report, full: FullVerdict) -> Report:
    """Add the result of a trial to the report; it outweighs any suspicion."""
    hint = full.hint
    if full.works and (doubt := _first(report.checks, CheckResult.WARN)):
        hint = doubt.hint
    return replace(report, outcome=full.outcome, sentence=full.sentence, hint=hint, full=full)


def conclude(report: Report) -> Report:
    """Return the report with the outcome of its checks: the worst of them."""
    for verdict, outcome in (
        (CheckResult.FAIL, ColoSupport.FAILS),
        (CheckResult.UNKNOWN, ColoSupport.UNKNOWN),
        (CheckResult.WARN, ColoSupport.SUSPECT),
    ):
        if (worst := _first(report.checks, verdict)) is not None:
            hint = worst.hint
            if outcome is ColoSupport.SUSPECT:
                hint += "; --full tries it out"
            return replace(report, outcome=outcome, sentence=worst.sentence, hint=hint)
    return replace(
        report,
        outcome=ColoSupport.WORKS,
        sentence=f"This QEMU has all that COLO needs, {report.machine} under {report.accel}.",
        hint="--full proves it with a small real pair",
    )


def _first(checks: Sequence[StaticCheck], verdict: CheckResult) -> StaticCheck | None:
    return next((check for check in checks if check.verdict is verdict), None)


async def _ask(binary: Path, host: Host) -> Answers:
    async with asked(binary, host) as session:
        schema = await learn_schema(session, ANSWER_WAIT_S)
        listed = await session.execute(qmp.query_machines(), ANSWER_WAIT_S)
        return Answers(
            schema=schema,
            dialect=await discover(session, ANSWER_WAIT_S, schema=schema),
            missing_objects=tuple([name for name in OBJECTS if not await _has(session, name)]),
            machines=tuple(sorted(_names(listed))),
        )


async def _has(session: Session, typename: str) -> bool:
    try:
        await session.execute(qmp.qom_list_properties(typename), ANSWER_WAIT_S)
    except CommandRefused:
        return False
    return True


def _names(machines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for machine in machines:
        yield str(machine["name"])
        if "alias" in machine:
            yield str(machine["alias"])


def _colo(answers: Answers) -> tuple[StaticCheck, ...]:
    """Check what COLO needs of the binary itself."""
    another = "`coloctl lab qemu` fetches a build that has it"
    dialect = answers.dialect
    capability = StaticCheck(
        "capability", CheckResult.OK, "The migration capability x-colo is there."
    )
    if not dialect.x_colo:
        sentence = "This QEMU was built without COLO: there is no capability x-colo."
        capability = StaticCheck("capability", CheckResult.FAIL, sentence, another)
    drivers = [name for name in DRIVERS if not answers.schema.has(f"blockdev-add.driver={name}")]
    ways = {
        ReturnPath.REQUIRED: "with a return path, which x-colo asks for since 11.0",
        ReturnPath.FORBIDDEN: "without a return path, as before 11.0",
    }
    spoken = f"Migrates {ways[dialect.return_path]}; sockets connect again by {dialect.reconnect}."
    return (
        capability,
        _schema(answers.schema),
        _all_there("objects", OBJECTS, answers.missing_objects, another),
        _all_there("block drivers", DRIVERS, drivers, another),
        StaticCheck("dialect", CheckResult.OK, spoken),
    )


def _schema(schema: Schema) -> StaticCheck:
    try:
        required = load_required(paths.data_dir("qmp_schemas") / "required.toml")
    except UsageError as error:
        return StaticCheck(
            "schema", CheckResult.UNKNOWN, error.message, "run it from a checkout of coloctl"
        )
    if missing := required_missing(schema, required):
        more = f" ({len(missing) - 1} more)" if len(missing) > 1 else ""
        return StaticCheck(
            "schema", CheckResult.FAIL, missing[0].sentence() + more, "use a newer QEMU"
        )
    return StaticCheck(
        "schema", CheckResult.OK, f"All {len(required)} commands, arguments and events exist."
    )


def _all_there(name: str, needed: Sequence[str], missing: Sequence[str], hint: str) -> StaticCheck:
    if missing:
        sentence = f"This QEMU was built without {', '.join(missing)}."
        return StaticCheck(name, CheckResult.FAIL, sentence, hint)
    return StaticCheck(name, CheckResult.OK, f"{', '.join(needed)}.")


def _machine(answers: Answers, machine: str) -> StaticCheck:
    wanted = machine.split(",", maxsplit=1)[0]
    if wanted in answers.machines:
        return StaticCheck("machine type", CheckResult.OK, f"{wanted} is known.")
    return StaticCheck(
        "machine type",
        CheckResult.FAIL,
        f"This QEMU knows no machine type {wanted}.",
        "`-machine help` of that QEMU lists what it knows; pc works everywhere",
    )


async def _accelerator(binary: Path, wanted: str, host: Host) -> tuple[str, StaticCheck]:
    """Determine the accelerator that is meant, and measure on ``host`` what it is worth."""
    if wanted == "tcg":
        return wanted, _tcg(await tcg_measurement(host, binary))
    proof = await kvm_trial(host, binary)
    if proof.real:
        return "kvm", StaticCheck("accelerator", CheckResult.OK, proof.sentence)
    if wanted == "auto":
        return "tcg", replace(_tcg(proof.tcg), sentence=f"TCG, because: {proof.sentence}")
    opens = proof.kvm.long_mode
    return wanted, StaticCheck(
        "accelerator",
        CheckResult.WARN if opens else CheckResult.FAIL,
        proof.sentence,
        "firmware runs there, operating systems hang: use --accel tcg with QEMU 11.0 or newer"
        if opens
        else "use --accel tcg with QEMU 11.0 or newer",
    )


def _tcg(measured: Measurement) -> StaticCheck:
    if measured.loop_s is None:
        return StaticCheck(
            "accelerator", CheckResult.FAIL, f"TCG does not run guests: {measured.why_not}."
        )
    sentence = f"TCG runs guests: {measured.turns} loop turns took {measured.loop_s:.3f} s."
    return StaticCheck("accelerator", CheckResult.OK, sentence)


def _fresh_code(binary: Path, accel: str, dialect: Dialect) -> Iterator[StaticCheck]:
    """Check whether a secondary under TCG runs what its memory holds.

    Older QEMUs deadlock before that matters. A pair is not kept from starting without the plugin,
    so its absence raises a doubt only.
    """
    if accel != "tcg" or dialect.return_path is ReturnPath.FORBIDDEN:
        return
    if (why := freshcode.distrust(freshcode.place(binary))) == "":
        sentence = "The fresh-code plugin is in force: a secondary runs what its memory holds."
        yield StaticCheck("fresh code", CheckResult.OK, sentence)
        return
    sentence = f"The fresh-code plugin is not in force, so that {freshcode.WITHOUT}: {why}"
    yield StaticCheck("fresh code", CheckResult.WARN, sentence, freshcode.hint(binary))


async def _qemu_img(binary: Path, host: Host) -> StaticCheck:
    if found := await host.which(str(await qemu_img(host, binary))):
        return StaticCheck("qemu-img", CheckResult.OK, f"{found} is there.")
    return StaticCheck(
        "qemu-img", CheckResult.FAIL, "There is no qemu-img.", "apt-get install qemu-utils"
    )


def _known_bugs(what: Combination) -> Iterator[StaticCheck]:
    bugs = threatening(what)
    for bug in bugs:
        yield StaticCheck("known bug", CheckResult.WARN, bug.verdict(), bug.hint)
    if not bugs:
        yield StaticCheck("known bugs", CheckResult.OK, "None that this combination would meet.")
