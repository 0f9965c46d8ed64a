-- Endpoints by differences; sealed headers.
SELECT 1;
