"""postrider help: what --help says, for people who ask for it this way."""

from collections.abc import Sequence

import click

from postrider.cli.groups import CONFIG, Commands


@click.command()
@click.argument("names", metavar="[COMMAND]…", nargs=-1)
@click.option("--config", expose_value=False, **CONFIG)
@click.pass_context
def help(ctx: click.Context, names: Sequence[str]) -> None:  # noqa: A001 (the command's name)
    """Show the help of a command, as `postrider COMMAND --help` does.

    Example: postrider help endpoint add
    """
    shown = ctx.find_root()
    for name in names:
        group = shown.command
        if not isinstance(group, Commands):
            raise click.UsageError(f"{shown.command_path} has no commands.", shown)
        shown = click.Context(group.known(shown, name), parent=shown, info_name=name)
    click.echo(shown.get_help())
