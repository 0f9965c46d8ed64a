"""Behaviours of the configuration: defaults, precedence, and every mistake told at once with its path."""

import re
import stat
import subprocess
import sys
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postrider.domain.capture_sections import parse_captures
from postrider.domain.errors import UsageError
from postrider.edges.config import SECTIONS, load_config, parse_config
from postrider.edges.durations import format_duration, parse_duration, parse_rate
from postrider.edges.resources import config_dir

DSN = "postgresql://postrider:hunter2@localhost/crm"


def mistakes_of(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_config(tomllib.loads(text), "test.toml")
    return str(caught.value)


def annotated() -> str:
    return (config_dir() / "postrider.toml").read_text(encoding="utf-8")


def postrider_init(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = "from postrider.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "init", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_annotated_file_is_valid_as_it_stands() -> None:
    assert load_config(config_dir() / "postrider.toml", {}).database.pool_size == 4


def test_annotated_file_states_every_key_with_its_default() -> None:
    # Keys without a default to show stand commented out.
    stated = tomllib.loads(re.sub(r"^#(\w+ = |\[)", r"\1", annotated(), flags=re.M))
    plain = tomllib.loads(annotated())
    assert set(stated) == {*SECTIONS, "capture"}
    (_,), mistakes = parse_captures(stated["capture"])
    assert not mistakes
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
        endpoint_concurrency = 300
        [network]
        allow = ["10.0.0.0/8", "192.168.1.7/16", "all"]
        https_only = "yes"
        [dialect]
        values = { nutshell = "https://crm.example" }
        [retry]
        schedule = ["0s", "soon"]
        [loging]
        level = "info"
        """
    )
    for expected in (
        "database.dsn: expected a URL",
        "delivery.timeout: expected a duration",
        'delivery.concurency: unknown; did you mean "concurrency"?',
        "delivery.max_response_bytes: expected a whole number from 0 to 1048576, found -1",
        "delivery.endpoint_concurrency: expected at most delivery.concurrency (256), found 300",
        'network.allow[1]: expected an address range without host bits: "192.168.0.0/16"',
        """network.allow[2]: expected an address range such as "10.0.0.0/8", found 'all'""",
        "network.https_only: expected true or false, found 'yes'",
        "dialect.values: expected sections such as [dialect.values.nutshell], found",
        "retry.schedule[1]: expected a duration",
        '[loging]: unknown; did you mean "log"?',
    ):
        assert expected in message
    assert "11 mistakes" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "database.dsn: missing"),
        ("database = 3", "database: expected a section [database], found int"),
        ('[database]\ndsn = "postgresql://u@host:port/crm"', "database.dsn: expected a URL in which special"),
        (f'[database]\ndsn = "{DSN}"\npool_size = true', "database.pool_size: expected a whole number"),
        (f'[database]\ndsn = "{DSN}"\n[admin]\nlisten = "8710"', "admin.listen: expected"),
        (f'[database]\ndsn = "{DSN}"\n[network]\nproxy = "socks5://x:1"', "network.proxy: expected a URL"),
        (
            f'[database]\ndsn = "{DSN}"\n[network]\nca_file = "/nonexistent"',
            "network.ca_file: expected a file",
        ),
        (f'[database]\ndsn = "{DSN}"\n[log]\nlevel = "loud"', 'log.level: expected one of "debug"'),
        (
            f'[database]\ndsn = "{DSN}"\n[delivery]\ntimeout = "1s"',
            "delivery.connect_timeout: expected at most delivery.timeout (1s), found 5s",
        ),
        (
            f'[database]\ndsn = "{DSN}"\n[delivery]\nuser_agent = "Bote für alle"',
            "delivery.user_agent: expected ASCII text",
        ),
        (
            f'[database]\ndsn = "{DSN}"\n[retention]\nevents = "2d"',
            "retention.attempts: expected at most retention.events (2d), found 14d",
        ),
        (
            f'[database]\ndsn = "{DSN}"\n[retry]\nschedule = ["0s", "5s", "0s"]',
            "retry.schedule[2]: expected a wait; only the first may be zero",
        ),
        (f'[database]\ndsn = "{DSN}"\n[retry]\nschedule = []', "retry.schedule: expected 1 to 100 durations"),
        (f'[database]\ndsn = "{DSN}"\n[retry]\njitter = nan', "retry.jitter: expected a number from 0 to 1"),
    ],
)
def test_an_impossible_value_is_refused(text: str, expected: str) -> None:
    assert expected in mistakes_of(text)


@pytest.mark.parametrize("listen", ["8710", ":8710", "localhost", "localhost:99999", "::1:8710", "a b:1"])
def test_an_ambiguous_listen_address_is_refused(listen: str) -> None:
    with pytest.raises(UsageError, match=r"admin\.listen: expected"):
        parse_config({"database": {"dsn": DSN}, "admin": {"listen": listen}}, "test.toml")


@pytest.mark.parametrize("listen", ["", "127.0.0.1:8710", "[::1]:8710", "admin.internal:0"])
def test_a_listen_address_is_a_host_and_a_port_or_nothing(listen: str) -> None:
    config = parse_config({"database": {"dsn": DSN}, "admin": {"listen": listen}}, "test.toml")
    assert config.admin.listen == listen


@pytest.mark.parametrize(
    ("dsn", "safe"),
    [
        (DSN, "postgresql://postrider:***@localhost/crm"),
        ("postgres://u:hunter2@[::1]:5432,b:5433/crm", "postgres://u:***@[::1]:5432,b:5433/crm"),
        (
            "postgresql:///crm?host=/run/postgresql&password=hunter2&sslpassword=hunter2",
            "postgresql:///crm?host=/run/postgresql&password=***&sslpassword=***",
        ),
        ("postgresql://localhost/crm?user=u", "postgresql://localhost/crm?user=u"),
    ],
)
def test_the_safe_dsn_masks_passwords_only(dsn: str, safe: str) -> None:
    assert parse_config({"database": {"dsn": dsn}}, "test.toml").database.safe_dsn == safe


@pytest.mark.parametrize(
    "text",
    [
        'database = "postgresql://u:hunter2@localhost/crm"',
        'dsn = "postgresql://u:hunter2@localhost/crm"',
        '[database]\ndns = "postgresql://u:hunter2@localhost/crm"',
        '[database]\ndsn = "postgresql://u:hunter2/@localhost/crm"',
        '[database]\ndsn = "postgresql://u:x@hunter2@localhost/crm"',
        f'[database]\ndsn = "{DSN}"\n[network]\nproxy = "https://u:hunter2@proxy:3128"',
    ],
)
def test_a_misplaced_password_is_not_in_the_error(text: str) -> None:
    assert "hunter2" not in mistakes_of(text)


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


def test_a_file_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    file = tmp_path / "postrider.toml"
    file.write_bytes(b"# caf\xe9\n")
    with pytest.raises(UsageError, match="is not UTF-8 text: byte 5"):
        load_config(file, {})


def test_a_bad_dsn_of_the_environment_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "postrider.toml"
    file.write_text("")
    with pytest.raises(UsageError, match=r"with \$POSTRIDER_DATABASE_DSN has a mistake"):
        load_config(file, {"POSTRIDER_DATABASE_DSN": "crm"})


def test_passwords_are_not_in_the_repr() -> None:
    table = {"database": {"dsn": DSN}, "network": {"proxy": "http://u:hunter2@proxy:3128"}}
    config = parse_config(table, "test.toml")
    assert config.network.proxy is not None
    assert "hunter2" not in repr(config)


def test_init_writes_a_file_for_its_owner_alone_and_keeps_an_existing_one(tmp_path: Path) -> None:
    file = tmp_path / "postrider.toml"
    written = postrider_init(cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    assert file.read_text() == annotated()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    file.write_text("mine, and longer than before\n" + annotated())
    file.chmod(0o644)
    refused = postrider_init(cwd=tmp_path)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert file.read_text().startswith("mine")

    forced = postrider_init("--force", cwd=tmp_path)
    assert forced.returncode == 0, forced.stderr
    assert file.read_text() == annotated()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_init_prints_to_stdout(tmp_path: Path) -> None:
    assert postrider_init("-", cwd=tmp_path).stdout == annotated()
    assert list(tmp_path.iterdir()) == []


def test_init_in_a_missing_directory_fails_with_a_sentence(tmp_path: Path) -> None:
    failed = postrider_init("missing/postrider.toml", cwd=tmp_path)
    assert failed.returncode == 1
    assert "can't be written: No such file or directory" in failed.stderr
    assert "Traceback" not in failed.stderr


@given(st.integers(0, 999_999_999), st.integers(0, 999), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_a_duration_survives_a_round_trip(whole: int, thousandths: int, unit: str) -> None:
    seconds = parse_duration(f"{whole}.{thousandths:03}{unit}")
    again = format_duration(seconds)
    assert parse_duration(again) == pytest.approx(seconds, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (0.5, "500ms"), (1.5, "1500ms"), (90.0, "90s"), (7200.0, "2h"), (86_400.0, "1d")],
)
def test_a_duration_is_shown_in_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("text", ["", "15", "s", "-1s", "1 s", "1S", "١s", "1e3s", "15s\n", "inf"])  # noqa: RUF001 (on purpose)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "per_s"),
    [
        ("5/s", 5.0),
        ("0.5/s", 0.5),
        ("90/m", 1.5),
        ("1800/h", 0.5),
        ("999999/s", 999_999.0),
        ("0.001/h", 1 / 3.6e6),
    ],
)
def test_a_rate_is_so_many_a_second(text: str, per_s: float) -> None:
    assert parse_rate(text) == pytest.approx(per_s)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "/s",
        "0/s",
        "0.000/m",
        "-1/s",
        "5/d",
        "5/ms",
        "5 /s",
        "5/S",
        "5/s\n",
        "1e3/s",
        "inf/s",
        "none",
        "1000000/s",
    ],
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a rate") as refused:
        parse_rate(text)
    assert "5/s" in refused.value.hint
