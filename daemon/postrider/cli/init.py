"""postrider init: writes an annotated configuration file, or makes all that a service needs."""

import os
from pathlib import Path

import click

from postrider.domain.errors import PostriderError, UsageError
from postrider.edges.resources import config_dir
from postrider.edges.service_files import CONFIG_DIR, install_service


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--force", is_flag=True, help="Overwrite the file if it exists.")
@click.option("--service", is_flag=True, help="Make all that a service of systemd needs; as root.")
@click.option("--instance", metavar="NAME", help="With --service: the configuration of postrider@NAME.")
def init(file: Path | None, force: bool, service: bool, instance: str | None) -> None:
    """Write FILE, a configuration with every key, its default and why [postrider.toml; - for stdout].

    The file is readable by its owner alone, since it may hold a password.

    With --service: the system user postrider, /etc/postrider/postrider.toml, which it may read, and the
    units postrider and postrider@NAME of systemd. Each thing is said, and what is there is kept.

    Example: postrider init --service
    """
    if service:
        if file is not None or force:
            raise UsageError(
                "--service writes to /etc/postrider and overwrites nothing", "Leave out FILE and --force."
            )
        _init_service(instance)
    elif instance is not None:
        raise UsageError("--instance belongs to --service", "postrider init --service --instance NAME")
    else:
        _init_file(file or Path("postrider.toml"), force)


def _init_service(instance: str | None) -> None:
    for step in install_service(instance):
        click.echo(step)
    name = instance or "postrider"
    unit = f"postrider@{instance}" if instance else "postrider"
    click.echo(
        f"Next: set database.dsn in {CONFIG_DIR / name}.toml, then\n"
        f"  postrider migrate --as postgres{f' --config {CONFIG_DIR / name}.toml' if instance else ''}\n"
        '  runuser -u postgres -- psql -c "CREATE USER postrider IN ROLE postrider_daemon"\n'
        f"  systemctl enable --now {unit}",
        err=True,
    )


def _init_file(file: Path, force: bool) -> None:
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
