-- The type of virtual GPU that the VF of an attachment has, and whose it is: 'others' when the VF had it
-- before, 'ours' from before hotslot sets it until it is taken away after the attachment has ended, then 'taken'.
ALTER TABLE attachments ADD COLUMN vgpu_type TEXT;
ALTER TABLE attachments ADD COLUMN vgpu_owner TEXT;
CREATE INDEX attachments_vgpu ON attachments (hypervisor_id) WHERE vgpu_owner = 'ours';
