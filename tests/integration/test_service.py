"""`postrider init --service`, on a copy of this host's /etc that nobody else sees; and what it refuses."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from postrider.domain.dsn import DsnMistake, by_peer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program() -> Iterator[Path]:
    """A venv as an operator makes one, where a service can see it; whatever this run's Python lies in."""
    directory = Path(tempfile.mkdtemp(prefix="postrider-test-", dir="/opt"))
    directory.chmod(0o755)
    for each in ("python", "packages", "venv/bin"):
        (directory / each).mkdir(parents=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (directory / "venv/pyvenv.cfg").write_text(f"home = {directory}/python/bin\n")
    (directory / "venv/bin/python").symlink_to(directory / f"python/bin/{version}")
    site = directory / f"venv/lib/{version}/site-packages"
    shutil.copytree(ROOT / "daemon/postrider", site / "postrider")
    for data in ("config", "sql", "systemd"):
        shutil.copytree(ROOT / data, site / "postrider/_data" / data)
    (site / "packages.pth").write_text(f"{directory}/packages\n")
    script = directory / "venv/bin/postrider"
    script.write_text(f"#!{directory}/venv/bin/python\nfrom postrider.cli import main\nmain()\n")
    script.chmod(0o755)
    yield script
    shutil.rmtree(directory)


def in_private_etc(place: Path, script: str, program: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it with an /etc of its own, which is this host's until it changes it."""
    for each in ("up", "work"):
        (place / each).mkdir(exist_ok=True)
    mounts = [
        f"mount -t overlay postrider-test -o lowerdir=/etc,upperdir={place}/up,workdir={place}/work /etc"
    ]
    if program is not None:
        packages = sysconfig.get_path("purelib")
        mounts += [
            f"mount --bind {sys.base_prefix} {program.parents[2]}/python",
            f"mount --bind {packages} {program.parents[2]}/packages",
        ]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", "\n".join([*mounts, script])],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def needs_private_etc() -> bool:
    if os.geteuid() != 0 or not shutil.which("systemd-sysusers") or not shutil.which("unshare"):
        return True
    with tempfile.TemporaryDirectory() as directory:
        return in_private_etc(Path(directory), "true").returncode != 0


@pytest.mark.skipif(needs_private_etc(), reason="needs root, systemd's tools and overlayfs")
def test_it_makes_what_a_service_needs_and_keeps_what_is_there(program: Path, tmp_path: Path) -> None:
    script = f"""
        {program} init --service
        echo "# mine" >> /etc/postrider/postrider.toml
        {program} init --service --instance emea
        echo "# copied" > /etc/postrider/copied.toml
        {program} init --service
        stat -c "%n %a %U %G" /etc/postrider /etc/postrider/*.toml
        tail -n 1 /etc/postrider/postrider.toml
        grep -h "^listen" /etc/postrider/*.toml
        grep -h "^ExecStart" /etc/systemd/system/postrider*.service
        setpriv --reuid postrider --regid postrider --clear-groups head -c 1 /etc/postrider/emea.toml
        """
    done = in_private_etc(tmp_path, script, program)
    assert done.returncode == 0, done.stderr
    for line in (
        "made the system user postrider",
        "made /etc/postrider: 0750 root:postrider",
        "wrote /etc/postrider/postrider.toml (0640 root:postrider)",
        "wrote /etc/systemd/system/postrider@.service",
        "the system user postrider is there",
        "kept /etc/postrider/postrider.toml as it is",
        "changed /etc/postrider/copied.toml: 0640 root:postrider",
        "/etc/postrider 750 root postrider",
        "/etc/postrider/emea.toml 640 root postrider",
        "# mine",
        'listen = "127.0.0.1:8710"',
        'listen = "127.0.0.1:8711"',
        f"ExecStart={program} run --config /etc/postrider/%i.toml",
    ):
        assert line in done.stdout.splitlines()
    assert not Path("/etc/postrider").exists()


@pytest.mark.skipif(needs_private_etc(), reason="needs root, systemd's tools and overlayfs")
def test_a_program_that_the_service_could_not_run_is_named(program: Path, tmp_path: Path) -> None:
    program.parents[2].chmod(0o700)
    done = in_private_etc(tmp_path, f"{program} init --service", program)
    assert done.returncode == 1
    assert f"the user postrider can't run {program}: Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(needs_private_etc(), reason="needs root, systemd's tools and overlayfs")
def test_only_root_may_make_it_or_act_as_another(program: Path, tmp_path: Path) -> None:
    nobody = f"setpriv --reuid 65534 --regid 65534 --clear-groups {program}"
    script = f"""
        export POSTRIDER_DATABASE_DSN=postgresql:///crm
        {nobody} init --service || echo $?
        {nobody} migrate --as postgres || echo $?
        {nobody} capture apply --as postgres || echo $?
        """
    done = in_private_etc(tmp_path, script, program)
    assert done.stdout.split() == ["2"] * 3
    assert done.stderr.count("only root may") == 3


@pytest.mark.parametrize(
    ("dsn", "peer"),
    [
        (
            "postgresql://u:p@localhost:5433/crm?sslmode=prefer",
            "postgresql://postgres@/crm?sslmode=prefer&port=5433",
        ),
        ("postgresql://u@/crm?host=/run/pg&password=p", "postgresql://postgres@/crm?host=/run/pg"),
        ("postgresql://u:p@[::1]/crm", "postgresql://postgres@/crm"),
    ],
)
def test_as_takes_the_socket_of_this_host(dsn: str, peer: str) -> None:
    assert by_peer(dsn, "postgres") == peer


@pytest.mark.parametrize("dsn", ["postgresql://u:p@db.example/crm", "postgresql://u@localhost,b/crm"])
def test_as_is_refused_for_another_host(dsn: str) -> None:
    with pytest.raises(DsnMistake):
        by_peer(dsn, "postgres")
