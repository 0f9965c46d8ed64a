from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postrider.domain.errors import UsageError
from postrider.domain.matching import Matcher, parse_pattern
from postrider.domain.model import Endpoint, EndpointState


def endpoint(
    number: int,
    *patterns: str,
    exclusions: tuple[str, ...] = (),
    workspace: str = "default",
    state: EndpointState = EndpointState.ACTIVE,
    kind: type[Endpoint] = Endpoint,
) -> Endpoint:
    return kind(
        id=number,
        workspace_id=workspace,
        url="https://receiver.example/",
        patterns=patterns,
        exclusions=exclusions,
        dialect="standard",
        secrets=(),
        state=state,
        concurrency=None,
        headers={},
        failing_since=None,
    )


def ids(matcher: Matcher, event_type: str, workspace: str = "default") -> list[int]:
    return [found.id for found in matcher.match(workspace, event_type)]


@pytest.mark.parametrize(
    "text", ["*", "deal", "deal.updated", "deal.*", "a.b.c.*", "Deal_2.stageChanged", " deal.* "]
)
def test_pattern_is_accepted(text: str) -> None:
    assert parse_pattern(text) == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        ".",
        "deal..x",
        ".deal",
        "**",
        "*.updated",
        "deal.*.x",
        "deal-updated",
        "geschäft.*",
        "deal.x\n.y",
        "d,e",
    ],
)
def test_bad_pattern_is_refused_with_the_syntax(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pattern(text)
    assert "a prefix (deal.*)" in caught.value.hint


@pytest.mark.parametrize("text", ["deal*", "deal.", "deal.**", "deal**", "deal.*.*"])
def test_near_miss_is_answered_with_the_pattern_meant(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pattern(text)
    assert caught.value.hint == "Did you mean deal.*?"


def test_pattern_has_a_length_limit() -> None:
    assert parse_pattern("x" * 128)
    with pytest.raises(UsageError, match="128"):
        parse_pattern("x" * 129)


@pytest.mark.parametrize(
    ("event_type", "expected"),
    [
        ("deal.updated", [1, 2, 4]),
        ("deal.created", [2, 4]),
        ("deal.stage.changed", [2, 3, 4]),
        ("deal", [4]),
        ("dealer.created", [4]),
        ("deal.stage", [2, 4]),
    ],
)
def test_exact_prefix_and_all(event_type: str, expected: list[int]) -> None:
    matcher = Matcher(
        [endpoint(4, "*"), endpoint(2, "deal.*"), endpoint(3, "deal.stage.*"), endpoint(1, "deal.updated")]
    )
    assert ids(matcher, event_type) == expected


def test_endpoint_with_overlapping_patterns_matches_once() -> None:
    assert ids(Matcher([endpoint(1, "*", "deal.*", "deal.updated", "deal.updated")]), "deal.updated") == [1]


@pytest.mark.parametrize("exclusion", ["deal.updated", "deal.*", "*"])
def test_exclusion_wins(exclusion: str) -> None:
    matcher = Matcher([endpoint(1, "*", "deal.updated", exclusions=(exclusion,))])
    assert ids(matcher, "deal.updated") == []


def test_exclusion_leaves_other_types() -> None:
    assert ids(Matcher([endpoint(1, "*", exclusions=("deal.updated",))]), "deal.created") == [1]


def test_workspaces_are_apart() -> None:
    matcher = Matcher([endpoint(1, "*", workspace="ws_1"), endpoint(2, "*", workspace="ws_2")])
    assert ids(matcher, "deal.updated", "ws_2") == [2]
    assert ids(matcher, "deal.updated", "ws_3") == []


def test_active_and_paused_endpoints_match_and_others_do_not() -> None:
    matcher = Matcher(endpoint(number, "*", state=state) for number, state in enumerate(EndpointState))
    assert [found.state for found in matcher.match("default", "deal.updated")] == ["active", "paused"]


def test_operational_events_need_a_pattern_that_names_them() -> None:
    matcher = Matcher([endpoint(1, "*"), endpoint(2, "endpoint.*"), endpoint(3, "endpoint.disabled", "*")])
    assert ids(matcher, "endpoint.disabled") == [2, 3]


class WatchedEndpoint(Endpoint):
    """Counts how often any of its attributes is read."""

    reads = 0

    def __getattribute__(self, name: str) -> Any:
        WatchedEndpoint.reads += 1
        return super().__getattribute__(name)


def reads_of_a_match(others: int) -> int:
    matcher = Matcher(
        [
            *(endpoint(n, ("deal.updated", "deal.*")[n % 2], kind=WatchedEndpoint) for n in range(3)),
            *(endpoint(3 + n, f"type_{n}.*", "deal.created", kind=WatchedEndpoint) for n in range(others)),
            *(endpoint(3 + others + n, "*", workspace="else", kind=WatchedEndpoint) for n in range(others)),
        ]
    )
    WatchedEndpoint.reads = 0
    assert len(matcher.match("default", "deal.updated")) == 3
    return WatchedEndpoint.reads


def test_matching_looks_at_as_few_of_10000_endpoints_as_of_10() -> None:
    assert 0 < reads_of_a_match(10) == reads_of_a_match(10_000) < 20


def test_repeated_match_looks_at_no_endpoint() -> None:
    matcher = Matcher([endpoint(1, "*", kind=WatchedEndpoint)])
    first = matcher.match("default", "deal.updated")
    WatchedEndpoint.reads = 0
    assert matcher.match("default", "deal.updated") is first
    assert WatchedEndpoint.reads == 0


def test_matches_stay_right_when_more_types_come_than_are_remembered() -> None:
    matcher = Matcher([endpoint(1, "deal.*"), endpoint(2, "deal.n7")])
    for number in range(10_000):
        matcher.match("default", f"deal.n{number}")
    assert ids(matcher, "deal.n7") == [1, 2]


segment = st.sampled_from(["a", "b", "endpoint"])
types = st.lists(segment, min_size=1, max_size=3).map(".".join)
patterns = st.one_of(types, types.map(lambda name: name + ".*"), st.just("*"))


def matches(pattern: str, event_type: str) -> bool:
    if pattern == "*":
        return not event_type.startswith("endpoint.")
    if pattern.endswith(".*"):
        return event_type.startswith(pattern[:-1])
    return event_type == pattern


@given(
    st.lists(
        st.tuples(st.lists(patterns, min_size=1, max_size=3), st.lists(patterns, max_size=2)), max_size=6
    ),
    types,
)
def test_index_agrees_with_matching_one_by_one(
    subscriptions: list[tuple[list[str], list[str]]], event_type: str
) -> None:
    matcher = Matcher(
        endpoint(number, *wanted, exclusions=tuple(unwanted))
        for number, (wanted, unwanted) in enumerate(subscriptions)
    )
    assert ids(matcher, event_type) == [
        number
        for number, (wanted, unwanted) in enumerate(subscriptions)
        if any(matches(pattern, event_type) for pattern in wanted)
        and not any(matches(pattern, event_type) for pattern in unwanted)
    ]


steps = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.one_of(st.none(), st.lists(patterns, min_size=1, max_size=3)),
        st.lists(patterns, max_size=1),
        st.sampled_from(["ws_1", "ws_2"]),
        st.sampled_from([EndpointState.ACTIVE, EndpointState.PAUSED, EndpointState.DISABLED]),
    ),
    max_size=12,
)


@given(steps, types)
def test_an_index_that_follows_changes_agrees_with_one_made_anew(steps: list[Any], event_type: str) -> None:
    matcher = Matcher()
    current: dict[int, Endpoint] = {}
    for number, wanted, unwanted, workspace, state in steps:
        if wanted is None:
            current.pop(number, None)
            matcher.update((), [number])
        else:
            current[number] = endpoint(
                number, *wanted, exclusions=tuple(unwanted), workspace=workspace, state=state
            )
            matcher.update([current[number]])
        anew = Matcher(current.values())
        for each in ("ws_1", "ws_2"):
            assert matcher.match(each, event_type) == anew.match(each, event_type)
        assert len(matcher) == len(current)


def test_after_a_change_no_other_endpoint_is_looked_at_again() -> None:
    matcher = Matcher([endpoint(number, "*", "deal.*", kind=WatchedEndpoint) for number in range(1000)])
    matcher.match("default", "deal.updated")
    WatchedEndpoint.reads = 0
    matcher.update([endpoint(500, "deal.*")], [7])
    assert len(matcher.match("default", "deal.updated")) == 999
    assert WatchedEndpoint.reads < 100


@pytest.mark.parametrize("changes", [100, 1000, 5000])
def test_matches_stay_right_after_many_changes(changes: int) -> None:
    matcher = Matcher([endpoint(number, "*") for number in range(200)])
    assert len(ids(matcher, "deal.updated")) == 200
    for number in range(changes):
        matcher.update([endpoint(number % 200, "*" if number % 3 else "other")])
    anew = Matcher(found for each in matcher.ids() if (found := matcher.get(each)) is not None)
    assert 0 < len(ids(matcher, "deal.updated")) < 200
    assert matcher.match("default", "deal.updated") == anew.match("default", "deal.updated")


def test_an_endpoint_with_overlapping_patterns_is_found_once() -> None:
    matcher = Matcher([endpoint(1, "*", "deal.*", "deal.updated", "endpoint.*"), endpoint(2, "deal.updated")])
    assert ids(matcher, "deal.updated") == [1, 2]
    assert ids(matcher, "endpoint.disabled") == [1]
    matcher.update((), [1])
    assert ids(matcher, "deal.updated") == [2]


def test_a_change_in_one_workspace_leaves_what_is_remembered_of_others() -> None:
    matcher = Matcher([endpoint(1, "*", workspace="ws_1"), endpoint(2, "*", workspace="ws_2")])
    before = matcher.match("ws_2", "deal.updated")
    matcher.update([endpoint(3, "*", workspace="ws_1")], [1])
    assert ids(matcher, "deal.updated", "ws_1") == [3]
    assert matcher.match("ws_2", "deal.updated") is before
