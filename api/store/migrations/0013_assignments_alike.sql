-- Attachments, bindings and mediated devices go through one state machine, so all three record what it needs.

-- Whether a mediated device ended although nobody had requested that. A domain that comes back with it keeps it.
ALTER TABLE mdevs ADD COLUMN unasked BIGINT NOT NULL DEFAULT 0 CHECK (unasked IN (0, 1));
UPDATE mdevs SET unasked = 1
    WHERE state = 'detached' AND (state_reason IN (
            'removed from the domain outside of hotslot',
            'the server was shut off, and its definition has no such device',
            'the server is gone')
        OR state_reason LIKE 'the server is on host % now');

-- The run of the guest in which a verified address was seen: the id of the running domain.
ALTER TABLE mdevs ADD COLUMN inner_run BIGINT;

-- The process that attaches it.
ALTER TABLE mdevs ADD COLUMN worker TEXT;

-- When it was first attached. It stays empty when the attach failed.
ALTER TABLE mdevs ADD COLUMN attached_at BIGINT;
UPDATE mdevs SET attached_at = created_at
    WHERE state IN ('attached', 'detached') OR state = 'detaching' AND forced = 0;
ALTER TABLE bindings ADD COLUMN attached_at BIGINT;
UPDATE bindings SET attached_at = created_at WHERE state IN ('attached', 'detaching', 'detached');

-- Whether the device has to be released because its attach failed.
ALTER TABLE bindings ADD COLUMN forced BIGINT NOT NULL DEFAULT 0 CHECK (forced IN (0, 1));
