-- Why a device that was used must not be used again before somebody has looked at it; used_at has the time.
ALTER TABLE pci_devices ADD COLUMN quarantine TEXT;

-- The PCI Express link of the function, or of its PF, before the attachment.
ALTER TABLE attachments ADD COLUMN link_width BIGINT;
ALTER TABLE attachments ADD COLUMN link_speed BIGINT;
