-- A device that is gone from the host while a server has it stays with its owner, and says since when.
ALTER TABLE pci_devices ADD COLUMN gone_at BIGINT;
-- A device with the tag one_time_use is not given again until someone says that it was cleaned.
ALTER TABLE pci_devices ADD COLUMN used_at BIGINT;

-- What a network VF is to be in the guest, and whether all of an IOMMU group was asked for.
ALTER TABLE attachments ADD COLUMN mac_address TEXT;
ALTER TABLE attachments ADD COLUMN vlan BIGINT;
ALTER TABLE attachments ADD COLUMN physical_network TEXT;
ALTER TABLE attachments ADD COLUMN trusted BIGINT CHECK (trusted IN (0, 1));
ALTER TABLE attachments ADD COLUMN whole_group BIGINT NOT NULL DEFAULT 0 CHECK (whole_group IN (0, 1));
-- Whether the device was taken from its host driver for its group, and has not been given back.
ALTER TABLE attachments ADD COLUMN taken BIGINT NOT NULL DEFAULT 0 CHECK (taken IN (0, 1));
CREATE INDEX attachments_taken ON attachments (hypervisor_id) WHERE taken = 1;
-- No two interfaces have one MAC address.
CREATE UNIQUE INDEX attachments_one_per_mac ON attachments (mac_address)
    WHERE ended_at IS NULL AND mac_address IS NOT NULL;

-- Rules that came by the API; those of the configuration file are not here.
CREATE TABLE pci_config (
    id         TEXT   NOT NULL PRIMARY KEY,
    kind       TEXT   NOT NULL CHECK (kind IN ('whitelist', 'alias', 'extra_info')),
    position   BIGINT NOT NULL,
    body       TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT
);
CREATE INDEX pci_config_in_order ON pci_config (kind, position);
