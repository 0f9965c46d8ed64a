-- Partitions, locks and liveness that keep nobody waiting.
SELECT 1;
