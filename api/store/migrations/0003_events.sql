-- What happened: every change of a device, an attachment or a rule, written with the change in one transaction.
CREATE TABLE events (
    id            BIGINT NOT NULL PRIMARY KEY,
    time          BIGINT NOT NULL,
    who           TEXT   NOT NULL,
    kind          TEXT   NOT NULL,
    hypervisor_id BIGINT REFERENCES hypervisors (id),
    server_uuid   TEXT,
    device_id     BIGINT,
    address       TEXT,
    attachment_id TEXT,
    rule_id       TEXT,
    -- JSON.
    was           TEXT,
    became        TEXT,
    reason        TEXT
);

-- One row: the id that was given last, and up to which id events were pruned. Ids are given by changing it, so that
-- whoever comes next waits for the commit: they have no gaps, and go up in the order of the commits.
CREATE TABLE event_ids (
    last   BIGINT NOT NULL,
    pruned BIGINT NOT NULL
);
INSERT INTO event_ids (last, pruned) VALUES (0, 0);

-- Up to which event a webhook was told.
CREATE TABLE webhooks (
    name       TEXT   NOT NULL PRIMARY KEY,
    told       BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT
);

-- What a webhook could not be told. due: someone asked for it to be tried again.
CREATE TABLE dead_letters (
    webhook  TEXT   NOT NULL REFERENCES webhooks (name),
    event_id BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    reason   TEXT   NOT NULL,
    died_at  BIGINT NOT NULL,
    due      BIGINT NOT NULL DEFAULT 0 CHECK (due IN (0, 1)),
    PRIMARY KEY (webhook, event_id)
);
