-- Settings of VFs of NICs that libvirt has no word for, as JSON: those that were requested, and those that the VF had
-- before, until they are put back after the attachment has ended.
ALTER TABLE attachments ADD COLUMN vf_settings TEXT;
ALTER TABLE attachments ADD COLUMN vf_before TEXT;
CREATE INDEX attachments_vf_before ON attachments (hypervisor_id) WHERE vf_before IS NOT NULL;
