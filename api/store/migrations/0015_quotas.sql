-- The limits that were set for a project. The configuration has the defaults of all others.
CREATE TABLE quotas (
    project_id TEXT   NOT NULL,
    resource   TEXT   NOT NULL,
    -- -1: no limit.
    hard_limit BIGINT NOT NULL CHECK (hard_limit >= -1),
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (project_id, resource)
);

-- The project that owned the server when the device was reserved. None: it counts against nobody.
ALTER TABLE attachments ADD COLUMN project_id TEXT;
ALTER TABLE mdevs ADD COLUMN project_id TEXT;
CREATE INDEX attachments_by_project ON attachments (project_id, created_at, device_id)
    WHERE ended_at IS NULL AND project_id IS NOT NULL;
CREATE INDEX attachments_in_order ON attachments (created_at, device_id) WHERE ended_at IS NULL;
CREATE INDEX mdevs_by_project ON mdevs (project_id) WHERE ended_at IS NULL AND project_id IS NOT NULL;

-- What belongs to a project is counted, and listed in the order of creation.
CREATE INDEX accelerators_by_project ON accelerators (project_id, accelerator_id);
CREATE INDEX accelerator_requests_by_project ON accelerator_requests (project_id, id);

-- The project whose request had the key. None: it counts against nobody.
ALTER TABLE idempotency_keys ADD COLUMN project_id TEXT;
CREATE INDEX idempotency_keys_by_project ON idempotency_keys (project_id) WHERE project_id IS NOT NULL;
