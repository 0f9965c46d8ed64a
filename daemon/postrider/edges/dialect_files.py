"""Reads dialect files: those that ship with Postrider, and those of `dialect.paths`."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from postrider.domain.dialects import Dialect, parse_dialect, with_values
from postrider.domain.errors import UsageError
from postrider.edges.resources import config_dir


def load_dialects(
    paths: Iterable[str | Path], values: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, Dialect]:
    """Dialects by name. A path is a TOML file or a directory of them; the last one of a name wins. `values`
    replace a dialect's own.

    Raises UsageError for a path that can't be read, for a file that is not a dialect, and for values of
    dialects that don't have them.
    """
    files = sorted((config_dir() / "dialects").glob("*.toml"))
    for path in map(Path, paths):
        if not path.exists():
            raise UsageError(
                f"dialect.paths: {path} does not exist", "Name a TOML file or a directory of them."
            )
        files += sorted(path.glob("*.toml")) if path.is_dir() else [path]
    dialects = {}
    for file in files:
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} can't be read: {error}", "Make it a readable UTF-8 file.") from None
        dialect = parse_dialect(text, str(file))
        dialects[dialect.name] = dialect
    for name, own in (values or {}).items():
        section = f"dialect.values.{name}"
        dialects[name] = with_values(_known(dialects, name, section), own, section)
    return dialects


def default_dialect(dialects: Mapping[str, Dialect], name: str) -> Dialect:
    """The dialect of `dialect.default`. Raises UsageError if there is none of that name."""
    return _known(dialects, name, "dialect.default")


def _known(dialects: Mapping[str, Dialect], name: str, where: str) -> Dialect:
    if name not in dialects:
        raise UsageError(
            f"{where}: there is no dialect {name!r}", f"Known are: {', '.join(sorted(dialects))}."
        )
    return dialects[name]
