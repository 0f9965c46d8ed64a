"""What the configured dialects say of endpoints."""

from dataclasses import replace

from postrider.domain.promises import RetrySettings
from postrider.edges.dialect_files import load_dialects
from postrider.engine.dialect_rules import DialectRules
from tests.support.endpoints import endpoint

DIALECTS = load_dialects([])
SETTINGS = RetrySettings(None, None, 432_000.0)


def test_a_dialect_that_is_not_configured_makes_its_endpoints_unusable() -> None:
    rules = DialectRules(DIALECTS, SETTINGS)
    other = replace(endpoint(1), dialect="acme")
    assert rules.judged(endpoint(1)) == endpoint(1)
    assert rules.judged(other).unusable == "its dialect 'acme' is not configured"
    damaged = replace(other, unusable="its URL is not one of http or https")
    assert (
        rules.judged(damaged).unusable
        == "its URL is not one of http or https; its dialect 'acme' is not configured"
    )


def test_a_new_configuration_holds_for_all_who_ask() -> None:
    rules = DialectRules({}, SETTINGS)
    assert rules.judged(endpoint(1)).unusable is not None
    rules.configure(DIALECTS, replace(SETTINGS, schedule=(0.0, 1.0)))
    assert rules.judged(endpoint(1)).unusable is None
    assert rules.retry_policy("standard").delays == (0.0, 1.0)


def test_an_unknown_dialect_has_the_schedule_of_the_configuration() -> None:
    rules = DialectRules(DIALECTS, replace(SETTINGS, schedule=(0.0, 7.0)))
    assert rules.retry_policy("acme").delays == (0.0, 7.0)
    assert not rules.retry_policy("acme").promised
