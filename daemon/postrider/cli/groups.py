"""Groups of commands: --config before a command too, and the nearest name of one that there is not."""

import difflib
from pathlib import Path
from typing import Any

import click

_CONFIG = "postrider.config"


def _remember(ctx: click.Context, _: click.Parameter, value: Path | None) -> Path | None:
    """What --config says here, or said before the command."""
    if value is not None:
        ctx.meta[_CONFIG] = value
    found: Path | None = ctx.meta.get(_CONFIG)
    return found


CONFIG: dict[str, Any] = {
    "type": click.Path(path_type=Path, readable=False),  # whoever reads it says what is wrong
    "callback": _remember,
    "help": "Configuration file [$POSTRIDER_CONFIG, else /etc/postrider/postrider.toml].",
}
"""The option --config, of commands and of groups."""


class Commands(click.Group):
    """A group that takes --config for the commands in it."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params.append(click.Option(["--config"], expose_value=False, **CONFIG))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        # An option that is not known is click's to tell.
        if not ctx.resilient_parsing and not name.startswith("-"):
            self.known(ctx, name)
        return super().resolve_command(ctx, args)

    def known(self, ctx: click.Context, name: str) -> click.Command:
        """The command of that name; raises click.UsageError with the nearest one there is."""
        command = self.get_command(ctx, name)
        if command is not None:
            return command
        nearest = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
