"""Define `coloctl completion`: print the script that completes verbs, options and pair names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from coloctl.errors import UsageError

_VARIABLE = "_COLOCTL_COMPLETE"
_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of a shell; names of pairs are completed as they are now.

    \b
    bash  coloctl completion bash > ~/.local/share/bash-completion/completions/coloctl
    zsh   coloctl completion zsh > ~/.zfunc/_coloctl  (a folder of your fpath)
    fish  coloctl completion fish > ~/.config/fish/completions/coloctl.fish
    """
    from coloctl.cli.verbs import cli

    made = get_completion_class(shell)
    if made is None:
        raise UsageError(f"There is no completion for {shell}.", hint="use bash, zsh or fish")
    click.echo(made(cli, {}, "coloctl", _VARIABLE).source())
