-- The fatal PCI Express errors of the function that the kernel had counted before the attachment (AER).
ALTER TABLE attachments ADD COLUMN fatal_errors BIGINT;
