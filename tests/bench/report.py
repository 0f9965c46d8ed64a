"""Rows of the table that a bench makes."""

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
_PLACE = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    target: str
    floor: str
    postrider: str
    ratio: str = ""

    def __str__(self) -> str:
        return f"| {self.what} | {self.target} | {self.floor} | {self.postrider} | {self.ratio} |"


HEADER = Row("what", "to reach", "floor", "Postrider", "ratio: median (min to max)")
RULE = "| --- | --- | --- | --- | --- |"


def write_into_readme(rows: Iterable[Row]) -> None:
    """Replace the README's table of figures."""
    table = "".join(f"{row}\n" for row in (HEADER, RULE, *rows))
    README.write_text(_PLACE.sub(lambda _: table, README.read_text()))


def compared(
    what: str, target: str, floors: Sequence[float], figures: Sequence[float], form: str = "{:,.0f}/s"
) -> Row:
    """A row of rounds that took turns: the median of each side, and of the ratios within a round."""
    ratios = [figure / floor for figure, floor in zip(figures, floors, strict=True)]
    median = form.format
    return Row(
        what,
        target,
        median(statistics.median(floors)),
        median(statistics.median(figures)),
        spread(ratios, "{:.2f}"),
    )


def spread(figures: Sequence[float], form: str, unit: str = "") -> str:
    """The median, with the smallest and the largest."""
    median, least, most = (form.format(f) for f in (statistics.median(figures), min(figures), max(figures)))
    return f"{median}{unit} ({least} to {most})"


def percentile(figures: Sequence[float], percent: int) -> float:
    return statistics.quantiles(figures, n=100, method="inclusive")[percent - 1]
