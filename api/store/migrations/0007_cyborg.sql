-- Cyborg's nouns. A device profile is what accelerator requests ask for by its name; its groups are JSON.
CREATE TABLE device_profiles (
    id             BIGINT NOT NULL PRIMARY KEY,
    uuid           TEXT   NOT NULL UNIQUE,
    name           TEXT   NOT NULL UNIQUE,
    description    TEXT,
    profile_groups TEXT   NOT NULL,
    created_at     BIGINT NOT NULL,
    updated_at     BIGINT
);

-- One device that is asked for. What it holds is told by the attachments of holder accelerator-request:<uuid>; the
-- state is what was last meant to be, and what came of it.
CREATE TABLE accelerator_requests (
    id              BIGINT NOT NULL PRIMARY KEY,
    uuid            TEXT   NOT NULL UNIQUE,
    profile_id      BIGINT NOT NULL REFERENCES device_profiles (id),
    profile_group   BIGINT NOT NULL,
    resource_class  TEXT   NOT NULL,
    -- Whose it is; none: nobody was asked who they are.
    project_id      TEXT,
    state           TEXT   NOT NULL CHECK (state IN
        ('Initial', 'BindStarted', 'Bound', 'Unbound', 'BindFailed', 'UnbindFailed', 'Deleting')),
    state_reason    TEXT,
    hostname        TEXT,
    device_rp_uuid  TEXT,
    instance_uuid   TEXT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT,
    CHECK ((hostname IS NULL) = (instance_uuid IS NULL) AND (hostname IS NULL) = (device_rp_uuid IS NULL))
);
CREATE INDEX accelerator_requests_by_instance ON accelerator_requests (instance_uuid);

-- Cards that are offered to nobody. A card is known by its host and the address of its PF or only function.
CREATE TABLE disabled_cards (
    hypervisor_id BIGINT NOT NULL REFERENCES hypervisors (id),
    address       TEXT   NOT NULL,
    created_at    BIGINT NOT NULL,
    PRIMARY KEY (hypervisor_id, address)
);

-- What was said of a deployable by hand, which has the number of its row in pci_devices.
CREATE TABLE attributes (
    uuid          TEXT   NOT NULL PRIMARY KEY,
    deployable_id BIGINT NOT NULL REFERENCES pci_devices (id),
    attribute_key TEXT   NOT NULL,
    value         TEXT   NOT NULL,
    created_at    BIGINT NOT NULL
);
