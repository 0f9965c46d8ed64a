"""The command line. Each command is imported when it is called, so `--help` and `emit` start fast."""

import importlib
import sys

import click

from postrider import __version__
from postrider.cli.groups import Commands
from postrider.domain.errors import PostriderError
from postrider.edges.log import configure_logging

_COMMANDS = {
    "demo": "postrider.cli.demo",
    "init": "postrider.cli.init",
    "check": "postrider.cli.check",
    "migrate": "postrider.cli.migrate",
    "run": "postrider.cli.run",
    "status": "postrider.cli.status",
    "endpoint": "postrider.cli.endpoint",
    "emit": "postrider.cli.emit",
    "event": "postrider.cli.event",
    "delivery": "postrider.cli.delivery",
    "audit": "postrider.cli.audit",
    "capture": "postrider.cli.capture",
    "dialect": "postrider.cli.dialect",
    "listen": "postrider.cli.listen",
    "uninstall": "postrider.cli.uninstall",
    "trigger": "postrider.cli.trigger",
    "help": "postrider.cli.help",
}
"""Command → module; the module has the click command under the command's name."""


class _Commands(Commands):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(_COMMANDS[cmd_name]), cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="postrider")
def cli() -> None:
    """Delivers a CRM's outgoing webhooks from its own PostgreSQL.

    Exit codes: 0 done, 1 failed, 2 bad usage or configuration, or a program older than the schema.

    \b
    Completion of commands and options, in the file that your shell reads at its start:
      bash  eval "$(_POSTRIDER_COMPLETE=bash_source postrider)"
      zsh   eval "$(_POSTRIDER_COMPLETE=zsh_source postrider)"
      fish  _POSTRIDER_COMPLETE=fish_source postrider | source
    """
    # A command says what went wrong itself; the daemon's log events are for the daemon.
    configure_logging("critical", "auto")


def main() -> None:
    """Run a command; print a person's mistake as a sentence and the next step, never as a traceback."""
    try:
        sys.exit(cli.main(prog_name="postrider", standalone_mode=False))
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of a pipe, such as head, has seen enough.
        sys.stderr.close()
        sys.exit(1)
    except PostriderError as error:
        click.echo(f"postrider: {error.message}", err=True)
        if error.hint:
            click.echo(error.hint, err=True)
        sys.exit(error.exit_code)
