"""Examine what a pair on two hosts would be encrypted with: the certificates of both machines.

Called by `check.doctor`; reads and checks them through `colo.tls`, as a start would.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from coloctl.certs.read import SOON_DAYS
from coloctl.check.finding import Precondition, Severity
from coloctl.colo import tls
from coloctl.host.base import Host
from coloctl.model import encryption
from coloctl.model.pair import NodeName, PairSpec

NAME = "encryption"


async def examine_encryption(spec: PairSpec, hosts: Mapping[NodeName, Host]) -> list[Precondition]:
    """Report the certificate of each node, or that a pair on two machines has none.

    Raises `PreconditionFailed` as a start would.
    """
    if not spec.encrypted():
        if spec.shares_machine():
            return []
        hint = 'set [tls] mode = "auto", after `coloctl certs init`'
        return [Precondition(NAME, Severity.WARNING, encryption.PLAIN, hint)]
    now = datetime.now(UTC)
    found = await tls.proofs(spec, hosts)
    return [_certificate(proof, now) for proof in found.values()]


def _certificate(proof: tls.Proof, now: datetime) -> Precondition:
    left = proof.facts.days_left(now)
    sentence = (
        f"Node {proof.node} proves itself as {proof.name}, by a certificate of "
        f"{proof.facts.issuer} that ends in {left} days."
    )
    if left >= SOON_DAYS:
        return Precondition(NAME, Severity.OK, sentence)
    hint = f"`coloctl certs renew {proof.name}`, and copy it to that machine"
    return Precondition(NAME, Severity.WARNING, sentence, hint)
