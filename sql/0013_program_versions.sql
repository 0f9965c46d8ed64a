-- Programs of several releases beside one schema: which of them a migration leaves behind, and which run.

-- breaks: programs that know this migration or earlier ones as their last stop working with this one. NULL: none
-- does. It is in the database because older programs don't have the file that says it.
ALTER TABLE postrider.migration ADD COLUMN breaks integer CHECK (breaks < number);

-- schema: the last migration that the daemon's program knows. NULL: of a release that did not tell.
ALTER TABLE postrider.daemon ADD COLUMN schema integer;
