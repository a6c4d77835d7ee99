-- Whose an accelerator is; none: nobody was asked who they are.
ALTER TABLE accelerators ADD COLUMN project_id TEXT;
