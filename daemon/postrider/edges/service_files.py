"""Postrider as a service of systemd: the system user, its configuration, and the units.

Every step can be done again: what is there stays as it is, and is said to be.
"""

import grp
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from postrider.domain.errors import PostriderError, UsageError
from postrider.edges.resources import config_dir, systemd_dir

CONFIG_DIR = Path("/etc/postrider")
USER = "postrider"
UNITS = ("postrider.service", "postrider@.service")
_UNIT_DIR = Path("/etc/systemd/system")
_SYSUSERS = Path("/etc/sysusers.d/postrider.conf")
_TMPFILES = Path("/etc/tmpfiles.d/postrider.conf")
_PORT = 8710
_UNIT_PROGRAM = "/opt/postrider/bin/postrider"
"""As the units have it; an installation elsewhere puts its own there."""
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 (places, not files)
"""What the units' sandbox hides (ProtectHome, PrivateTmp)."""


def install_service(instance: str | None) -> Iterator[str]:
    """Do what is missing, and say each thing. Raises UsageError before anything was done, PostriderError
    where a step fails."""
    name = instance or "postrider"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
        raise UsageError(
            f"{name!r} can't name an instance", "Use letters, digits, dots, dashes and underscores."
        )
    if os.geteuid() != 0:
        raise UsageError("init --service makes a user and writes into /etc: only root may", "Run it as root.")
    program = _program()
    tools = [_tool(each) for each in ("systemd-sysusers", "systemd-tmpfiles", "systemctl")]
    try:
        yield from _install(name, program, *tools)
    except OSError as error:
        raise PostriderError(
            f"{error.filename} can't be written: {error.strerror}",
            "Mend that and run it again; it goes on where it stopped.",
        ) from None


def _install(name: str, program: Path, sysusers: str, tmpfiles: str, systemctl: str) -> Iterator[str]:
    yield _write(_SYSUSERS, _shipped("postrider.sysusers.conf"))
    known = _group() is not None
    _run(sysusers, str(_SYSUSERS))
    yield f"the system user {USER} is there" if known else f"made the system user {USER}"
    yield _write(_TMPFILES, _shipped("postrider.tmpfiles.conf"))
    before = _modes()
    _run(tmpfiles, "--create", str(_TMPFILES))
    yield from (
        f"{'changed' if path in before else 'made'} {path}: {mode}"
        for path, mode in _modes().items()
        if before.get(path) != mode
    )
    yield _write(CONFIG_DIR / f"{name}.toml", _configuration(), mode=0o640, group=_group())
    _demand_runnable(program)
    units = [_write(_UNIT_DIR / unit, _shipped(unit).replace(_UNIT_PROGRAM, str(program))) for unit in UNITS]
    yield from units
    # The directory is there where systemd runs, as sd_booted(3) tells.
    if any(said.startswith("wrote") for said in units) and Path("/run/systemd/system").is_dir():
        _run(systemctl, "daemon-reload")
        yield "had systemd read its units again"


def _program() -> Path:
    """The command that units start; UsageError where their sandbox would hide it."""
    program = Path(sys.prefix) / "bin" / "postrider"
    if not program.is_file():
        raise UsageError(
            f"there is no {program}",
            "Install Postrider into a venv, such as /opt/postrider, and run it from there.",
        )
    for path in (program, Path(sys.executable).resolve()):
        if str(path).startswith(tuple(f"{place}/" for place in _HIDDEN)):
            raise UsageError(
                f"{path} lies where a service can't see it",
                "Install Postrider for all users: python3 -m venv /opt/postrider",
            )
    return program


def _tool(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        raise UsageError(
            f"this host has no {name}",
            "Run Postrider by another supervisor; `postrider init FILE` writes the configuration alone.",
        )
    return path


def _run(*command: str) -> None:
    done = subprocess.run(  # noqa: S603 (of this module)
        command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise PostriderError(
            f"{' '.join(command)} failed: {done.stderr.strip()}", "Mend that and run it again."
        )


def _demand_runnable(program: Path) -> None:
    try:
        done = subprocess.run(  # noqa: S603 (it is this very program)
            [program, "--version"],
            check=False, capture_output=True, text=True, cwd="/", user=USER, group=USER, extra_groups=(),
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        reason = done.stderr.strip().rpartition("\n")[2] if done.returncode else None
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise PostriderError(
            f"the user {USER} can't run {program}: {reason}",
            "Let all users read it (chmod -R go+rX on the venv, and go+x on what it lies in); run it again.",
        )


def _group() -> int | None:
    with suppress(KeyError):
        return grp.getgrnam(USER).gr_gid
    return None


def _modes() -> dict[Path, str]:
    """Who may do what with the configuration, as people write it."""
    with suppress(FileNotFoundError):
        return {path: _mode(path) for path in (CONFIG_DIR, *sorted(CONFIG_DIR.iterdir()))}
    return {}


def _mode(path: Path) -> str:
    facts = path.stat()
    try:
        group = grp.getgrgid(facts.st_gid).gr_name
    except KeyError:
        group = str(facts.st_gid)
    return f"{stat.S_IMODE(facts.st_mode):04o} {path.owner()}:{group}"


def _shipped(name: str) -> str:
    return (systemd_dir() / name).read_text(encoding="utf-8")


def _configuration() -> str:
    """The annotated configuration, with a port that no other instance of this host has."""
    text = (config_dir() / "postrider.toml").read_text(encoding="utf-8")
    taken = {_listen_port(path) for path in CONFIG_DIR.glob("*.toml")}
    port = next(each for each in range(_PORT, 65_536) if each not in taken)
    return text.replace(f'listen = "127.0.0.1:{_PORT}"', f'listen = "127.0.0.1:{port}"')


def _listen_port(path: Path) -> int | None:
    with suppress(OSError, ValueError, AttributeError):
        listen = tomllib.loads(path.read_text(encoding="utf-8")).get("admin", {}).get("listen", f":{_PORT}")
        return int(listen.rpartition(":")[2])
    return None


def _write(path: Path, text: str, *, mode: int = 0o644, group: int | None = None) -> str:
    """Write a new file, whole or not at all; say what was done."""
    if path.exists() or path.is_symlink():
        same = path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text
        return f"{path} is there" if same else f"kept {path} as it is"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            if group is not None:
                os.fchown(file.fileno(), 0, group)
            os.fchmod(file.fileno(), mode)
        os.link(unfinished, path)  # unlike a rename it replaces nothing
    finally:
        unfinished.unlink(missing_ok=True)
    return f"wrote {path}" + (f" ({_mode(path)})" if group is not None else "")
