"""Keep in a pair's folder what it was started with: the pair, as parsed, and the facts found.

Called by `control.daemon.spawn`, which writes it, and by `cli.verbs.run` for the supervisor and
each one that follows; finds the pair of an earlier coloctl by `pairfile`.

Invariant: a supervisor that follows does what the first would do. A pair file that was changed, and
a QEMU that was replaced on disk, change nothing for a pair that runs. The files are for the pair's
user alone: they hold the passwords of fence agents.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from coloctl import wholefile
from coloctl.colo.ground import Facts, placed
from coloctl.errors import PreconditionFailed
from coloctl.model.dialect import Dialect
from coloctl.model.pair import PairSpec
from coloctl.model.revive import revive

STARTED = "started.json"
#: The pair file as it was when the pair was started, for people and for `cli.bundling`.
PAIR_FILE = "pair.toml"
#: A symbolic link to the pair file itself.
SOURCE = "source"

_ASKED = {one.name for one in fields(Dialect)}


@dataclass(frozen=True)
class Started:
    """A pair as it was started."""

    pair: PairSpec
    facts: Facts | None = None  #: None: not known; its hosts are to be looked at


def remember(folder: Path, started: Started) -> None:
    """Write ``started`` into ``folder``, with a copy of its pair file and a link to it.

    Raises OSError.
    """
    source = started.pair.source
    if source is not None:
        wholefile.replace(folder / PAIR_FILE, source.read_bytes(), mode=0o600)
        link = folder / SOURCE
        link.unlink(missing_ok=True)
        link.symlink_to(source.absolute())
    write(folder, started)


def write(folder: Path, started: Started) -> None:
    """Write ``started`` alone; raises OSError."""
    text = json.dumps(asdict(started), default=_plain, indent=1)
    wholefile.replace(folder / STARTED, text.encode(), mode=0o600)


def remembered(folder: Path) -> Started | None:
    """Return the pair as it was started; None where ``folder`` does not hold that.

    In the folder of an earlier coloctl the copy of the pair file is parsed. Facts are left out
    where that coloctl found out less than this one needs to know; the hosts are asked again then.
    Raises `PreconditionFailed` and `SpecError` for a file that is damaged.
    """
    file = folder / STARTED
    try:
        document = _with_facts_of_nodes(json.loads(file.read_bytes()))
        started = revive(Started, document)
    except FileNotFoundError:
        return _parsed(folder)
    except OSError as error:
        raise PreconditionFailed(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # no JSON, or not a document of this kind
        raise PreconditionFailed(
            f"{file} is damaged: {error}.",
            hint=f"`rm {file}`: {PAIR_FILE} beside it is read then",
        ) from None
    if started.facts is None:
        return started
    started = replace(started, pair=placed(started.pair, started.facts))
    nodes = document["facts"]["nodes"].values()
    asked = [set(one["binary"]["dialect"]) for one in nodes]
    return started if all(each >= _ASKED for each in asked) else replace(started, facts=None)


def _with_facts_of_nodes(document: Any) -> Any:
    """Leave out facts of an earlier coloctl, which had one QEMU for both nodes."""
    facts = document.get("facts") if isinstance(document, dict) else None
    earlier = isinstance(facts, dict) and "binary" in facts and "nodes" not in facts
    return {**document, "facts": None} if earlier else document


def _parsed(folder: Path) -> Started | None:
    try:
        source = (folder / SOURCE).readlink()
        text = (folder / PAIR_FILE).read_text()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PreconditionFailed(f"{folder} holds no copy of its pair file: {error}.") from None
    from coloctl import pairfile  # costs a supervisor that follows a killed one 0.3 s of processor

    return Started(pairfile.parse(text, source.parent, source))


def _plain(value: object) -> object:
    """Return a path as text and a set as a sorted list."""
    return sorted(map(str, value)) if isinstance(value, frozenset) else str(value)
