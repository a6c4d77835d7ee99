-- The fatal PCI Express errors that the root port above the function had received before the attachment (AER).
ALTER TABLE attachments ADD COLUMN port_errors BIGINT;
