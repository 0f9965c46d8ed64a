"""Attempts as JSON, and in a sentence."""

from postrider.domain.model import Attempt, Reply


def attempt_view(attempt: Attempt) -> dict[str, object]:
    result = attempt.result
    view: dict[str, object] = {
        "number": attempt.number,
        "started_at": attempt.started_at,
        "duration_ms": round(result.duration_ms, 1),
        "connect_ms": round(result.connect_ms, 1) if result.connect_ms is not None else None,
    }
    if isinstance(result, Reply):
        return view | {
            "status": result.status,
            "response_headers": result.headers,
            "response_body": result.body,
        }
    return view | {"error_kind": result.kind, "reason": result.reason}


def attempt_text(attempt: Attempt) -> str:
    """What came of it."""
    result = attempt.result
    return f"HTTP {result.status}" if isinstance(result, Reply) else f"{result.kind}: {result.reason}"
