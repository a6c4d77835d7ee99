-- Whether libvirt was asked to plug the device, or is about to be asked. Until then it is known that the guest never
-- had it.
ALTER TABLE attachments ADD COLUMN asked BIGINT NOT NULL DEFAULT 0 CHECK (asked IN (0, 1));
UPDATE attachments SET asked = 1 WHERE ended_at IS NULL;

-- Whether it ended without having been asked to go: its domain was seen without the device, or was gone. A domain that
-- comes back with the device (restored, moved to another host) has it by right.
ALTER TABLE attachments ADD COLUMN unasked BIGINT NOT NULL DEFAULT 0 CHECK (unasked IN (0, 1));
UPDATE attachments SET unasked = 1
    WHERE state = 'detached' AND state_reason IN (
        'removed from the domain outside of hotslot', 'the server was shut off, and its definition has no such device');

-- An attach that was given up is not completed, whatever its guest says.
UPDATE attachments SET forced = 1 WHERE state = 'detaching' AND attached_at IS NULL;

-- The run of the guest in which a verified address was seen: the id of the running domain.
ALTER TABLE attachments ADD COLUMN inner_run BIGINT;

-- What has ended is looked up by its age to be forgotten.
CREATE INDEX bindings_by_end ON bindings (ended_at);
CREATE INDEX mdevs_by_end ON mdevs (ended_at);
CREATE INDEX idempotency_keys_by_request ON idempotency_keys (request_id);
