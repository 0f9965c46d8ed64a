"""Where the files beside the code are: `config`, `sql` and `systemd`."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def config_dir() -> Path:
    return _data_root() / "config"


def sql_dir() -> Path:
    return _data_root() / "sql"


def systemd_dir() -> Path:
    return _data_root() / "systemd"


def _data_root() -> Path:
    installed = _PACKAGE / "_data"
    return installed if installed.is_dir() else _PACKAGE.parent.parent
