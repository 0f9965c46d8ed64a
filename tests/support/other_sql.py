"""`python -m tests.support.other_sql DIR …` is `postrider …` of a release that has the migrations in DIR."""

import sys
from pathlib import Path

from postrider.edges import resources


def main() -> None:
    directory = Path(sys.argv.pop(1))
    resources.sql_dir = lambda: directory
    from postrider.cli import main as postrider

    postrider()


if __name__ == "__main__":
    main()
