"""Find out as which user the QEMUs of a pair would run.

Called by `check.doctor`; asks `colo.accounts`, as a start does.
"""

from __future__ import annotations

from collections.abc import Mapping

from coloctl.check.finding import Precondition, Severity
from coloctl.colo import accounts
from coloctl.host.base import Host
from coloctl.model.launch import Account
from coloctl.model.pair import NODES, NodeName, PairSpec

NAME = "user"


async def examine_user(spec: PairSpec, hosts: Mapping[NodeName, Host]) -> list[Precondition]:
    """Report the user of each node's QEMU, once where both are alike.

    Raises `PreconditionFailed` for a user that a start would refuse.
    """
    found = {node: await accounts.find(spec, hosts[node]) for node in NODES}
    alike = found["a"] == found["b"] and hosts["a"].machine == hosts["b"].machine
    findings = []
    for node in NODES[:1] if alike else NODES:
        who = "Both QEMUs run" if alike else f"The QEMU of node {node} runs"
        findings.append(_finding(who, found[node], hosts[node], named=spec.guest.user))
    return findings


def _finding(who: str, account: Account | None, host: Host, *, named: str) -> Precondition:
    machine = host.machine
    if account is not None:
        sentence = f"{who} as {account.name} (user id {account.uid}) on {machine.name}."
        return Precondition(NAME, Severity.OK, sentence)
    if machine.euid != 0 or named == accounts.OWN:
        sentence = f"{who} as user id {machine.euid} on {machine.name}, as coloctl does."
        return Precondition(NAME, Severity.OK, sentence)
    return Precondition(
        NAME,
        Severity.OK,  # as every pair of a machine without the account
        f"{who} as root on {machine.name}: a guest that breaks out of it is root there.",
        f"`coloctl host add {machine.name} local` makes an account for it",
    )
