"""Behaviours of the configuration: defaults, precedence, and every mistake told at once with its path."""

import re
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postrider.domain.errors import UsageError
from postrider.edges.config import SECTIONS, load_config, parse_config
from postrider.edges.durations import format_duration, parse_duration
from postrider.edges.resources import config_dir

DSN = "postgresql://postrider:hunter2@localhost/crm"


def mistakes_of(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_config(tomllib.loads(text), "test.toml")
    return str(caught.value)


def annotated() -> str:
    return (config_dir() / "postrider.toml").read_text()


def test_annotated_file_is_valid_as_it_stands() -> None:
    assert load_config(config_dir() / "postrider.toml", {}).database.pool_size == 4


def test_annotated_file_states_every_key_with_its_default() -> None:
    # Keys without a default to show stand commented out.
    stated = tomllib.loads(re.sub(r"^#(\w+ = )", r"\1", annotated(), flags=re.M))
    plain = tomllib.loads(annotated())
    assert set(stated) == set(SECTIONS)
    for section, kind in SECTIONS.items():
        assert set(stated[section]) == {each.name for each in fields(kind)}
        for each in fields(kind):
            if each.default is MISSING:
                continue
            if each.name in plain.get(section, {}):
                assert each.metadata["read"](plain[section][each.name]) == each.default, each.name


def test_every_mistake_is_told_at_once_with_its_path() -> None:
    message = mistakes_of(
        """
        [database]
        dsn = "mysql://root:hunter2@localhost/crm"
        [delivery]
        timeout = 15
        concurency = 3
        max_response_bytes = -1
        [network]
        allow = ["10.0.0.0/8", "192.168.1.7/16"]
        https_only = "yes"
        [retry]
        schedule = ["0s", "soon"]
        [loging]
        level = "info"
        """
    )
    assert "7 mistakes" not in message
    for expected in (
        "database.dsn: expected a URL",
        "delivery.timeout: expected a duration",
        'delivery.concurency: unknown; did you mean "concurrency"?',
        "delivery.max_response_bytes: expected a whole number from 0 to 1048576, found -1",
        'network.allow[1]: expected an address range without host bits: "192.168.0.0/16"',
        "network.https_only: expected true or false, found 'yes'",
        "retry.schedule[1]: expected a duration",
        '[loging]: unknown; did you mean "log"?',
    ):
        assert expected in message
    assert "8 mistakes" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "database.dsn: missing"),
        ("database = 3", "database: expected a section [database], found 3"),
        (f'[database]\ndsn = "{DSN}"\npool_size = true', "database.pool_size: expected a whole number"),
        (f'[database]\ndsn = "{DSN}"\n[admin]\nlisten = "8710"', "admin.listen: expected"),
        (f'[database]\ndsn = "{DSN}"\n[network]\nproxy = "socks5://x:1"', "network.proxy: expected a URL"),
        (
            f'[database]\ndsn = "{DSN}"\n[network]\nca_file = "/nonexistent"',
            "network.ca_file: expected a file",
        ),
        (f'[database]\ndsn = "{DSN}"\n[log]\nlevel = "loud"', 'log.level: expected one of "debug"'),
        (f'[database]\ndsn = "{DSN}"\n[delivery]\ntimeout = "1s"', "connect_timeout: expected no more than"),
        (
            f'[database]\ndsn = "{DSN}"\n[retention]\nevents = "2d"',
            "retention.attempts: expected no more than",
        ),
        (f'[database]\ndsn = "{DSN}"\n[retry]\nschedule = []', "retry.schedule: expected 1 to 100 durations"),
        (f'[database]\ndsn = "{DSN}"\n[retry]\njitter = nan', "retry.jitter: expected a number from 0 to 1"),
    ],
)
def test_an_impossible_value_is_refused(text: str, expected: str) -> None:
    assert expected in mistakes_of(text)


def test_environment_overrides_the_dsn(tmp_path: Path) -> None:
    file = tmp_path / "postrider.toml"
    file.write_text('[database]\ndsn = "postgresql://one/a"\n')
    environ = {"POSTRIDER_DATABASE_DSN": "postgresql://two/b", "POSTRIDER_CONFIG": str(file)}
    assert load_config(None, environ).database.dsn == "postgresql://two/b"
    assert load_config(file, {}).database.dsn == "postgresql://one/a"


def test_a_named_file_must_exist_even_when_the_dsn_is_given(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no configuration file"):
        load_config(tmp_path / "missing.toml", {"POSTRIDER_DATABASE_DSN": DSN})


def test_broken_toml_is_told_with_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "postrider.toml"
    file.write_text("[database\n")
    with pytest.raises(UsageError, match=r"is not TOML: .*line 1"):
        load_config(file, {})


def test_the_password_is_not_in_the_repr() -> None:
    assert "hunter2" not in repr(parse_config({"database": {"dsn": DSN}}, "test"))


@given(st.integers(1, 10_000), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_a_duration_survives_a_round_trip(amount: int, unit: str) -> None:
    seconds = parse_duration(f"{amount}{unit}")
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "15", "s", "-1s", "1 s", "1S", "١s", "1e3s", "15s\n", "inf"])  # noqa: RUF001 (on purpose)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)
