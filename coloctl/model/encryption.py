"""Describe for people whether what the nodes of a pair send to each other is encrypted; pure.

Called by `supervisor.state` and `supervisor.certificates`; the sentences are shown by `status`.

Rules: a pair on one host sends nothing over a network and needs no sentence, and so does one on
two namespaces of one machine that was not asked to encrypt. A pair on two machines that is not
encrypted is always called so. Example: "Every wire is encrypted. The certificate of node b ends on
2026-12-08: renew it, then unprotect and reprotect the pair."
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from coloctl.model.pair import NodeName, PairSpec

#: A certificate that ends sooner is reported in `status`.
SOON = timedelta(days=14)

PLAIN = "NOT ENCRYPTED: [tls] mode is off."
ENCRYPTED = "Every wire is encrypted."


def sentence(
    spec: PairSpec,
    ends: Mapping[NodeName, datetime] | None = None,
    now: datetime | None = None,
    wrong: str = "",
) -> str:
    """Return the sentences about a pair; empty where nothing crosses a network in plain.

    ``ends`` is when each machine's certificate ends; ``wrong`` is what keeps the next secondary
    from being encrypted.
    """
    if not spec.encrypted():
        return "" if spec.shares_machine() else PLAIN
    said = [ENCRYPTED]
    for node, end in (ends or {}).items():
        if now is not None and end - now < SOON:
            said.append(
                f"The certificate of node {node} ends on {end:%Y-%m-%d}: renew it, then unprotect "
                "and reprotect the pair."
            )
    if wrong:
        said.append(f"The next secondary would be refused: {wrong}")
    return " ".join(said)
