-- Portable between SQLite and PostgreSQL: TEXT and BIGINT only, times in epoch milliseconds (UTC), no booleans.

CREATE TABLE hypervisors (
    id         BIGINT NOT NULL PRIMARY KEY,
    uuid       TEXT   NOT NULL UNIQUE,
    name       TEXT   NOT NULL UNIQUE,
    uri        TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT
);

-- Nova's pci_devices. deleted is 0, or the row's own id once it is soft-deleted.
CREATE TABLE pci_devices (
    id              BIGINT NOT NULL PRIMARY KEY,
    uuid            TEXT   NOT NULL UNIQUE,
    compute_node_id BIGINT NOT NULL REFERENCES hypervisors (id),
    address         TEXT   NOT NULL,
    vendor_id       TEXT   NOT NULL,
    product_id      TEXT   NOT NULL,
    dev_type        TEXT   NOT NULL CHECK (dev_type IN ('type-PCI', 'type-PF', 'type-VF', 'vdpa')),
    dev_id          TEXT   NOT NULL,
    label           TEXT   NOT NULL,
    status          TEXT   NOT NULL CHECK (status IN
        ('available', 'claimed', 'allocated', 'removed', 'deleted', 'unclaimable', 'unavailable')),
    request_id      TEXT,
    extra_info      TEXT   NOT NULL,
    instance_uuid   TEXT,
    numa_node       BIGINT,
    parent_addr     TEXT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT,
    deleted_at      BIGINT,
    deleted         BIGINT NOT NULL,
    UNIQUE (compute_node_id, address, deleted),
    -- A device that is promised has an owner, one that is free has none.
    CHECK ((status IN ('claimed', 'allocated')) = (instance_uuid IS NOT NULL))
);
CREATE INDEX pci_devices_by_parent ON pci_devices (compute_node_id, parent_addr, deleted);
CREATE INDEX pci_devices_by_owner ON pci_devices (instance_uuid, deleted);

-- One attachment is one device in one server. ended_at is set in the states detached and failed.
CREATE TABLE attachments (
    id            TEXT   NOT NULL PRIMARY KEY,
    request_id    TEXT   NOT NULL,
    hypervisor_id BIGINT NOT NULL REFERENCES hypervisors (id),
    server_uuid   TEXT   NOT NULL,
    device_id     BIGINT NOT NULL REFERENCES pci_devices (id),
    alias_name    TEXT   NOT NULL,
    persistent    BIGINT NOT NULL CHECK (persistent IN (0, 1)),
    managed       BIGINT NOT NULL CHECK (managed IN (0, 1)),
    state         TEXT   NOT NULL CHECK (state IN ('attaching', 'attached', 'detaching', 'detached', 'failed')),
    state_reason  TEXT,
    inner_address TEXT,
    inner_source  TEXT,
    created_at    BIGINT NOT NULL,
    updated_at    BIGINT,
    attached_at   BIGINT,
    ended_at      BIGINT,
    CHECK ((state IN ('detached', 'failed')) = (ended_at IS NOT NULL))
);
-- A device is in one attachment at a time.
CREATE UNIQUE INDEX attachments_one_per_device ON attachments (device_id) WHERE ended_at IS NULL;
CREATE INDEX attachments_by_server ON attachments (server_uuid, ended_at);
CREATE INDEX attachments_by_hypervisor ON attachments (hypervisor_id, ended_at);
