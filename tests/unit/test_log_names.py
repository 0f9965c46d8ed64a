"""The README lists every event name that the code logs, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEVELS = "debug|info|warning|error|exception|critical"


def test_the_readme_lists_the_names_of_all_log_events() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "daemon").rglob("*.py"))
    logged = set(re.findall(rf'\blog\.(?:{LEVELS})\(\s*"([a-z_.]+)"', code))
    logged |= set(re.findall(r'\blog\.log\([^"]*"([a-z_.]+)"', code))  # the level is decided
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("| event | level | when |") :].split("\n\n")[0]
    listed = {
        name
        for row in table.splitlines()[2:]
        for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", row.split("|")[1])
    }
    assert listed - {"library.message"} == logged
