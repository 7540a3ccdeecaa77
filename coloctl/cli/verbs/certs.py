"""Define `coloctl certs`: make the CA of a deployment and its machines' certificates, renew, show.

Calls `certs.store`, which writes the files, and `certs.read`, which reads them.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coloctl.cli.options import Duration, format_option
from coloctl.errors import PreconditionFailed, UsageError

if TYPE_CHECKING:
    from coloctl.certs.read import CertFacts
    from coloctl.certs.store import Authority, Made

_ca_option = click.option(
    "--ca",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="The CA's folder.  [default: /etc/coloctl/ca; ~/.config/coloctl/ca without root]",
)


@click.group()
def certs() -> None:
    """Make, renew and show the certificates that encrypt a pair on two machines.

    One CA signs the certificate of each machine. The CA's key stays in its folder on this machine;
    each machine gets three files: ca-cert.pem, cert.pem and key.pem.
    """


@certs.command(short_help="Make the CA, and a certificate for each machine.")
@click.argument("machines", nargs=-1, required=True, metavar="NAME[=ADDR,...]...")
@_ca_option
@format_option("pretty", "json")
def init(machines: tuple[str, ...], folder: Path | None, form: str) -> None:
    """Make the CA where there is none, and a key and a certificate for each machine.

    NAME is the machine's name, as `host = "ssh://NAME"` has it; ADDR its addresses for replication.
    A certificate that is there already and serves stays. The certificate of this machine is
    installed in /etc/coloctl/tls at once.
    """
    from coloctl.certs import store

    wanted = [store.parse_machine(text) for text in machines]
    if twice := {name for name, _ in wanted if [one for one, _ in wanted].count(name) > 1}:
        raise UsageError(f"{sorted(twice)[0]} is named twice.", hint="name each machine once")
    authority, now = _authority(folder), _now()
    made_ca = not authority.exists()
    if made_ca:
        authority.make(now)
    made = [authority.provide(name, addresses, now) for name, addresses in wanted]
    _report(authority, made, made_ca=made_ca, form=form)


@certs.command(short_help="Make new certificates for machines whose own end soon.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--before",
    type=Duration(),
    default="720h",
    show_default="30 days",
    metavar="T",
    help="Renew those that end within this time.",
)
@_ca_option
@format_option("pretty", "json")
def renew(names: tuple[str, ...], before: float, folder: Path | None, form: str) -> None:
    """Make a new key and certificate, with the same addresses, from the same CA.

    NAMEs are renewed in any case; without one, every machine whose certificate ends soon. A running
    pair goes on with its old certificate until its next secondary starts.
    """
    from coloctl.certs import store

    authority, now = _existing(folder), _now()
    known = authority.machines()
    for name in names:
        if name not in known:
            raise UsageError(
                f"The CA in {authority.folder} has made no certificate for {name}.",
                hint=f"`coloctl certs init {name}=ADDRESS` makes one",
            )
    made = []
    for name in names or known:
        found = _read(authority.folder_of(name) / store.CERT)
        if names or (found.until - now).total_seconds() < before:
            made.append(authority.provide(name, found.addresses, now, renew=True))
    _report(authority, made, made_ca=False, form=form)


@certs.command(short_help="Show certificates and when they end.")
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[PEM|FOLDER]")
@_ca_option
@format_option("pretty", "json")
def show(file: Path | None, folder: Path | None, form: str) -> int:
    """Show certificates with their names, addresses and end.

    Without an argument: this machine's own, and those of the CA that is here. Exit code 3 if one
    ends within 30 days, 1 if one has ended.
    """
    from coloctl.certs import store
    from coloctl.certs.read import SOON_DAYS

    if file is not None:
        files = [file / store.CERT if file.is_dir() else file]
    else:
        authority = _authority(folder)
        own = [store.machine_dir() / store.CERT, authority.folder / store.CA_CERT]
        files = [one for one in own if one.exists()]
        files += [authority.folder_of(name) / store.CERT for name in authority.machines()]
    if not files:
        raise PreconditionFailed(
            "There is no certificate here.",
            hint="`coloctl certs init hv1=ADDRESS hv2=ADDRESS` makes a CA and two",
        )
    now = _now()
    found = [(one, _read(one)) for one in files]
    if form == "json":
        documents = [_document(path, facts, now) for path, facts in found]
        click.echo(json.dumps({"schema": 1, "certificates": documents}))
    else:
        for path, facts in found:
            click.echo("\n".join(_lines(path, facts, now)))
    left = min(facts.days_left(now) for _, facts in found)
    return 1 if left < 0 else 3 if left < SOON_DAYS else 0


def _report(authority: Authority, made: list[Made], *, made_ca: bool, form: str) -> None:
    """Install the certificate of this machine, and print what was made."""
    from coloctl.certs import store

    here = [one for one in made if store.is_here(one.name)]
    for one in here:
        store.install_from(one.folder, store.machine_dir())
    if form == "json":
        now = _now()
        click.echo(
            json.dumps(
                {
                    "schema": 1,
                    "ca": str(authority.folder),
                    "ca_made": made_ca,
                    "machines": [
                        {
                            **_document(one.folder / store.CERT, one.facts, now),
                            "made": one.new,
                            "installed": str(store.machine_dir()) if one in here else None,
                        }
                        for one in made
                    ],
                }
            )
        )
        return
    if made_ca:
        click.echo(f"A CA is made in {authority.folder}. Its key stays there; no machine needs it.")
    for one in made:
        state = "is made" if one.new else "is there already"
        click.echo(f"{one.name}: its certificate {state}, and ends on {one.facts.until:%Y-%m-%d}.")
        if one in here:
            click.echo(f"  installed here, in {store.machine_dir()}")
        else:
            click.echo(f"  copy to that machine's /etc/coloctl/tls: {one.folder}")
    if not made:
        click.echo("No certificate ends soon; none was made.")


def _authority(folder: Path | None) -> Authority:
    from coloctl.certs import store

    return store.Authority(folder.absolute() if folder is not None else store.authority_dir())


def _existing(folder: Path | None) -> Authority:
    authority = _authority(folder)
    if not authority.exists():
        raise PreconditionFailed(
            f"There is no CA in {authority.folder}.",
            hint="`coloctl certs init hv1=ADDRESS hv2=ADDRESS` makes one, or name it with --ca",
        )
    return authority


def _read(file: Path) -> CertFacts:
    from coloctl.certs import read

    try:
        return read.facts(file.read_bytes(), str(file))
    except OSError as error:
        raise PreconditionFailed(f"{file} cannot be read: {error.strerror}.") from None


def _document(path: Path, facts: CertFacts, now: datetime) -> dict[str, Any]:
    return {
        "file": str(path),
        "name": facts.name,
        "names": list(facts.names),
        "addresses": list(facts.addresses),
        "subject": facts.subject,
        "issuer": facts.issuer,
        "serial": facts.serial,
        "since": facts.since.isoformat(),
        "until": facts.until.isoformat(),
        "days_left": facts.days_left(now),
    }


def _lines(path: Path, facts: CertFacts, now: datetime) -> list[str]:
    days = facts.days_left(now)
    left = "ended" if days < 0 else f"{days} days left"
    return [
        f"{facts.name or facts.subject}  {path}",
        f"  until {facts.until:%Y-%m-%d} ({left}), from {facts.issuer}",
        *([f"  names {', '.join(facts.names)}"] if facts.names else []),
        *([f"  addresses {', '.join(facts.addresses)}"] if facts.addresses else []),
    ]


def _now() -> datetime:
    return datetime.now(UTC)
