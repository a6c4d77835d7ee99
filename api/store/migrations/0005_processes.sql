-- Several processes over one database: each keeps in memory what was last committed of pci_devices, and reads what
-- others have committed since by the number of the commit.
CREATE TABLE commits (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    seq BIGINT NOT NULL
);
INSERT INTO commits (one, seq) VALUES (1, 0);
-- The commit that last wrote the row.
ALTER TABLE pci_devices ADD COLUMN seq BIGINT NOT NULL DEFAULT 0;
CREATE INDEX pci_devices_by_seq ON pci_devices (seq);

-- The processes that work on this database. A lock of its own tells whether one is alive.
CREATE TABLE processes (
    id         TEXT   NOT NULL PRIMARY KEY,
    host       TEXT   NOT NULL,
    pid        BIGINT NOT NULL,
    started_at BIGINT NOT NULL
);
-- The process that attaches; none when there can be only one.
ALTER TABLE attachments ADD COLUMN worker TEXT;
