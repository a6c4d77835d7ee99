-- On whose behalf an event was written: the user, the project and the roles of the caller, how the caller was identified,
-- and the global request id that the caller sent.
ALTER TABLE events ADD COLUMN user_id TEXT;
ALTER TABLE events ADD COLUMN user_name TEXT;
ALTER TABLE events ADD COLUMN project_id TEXT;
-- A JSON list.
ALTER TABLE events ADD COLUMN roles TEXT;
ALTER TABLE events ADD COLUMN via TEXT;
ALTER TABLE events ADD COLUMN global_request_id TEXT;

-- The UUID of the record that an event is about, when it is no device, attachment or rule.
ALTER TABLE events ADD COLUMN resource_id TEXT;

CREATE INDEX events_by_user ON events (user_name, id) WHERE user_name IS NOT NULL;
CREATE INDEX events_by_user_id ON events (user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX events_by_project ON events (project_id, id) WHERE project_id IS NOT NULL;
