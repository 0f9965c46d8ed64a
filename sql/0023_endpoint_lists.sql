-- Endpoints as people list them: of all workspaces or of one, the oldest first, page by page. Deleted ones stay for
-- ever, and are looked for rarely.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE INDEX endpoint_place ON postrider.endpoint (workspace_id, created_at, id);
CREATE INDEX endpoint_place_living ON postrider.endpoint (workspace_id, created_at, id) WHERE state <> 'deleted';
CREATE INDEX endpoint_place_in_state ON postrider.endpoint (state, workspace_id, created_at, id);
