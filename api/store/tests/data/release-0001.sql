-- A database that the first release wrote (schema 0001), as `sqlite3 hotslot.db .dump` prints it.
BEGIN TRANSACTION;
CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
);
INSERT INTO "_sqlx_migrations" VALUES(1,'hosts devices attachments','2026-11-01 10:00:00',1,X'DADE04BF26B5092891D3E2ADC77498DBE579C98C1C18402801EC47965330FEEC797DC07D3AD5C9EBE742635B59A6C1F1',4000000);
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
INSERT INTO "attachments" VALUES('50000000-0000-4000-8000-000000000001','40000000-0000-4000-8000-000000000001',1,'10000000-0000-4000-8000-000000000001',2,'vf',1,1,'attached',NULL,'0000:06:00.0','verified',1793527200000,1793527260000,1793527210000,NULL);
INSERT INTO "attachments" VALUES('50000000-0000-4000-8000-000000000002','40000000-0000-4000-8000-000000000002',1,'10000000-0000-4000-8000-000000000001',3,'vf',1,1,'attaching',NULL,NULL,NULL,1793527200000,1793527260000,NULL,NULL);
INSERT INTO "attachments" VALUES('50000000-0000-4000-8000-000000000003','40000000-0000-4000-8000-000000000003',1,'10000000-0000-4000-8000-000000000001',4,'vf',1,1,'detached','removed from the domain outside of hotslot, or with its power',NULL,NULL,1793527200000,1793527260000,1793527215000,1793527250000);
INSERT INTO "attachments" VALUES('50000000-0000-4000-8000-000000000004','40000000-0000-4000-8000-000000000004',1,'10000000-0000-4000-8000-000000000001',4,'vf',1,1,'failed','refused',NULL,NULL,1793527200000,1793527260000,NULL,1793527255000);
CREATE TABLE hypervisors (
    id         BIGINT NOT NULL PRIMARY KEY,
    uuid       TEXT   NOT NULL UNIQUE,
    name       TEXT   NOT NULL UNIQUE,
    uri        TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT
);
INSERT INTO "hypervisors" VALUES(1,'30000000-0000-4000-8000-000000000001','node1','qemu:///system',1793527200000,NULL);
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
INSERT INTO "pci_devices" VALUES(1,'20000000-0000-4000-8000-000000000001',1,'0000:04:00.0','8086','10c9','type-PF','pci_0000_04_00_0','label_8086_10c9','unavailable',NULL,'{"managed":"true"}',NULL,0,NULL,1793527200000,1793527260000,NULL,0);
INSERT INTO "pci_devices" VALUES(2,'20000000-0000-4000-8000-000000000002',1,'0000:04:10.0','8086','10ca','type-VF','pci_0000_04_10_0','label_8086_10ca','allocated','40000000-0000-4000-8000-000000000001','{"managed":"true"}','10000000-0000-4000-8000-000000000001',0,'0000:04:00.0',1793527200000,1793527260000,NULL,0);
INSERT INTO "pci_devices" VALUES(3,'20000000-0000-4000-8000-000000000003',1,'0000:04:10.2','8086','10ca','type-VF','pci_0000_04_10_2','label_8086_10ca','claimed','40000000-0000-4000-8000-000000000002','{"managed":"true"}','10000000-0000-4000-8000-000000000001',0,'0000:04:00.0',1793527200000,1793527260000,NULL,0);
INSERT INTO "pci_devices" VALUES(4,'20000000-0000-4000-8000-000000000004',1,'0000:05:00.0','8086','10d3','type-PCI','pci_0000_05_00_0','label_8086_10d3','available',NULL,'{"managed":"true"}',NULL,0,NULL,1793527200000,1793527260000,NULL,0);
INSERT INTO "pci_devices" VALUES(5,'20000000-0000-4000-8000-000000000005',1,'0000:06:00.0','8086','10d3','type-PCI','pci_0000_06_00_0','label_8086_10d3','deleted',NULL,'{"managed":"true"}',NULL,0,NULL,1793527200000,1793527260000,1793527260000,5);
CREATE INDEX pci_devices_by_parent ON pci_devices (compute_node_id, parent_addr, deleted);
CREATE INDEX pci_devices_by_owner ON pci_devices (instance_uuid, deleted);
CREATE UNIQUE INDEX attachments_one_per_device ON attachments (device_id) WHERE ended_at IS NULL;
CREATE INDEX attachments_by_server ON attachments (server_uuid, ended_at);
CREATE INDEX attachments_by_hypervisor ON attachments (hypervisor_id, ended_at);
COMMIT;
