-- Whether a device that was used waits for its scrub; used_at has the time.
ALTER TABLE pci_devices ADD COLUMN scrub BIGINT NOT NULL DEFAULT 0 CHECK (scrub IN (0, 1));

-- The class of the function of an attachment, and whether the host could reset it, before the attachment.
ALTER TABLE attachments ADD COLUMN class TEXT;
ALTER TABLE attachments ADD COLUMN had_reset BIGINT CHECK (had_reset IN (0, 1));
