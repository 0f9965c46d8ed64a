-- concurrently
-- Retention forgets idempotency keys by their events.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idempotency_event ON postrider.idempotency (event_id);
