"""Define the verb `agent`: what serves this machine to a supervisor on another one.

Calls `host.agent.main`; a coloctl on another machine starts it over ssh.
"""

from __future__ import annotations

import click

from coloctl.host.agent.main import main


@click.command()
def agent() -> int:
    """Serve this machine to the coloctl at the other end of standard input and output.

    A coloctl on another machine starts this over ssh; it is not for typing. To let a key do nothing
    else, write it so into ~/.ssh/authorized_keys:

    \b
    restrict,command="coloctl agent" ssh-ed25519 AAAA... coloctl
    """
    return main()
