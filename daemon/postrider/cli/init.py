"""postrider init: writes an annotated configuration file."""

import os
from pathlib import Path

import click

from postrider.domain.errors import PostriderError, UsageError
from postrider.edges.resources import config_dir


@click.command()
@click.argument("file", default="postrider.toml", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--force", is_flag=True, help="Overwrite the file if it exists.")
def init(file: Path, force: bool) -> None:
    """Write FILE, a configuration with every key, its default and why [postrider.toml; - for stdout].

    The file is readable by its owner alone, since it may hold a password.

    Example: postrider init /etc/postrider/postrider.toml
    """
    text = (config_dir() / "postrider.toml").read_text(encoding="utf-8")
    if str(file) == "-":
        click.echo(text, nl=False)
        return
    flags = os.O_WRONLY | os.O_CREAT | (0 if force else os.O_EXCL)
    try:
        with os.fdopen(os.open(file, flags, 0o600), "w", encoding="utf-8") as target:
            if file.is_file():  # a device keeps its mode and has no length
                os.fchmod(target.fileno(), 0o600)
                target.truncate()
            target.write(text)
    except FileExistsError:
        raise UsageError(f"{file} exists", "Choose another name, or overwrite it with --force.") from None
    except OSError as error:
        raise PostriderError(f"{file} can't be written: {error.strerror}", "Choose another place.") from None
    click.echo(f"wrote {file}; set database.dsn in it, then run `postrider check --config {file}`")
