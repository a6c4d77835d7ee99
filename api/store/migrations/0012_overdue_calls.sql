-- Calls to hypervisors that were given up and have not returned: the process that waits for one knows it, and tells the
-- others here, so that they leave alone what it may still change.
CREATE TABLE overdue_calls (
    process       TEXT   NOT NULL,
    hypervisor_id BIGINT NOT NULL,
    operation     TEXT   NOT NULL,
    server_uuid   TEXT,
    address       TEXT,
    since         BIGINT NOT NULL
);
CREATE INDEX overdue_calls_by_process ON overdue_calls (process, hypervisor_id);
