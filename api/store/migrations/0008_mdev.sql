-- A mediated device that was made for a server, in the states of an attachment. The row of pci_devices of its parent is
-- the lock: its host holds it for as long as it has any.
CREATE TABLE mdevs (
    -- Its UUID on the host, and of its alias in the domain.
    id            TEXT   NOT NULL PRIMARY KEY,
    request_id    TEXT   NOT NULL,
    hypervisor_id BIGINT NOT NULL REFERENCES hypervisors (id),
    -- The function whose driver makes it.
    device_id     BIGINT NOT NULL REFERENCES pci_devices (id),
    server_uuid   TEXT   NOT NULL,
    mdev_type     TEXT   NOT NULL,
    holder        TEXT   NOT NULL,
    persistent    BIGINT NOT NULL,
    -- It is to go whatever its guest says.
    forced        BIGINT NOT NULL DEFAULT 0,
    state         TEXT   NOT NULL CHECK (state IN ('attaching', 'attached', 'detaching', 'detached', 'failed')),
    state_reason  TEXT,
    inner_address TEXT,
    inner_source  TEXT,
    created_at    BIGINT NOT NULL,
    updated_at    BIGINT,
    ended_at      BIGINT,
    CHECK ((state IN ('detached', 'failed')) = (ended_at IS NOT NULL))
);
CREATE INDEX mdevs_by_device ON mdevs (device_id) WHERE ended_at IS NULL;
CREATE INDEX mdevs_by_server ON mdevs (server_uuid) WHERE ended_at IS NULL;
CREATE INDEX mdevs_by_holder ON mdevs (holder) WHERE ended_at IS NULL;
