-- Capture and emit run with few rights, and lose no row.
SELECT 1;
