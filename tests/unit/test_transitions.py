"""The tables of states are whole, and the code that tells states apart names each of them."""

import ast
from pathlib import Path
from typing import Any

import pytest

from postrider.domain.model import UNSETTLED, DeliveryState, EndpointState
from postrider.domain.transitions import DELIVERY, ENDPOINT, Transitions

PACKAGE = Path(__file__).parents[2] / "daemon/postrider"


@pytest.mark.parametrize("table", [DELIVERY, ENDPOINT], ids=["delivery", "endpoint"])
def test_every_state_can_be_reached_from_nothing(table: Transitions[Any]) -> None:
    reached: set[Any] = {None}
    while more := {after for before, after in table.all() if before in reached} - reached:
        reached |= more
    assert reached - {None} == set(table.states.__members__.values())


def test_no_state_that_a_daemon_works_at_is_a_dead_end() -> None:
    settled = set(DeliveryState) - UNSETTLED
    for state in UNSETTLED:
        reached = {state}
        while more := {after for before, after in DELIVERY.all() if before in reached} - reached:
            reached |= more
        assert settled & reached


def test_what_is_settled_changes_only_by_a_person() -> None:
    for name, move in DELIVERY.moves.items():
        if move.before & (set(DeliveryState) - UNSETTLED):
            assert (name, move.who) == ("retry", "person")


def test_a_deleted_endpoint_stays_deleted() -> None:
    assert all(before is not EndpointState.DELETED for before, _ in ENDPOINT.all())


def _state_matches() -> list[tuple[str, ast.Match]]:
    """The `match` statements that have a state among their cases."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Match):
                named = {
                    each.value.id
                    for case in node.cases
                    for each in ast.walk(case.pattern)
                    if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name)
                }
                if any(name.endswith("State") for name in named):
                    found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", node))
    return found


def test_a_match_over_states_is_exhaustive() -> None:
    matches = _state_matches()
    assert matches
    for place, match in matches:
        assert "assert_never" in ast.unparse(match.cases[-1]), place
