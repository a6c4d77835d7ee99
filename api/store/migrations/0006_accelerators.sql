-- What is given away under a name of its own: the seed's columns, and what came later.
CREATE TABLE accelerators (
    accelerator_id BIGINT NOT NULL PRIMARY KEY,
    uuid           TEXT   NOT NULL UNIQUE,
    name           TEXT   NOT NULL UNIQUE,
    device_type    TEXT   NOT NULL,
    acc_type       TEXT   NOT NULL,
    acc_capability TEXT   NOT NULL,
    vendor_id      TEXT,
    product_id     TEXT,
    remotable      BIGINT NOT NULL,
    -- The spec as it was put, JSON; none as long as none was.
    acc_specs      TEXT,
    -- One more with every spec.
    generation     BIGINT NOT NULL,
    -- The one device that it is; none takes any that its spec asks for.
    device_id      BIGINT REFERENCES pci_devices (id),
    created_at     BIGINT NOT NULL,
    updated_at     BIGINT
);

-- On whose behalf an attachment was made: accelerator:<uuid>. None: it was asked for by itself.
ALTER TABLE attachments ADD COLUMN holder TEXT;
CREATE INDEX attachments_by_holder ON attachments (holder) WHERE holder IS NOT NULL AND ended_at IS NULL;

-- A device that the host itself holds, in the states of an attachment. The row of pci_devices is the lock here too.
CREATE TABLE bindings (
    id              TEXT   NOT NULL PRIMARY KEY,
    request_id      TEXT   NOT NULL,
    hypervisor_id   BIGINT NOT NULL REFERENCES hypervisors (id),
    device_id       BIGINT NOT NULL REFERENCES pci_devices (id),
    holder          TEXT   NOT NULL,
    driver          TEXT   NOT NULL CHECK (driver IN ('native', 'vfio-pci')),
    -- What it was bound to before, and is to be bound to again; none: to nothing.
    previous_driver TEXT,
    state           TEXT   NOT NULL CHECK (state IN ('attaching', 'attached', 'detaching', 'detached', 'failed')),
    state_reason    TEXT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT,
    ended_at        BIGINT,
    CHECK ((state IN ('detached', 'failed')) = (ended_at IS NOT NULL))
);
CREATE UNIQUE INDEX bindings_one_per_device ON bindings (device_id) WHERE ended_at IS NULL;
CREATE INDEX bindings_by_holder ON bindings (holder) WHERE ended_at IS NULL;

-- Where what was made is, when the answer says it.
ALTER TABLE idempotency_keys ADD COLUMN location TEXT;
