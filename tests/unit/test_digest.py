"""What is said at once, and what is counted up to a line a minute."""

from postrider.domain.digest import MOST_KEYS, MOST_REASONS, WINDOW_S, Digest, Summary


def test_the_first_of_each_kind_is_said_at_once_and_the_rest_is_counted() -> None:
    digest = Digest()
    assert digest.note("ep", "retrying", "HTTP 500", 0.0)
    assert not digest.note("ep", "retrying", "HTTP 500", 1.0)
    assert not digest.note("ep", "retrying", "timeout", 2.0)
    assert digest.note("ep", "failed", "HTTP 500", 3.0)
    assert not digest.note("ep", "failed", "HTTP 500", 4.0)
    assert digest.due(WINDOW_S - 0.1) == []
    assert digest.due(WINDOW_S) == [
        Summary("ep", WINDOW_S, {"retrying": 2, "failed": 1}, {"HTTP 500": 2, "timeout": 1})
    ]
    assert digest.due(WINDOW_S) == []


def test_one_that_goes_on_gets_a_line_each_minute_and_one_that_stopped_is_forgotten() -> None:
    digest = Digest()
    digest.note("ep", "retrying", "a", 0.0)
    for minute in range(1, 4):
        assert not digest.note("ep", "retrying", "a", minute * WINDOW_S - 1)
        assert [each.counts for each in digest.due(minute * WINDOW_S)] == [{"retrying": 1}]
    assert digest.due(4 * WINDOW_S) == []
    assert len(digest) == 0
    assert digest.note("ep", "retrying", "a", 4 * WINDOW_S)


def test_each_key_has_a_minute_of_its_own() -> None:
    digest = Digest()
    for key, at in (("a", 0.0), ("b", 30.0)):
        digest.note(key, "retrying", "x", at)
        digest.note(key, "retrying", "x", at)
    assert [each.key for each in digest.due(WINDOW_S)] == ["a"]
    assert [each.key for each in digest.due(WINDOW_S + 30)] == ["b"]


def test_what_is_counted_at_the_end_is_told() -> None:
    digest = Digest()
    digest.note("ep", "retrying", "a", 0.0)
    digest.note("ep", "retrying", "a", 1.0)
    assert digest.drain(5.0) == [Summary("ep", 5.0, {"retrying": 1}, {"a": 1})]
    assert digest.drain(5.0) == []


def test_it_keeps_a_bounded_number_of_keys_and_reasons() -> None:
    digest = Digest()
    for number in range(MOST_KEYS + 10):
        digest.note(number, "retrying", "a", 0.0)
    assert len(digest) == MOST_KEYS + 1
    for number in range(1000):
        digest.note(0, "retrying", f"{number} " * 1000, 1.0)
    summaries = {each.key: each for each in digest.due(WINDOW_S)}
    assert sum(summaries[None].counts.values()) == 10  # of keys that there was no room for
    reasons = summaries[0].reasons
    assert sum(reasons.values()) == 1000
    assert len(reasons) == MOST_REASONS + 1
    assert reasons["others"] == 1000 - MOST_REASONS
    assert max(map(len, reasons)) <= 200
