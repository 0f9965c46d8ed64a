-- The database counts what is recorded of a claim, and knows how large events are.
SELECT 1;
