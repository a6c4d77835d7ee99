-- The hosts on which not everything may be changed, because an administrator froze or drains them.
CREATE TABLE host_modes (
    hypervisor_id BIGINT PRIMARY KEY,
    mode          TEXT   NOT NULL,
    set_by        TEXT   NOT NULL,
    reason        TEXT,
    since         BIGINT NOT NULL
);
