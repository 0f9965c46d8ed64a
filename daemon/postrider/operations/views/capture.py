"""Captures as JSON."""

from postrider.domain.capture_steps import Rejection, Retried, Step


def step(of: Step) -> dict[str, object]:
    return {
        "name": of.name,
        "table": of.table,
        "action": of.action,
        "event_types": of.event_types,
        "diff": of.diff,
        "warnings": of.warnings,
        "statements": of.statements,
    }


def rejection(of: Rejection) -> dict[str, object]:
    """A row that was set aside, without what stands in it."""
    return {
        "id": of.id,
        "at": of.at,
        "capture": of.capture,
        "operation": of.operation,
        "object_id": of.object_id,
        "reason": of.reason,
    }


def retried(of: Retried) -> dict[str, object]:
    return {"rows": of.rows, "events": of.events, "kept": of.kept, "not_applied": of.not_applied}
