-- POSTs that may be sent again: which body came with a key, the request that it made, and what was answered.
CREATE TABLE idempotency_keys (
    idempotency_key TEXT   NOT NULL,
    route           TEXT   NOT NULL,
    fingerprint     TEXT   NOT NULL,
    -- Of an attach: written with the reservation of its devices.
    request_id      TEXT,
    -- The answer; none while there is none, or when the first try was cut off.
    status          BIGINT,
    body            TEXT,
    created_at      BIGINT NOT NULL,
    PRIMARY KEY (idempotency_key, route),
    CHECK ((status IS NULL) = (body IS NULL))
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
CREATE INDEX attachments_by_request ON attachments (request_id);

-- Whether an attachment is to go whatever its guest says.
ALTER TABLE attachments ADD COLUMN forced BIGINT NOT NULL DEFAULT 0 CHECK (forced IN (0, 1));
CREATE INDEX attachments_by_end ON attachments (ended_at);
