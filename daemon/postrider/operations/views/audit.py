"""An entry of the audit log as JSON."""

from typing import Any

from postrider.domain.audit import AuditEntry


def audit_view(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": entry.at,
        "who": entry.actor.who,
        "how": entry.actor.how,
        "origin": entry.actor.origin,
        "workspace": entry.workspace_id,
        "action": entry.action,
        "subject": entry.subject,
        "before": entry.before,
        "after": entry.after,
    }
