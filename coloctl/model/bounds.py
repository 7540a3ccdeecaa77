"""Give the least and the most that a number in a pair's description may be.

Used by `model.pair` at the fields themselves; `pairfile.keys` and `model.tuning` read them there.

Invariant: a bound stands once, at its field. The standard library alone reads it: pydantic, which
checks pair files, would cost `coloctl status` 40 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_type_hints

#: QEMU takes the speed of a job as a signed number of 64 bits.
RATE_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Between:
    """The least and the most that the number in a field may be: ``Annotated[int, Between(1, 9)]``.

    A dataclass does not check its fields: what comes from outside is checked where it is read.
    """

    ge: float
    le: float


def bounds(owner: type[Any], field: str) -> Between:
    """Return the bounds of ``field`` of the dataclass ``owner``; raises KeyError without any."""
    found = between(get_type_hints(owner, include_extras=True)[field])
    if found is None:
        raise KeyError(f"{owner.__name__}.{field} has no bounds")
    return found


def between(hint: Any) -> Between | None:
    """Return the bounds that a field's type carries; None without any."""
    given = getattr(hint, "__metadata__", ())
    return next((one for one in given if isinstance(one, Between)), None)
