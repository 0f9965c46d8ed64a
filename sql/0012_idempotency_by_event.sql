-- concurrently
-- Retention forgets idempotency keys by their events.
DROP INDEX CONCURRENTLY IF EXISTS postrider.idempotency_event;
CREATE INDEX CONCURRENTLY idempotency_event ON postrider.idempotency (event_id);
