PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
);
INSERT INTO _sqlx_migrations VALUES(1,'hosts devices attachments','2026-11-29 11:38:27',1,X'dade04bf26b5092891d3e2adc77498dbe579c98c1c18402801ec47965330feec797dc07d3ad5c9ebe742635b59a6c1f1',15560683);
INSERT INTO _sqlx_migrations VALUES(2,'inventory','2026-11-29 11:38:27',1,X'06b210067334ef9ce8fa1d0044038a604b188e935b5f5838b4be64342654042eb8ed8716c723b47335e4505bffa3e5ad',7884141);
INSERT INTO _sqlx_migrations VALUES(3,'events','2026-11-29 11:38:27',1,X'2ad3404d0318464a1962dc844533564bed08b3d500de66c8d9368d871872d581e455024dd448d164513fcfdd22ce946a',3860524);
INSERT INTO _sqlx_migrations VALUES(4,'idempotency','2026-11-29 11:38:27',1,X'35b7ac6fe0fdc26a5bcf331653ba1673dd465afbf470104527eb87ab6af6ae7747fe506d9b954ebc5c066e05cdd94cda',2106168);
INSERT INTO _sqlx_migrations VALUES(5,'processes','2026-11-29 11:38:27',1,X'039b32c57093b9192309c087cf59d19f0b3fa641785070faee683242c97bac81ef6df44694f661eff71bca6744afb465',16950316);
INSERT INTO _sqlx_migrations VALUES(6,'accelerators','2026-11-29 11:38:27',1,X'8d0590830f73747d87b6aeb78bc056484a5e16025c78f29b39481d4c4a7e2c7c4ebeba7f53800d786c13d541e72d6074',12003639);
INSERT INTO _sqlx_migrations VALUES(7,'cyborg','2026-11-29 11:38:27',1,X'4aa492bc2a0a6e3e80015d32113f7dd476c89b7b1333b66b0c48e793011915f6b7d17db951ce62f76d44c5ce4b6949a1',11223370);
INSERT INTO _sqlx_migrations VALUES(8,'mdev','2026-11-29 11:38:27',1,X'243282126e96d550fa2fdc5daaa7aec02823e8d00a30e9633fc09339923eb2627d88424cdfaf71eb1233c556e9de055a',3244419);
INSERT INTO _sqlx_migrations VALUES(9,'accelerator project','2026-11-29 11:38:27',1,X'0b94e9318ab66bffa0e0c001dede1052bb6da345c3a328755557562e0a50a7426a9a85b8ebcf416467383426d886e0c4',10798799);
INSERT INTO _sqlx_migrations VALUES(10,'rows of a request','2026-11-29 11:38:27',1,X'f162f47025dbfb569f2ca86eb021b8141396374dc20fdb4aaf402d34a53aa63401e5a29af9d001d4d4717ad1440c6585',8438153);
INSERT INTO _sqlx_migrations VALUES(11,'ended and asked','2026-11-29 11:38:27',1,X'9165ec75ca21fa27ff006f693d6d6844ebebe31a8a53396d425b69b643707906f03d0a63ed7865c4b5389c41f2730e08',15256491);
INSERT INTO _sqlx_migrations VALUES(12,'overdue calls','2026-11-29 11:38:27',1,X'b19815194fbacf51152966d07f84f66ae86e3d21ec8c494d3b388e07aed14862e7e5306378dd4f9be219523bd35dea91',8901041);
INSERT INTO _sqlx_migrations VALUES(13,'assignments alike','2026-11-29 11:38:27',1,X'df7b12aeffd1d0cc12dc023770627cdc9f66317ca054522c3545660eba10a202ff23f4958eb85773c49f8cfac1a2b799',15123592);
INSERT INTO _sqlx_migrations VALUES(14,'audit','2026-11-29 11:38:27',1,X'6dd33e77fcaf1df8fb4ca04ab356bdb19eb644b13b5d0ffba2d287d7fa1908c56ae76bebb685ca898bed669bff0297db',6845157);
INSERT INTO _sqlx_migrations VALUES(15,'quotas','2026-11-29 11:38:27',1,X'2d624a733c479b21db0e58cd1b5aa64a334c2bf3eb6fe52a812a39c35e2092dff163dc957039c27e0f7b19f447a8777b',3548130);
INSERT INTO _sqlx_migrations VALUES(16,'host modes','2026-11-29 11:38:27',1,X'd7f6f4951a133ea20c061486c82f7c2aba02c2d3bd8a5153fbe82ea8b2686038531f57e7043c1d7193a84912bf8dae12',1477404);
INSERT INTO _sqlx_migrations VALUES(17,'traceparent','2026-11-29 11:38:27',1,X'84371c42a0f634116f831397012cc0193bf2ee6e8d4b7eb64209e5ec83421675809558c8f0785b20f46ba192ab40dd92',2358693);
CREATE TABLE hypervisors (
    id         BIGINT NOT NULL PRIMARY KEY,
    uuid       TEXT   NOT NULL UNIQUE,
    name       TEXT   NOT NULL UNIQUE,
    uri        TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT
);
INSERT INTO hypervisors VALUES(1,'8ba2cbef-e7c4-40bb-815e-c4a35bd69cb7','node1','sim:///tmp/.tmp7FNIEY/host',1795952307759,NULL);
CREATE TABLE pci_devices (
    id              BIGINT NOT NULL PRIMARY KEY,
    uuid            TEXT   NOT NULL UNIQUE,
    compute_node_id BIGINT NOT NULL REFERENCES hypervisors (id),
    address         TEXT   NOT NULL,
    vendor_id       TEXT   NOT NULL,
    product_id      TEXT   NOT NULL,
    dev_type        TEXT   NOT NULL CHECK (dev_type IN ('type-PCI', 'type-PF', 'type-VF', 'vdpa')),
    dev_id          TEXT   NOT NULL,
    label           TEXT   NOT NULL,
    status          TEXT   NOT NULL CHECK (status IN
        ('available', 'claimed', 'allocated', 'removed', 'deleted', 'unclaimable', 'unavailable')),
    request_id      TEXT,
    extra_info      TEXT   NOT NULL,
    instance_uuid   TEXT,
    numa_node       BIGINT,
    parent_addr     TEXT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT,
    deleted_at      BIGINT,
    deleted         BIGINT NOT NULL, gone_at BIGINT, used_at BIGINT, seq BIGINT NOT NULL DEFAULT 0,
    UNIQUE (compute_node_id, address, deleted),
    -- A device that is promised has an owner, one that is free has none.
    CHECK ((status IN ('claimed', 'allocated')) = (instance_uuid IS NOT NULL))
);
INSERT INTO pci_devices VALUES(1,'00336232-d249-4b14-afa2-90764dd28f8f',1,'0000:00:1d.0','1234','11e8','type-PCI','pci_0000_00_1d_0','label_1234_11e8','available',NULL,'{"slot_path":"0000:1d.0"}',NULL,NULL,NULL,1795952307777,NULL,NULL,0,NULL,NULL,1);
INSERT INTO pci_devices VALUES(2,'154bccaa-b08b-424e-aeca-115e4ce85abc',1,'0000:04:00.0','8086','10c9','type-PF','pci_0000_04_00_0','label_8086_10c9','unavailable',NULL,'{"mac_address":"52:54:00:aa:00:01","slot_path":"0000:10.0/00.0"}',NULL,NULL,NULL,1795952307777,1795952308126,NULL,0,NULL,NULL,3);
INSERT INTO pci_devices VALUES(3,'28332c45-87d3-43d4-b043-9e7f810b6d07',1,'0000:04:10.0','8086','10ca','type-VF','pci_0000_04_10_0','label_8086_10ca','allocated','e02cafaf-6189-4364-b2f2-1c6c0058da59','{"capabilities":"{\"network\":[\"rx\",\"tx\",\"sg\",\"tso\",\"gso\",\"gro\",\"rxvlan\",\"txvlan\",\"txudptnl\"],\"sriov\":{\"pf_mac_address\":\"52:54:00:aa:00:01\",\"vf_num\":0}}","parent_ifname":"eth5","phys_function":"0000:04:00.0","slot_path":"0000:10.0/10.0"}','10000000-0000-4000-8000-000000000001',NULL,'0000:04:00.0',1795952307777,1795952308126,NULL,0,NULL,NULL,3);
INSERT INTO pci_devices VALUES(4,'94783cd4-3eaf-49ee-a43a-900c9cab0796',1,'0000:04:10.2','8086','10ca','type-VF','pci_0000_04_10_2','label_8086_10ca','available',NULL,'{"capabilities":"{\"network\":[\"rx\",\"tx\",\"sg\",\"tso\",\"gso\",\"gro\",\"rxvlan\",\"txvlan\",\"txudptnl\"],\"sriov\":{\"pf_mac_address\":\"52:54:00:aa:00:01\",\"vf_num\":1}}","parent_ifname":"eth5","phys_function":"0000:04:00.0","slot_path":"0000:10.0/10.2"}',NULL,NULL,'0000:04:00.0',1795952307777,NULL,NULL,0,NULL,NULL,1);
INSERT INTO pci_devices VALUES(5,'c68659e8-eeff-4ffd-9ce0-0129d610576a',1,'0000:05:00.0','8086','10d3','type-PCI','pci_0000_05_00_0','label_8086_10d3','available',NULL,'{"slot_path":"0000:11.0/00.0"}',NULL,NULL,NULL,1795952307777,1795952308257,NULL,0,NULL,NULL,6);
INSERT INTO pci_devices VALUES(6,'a1d1988c-4b71-4bd0-8941-117c3ea0508b',1,'0000:06:00.0','8086','10d3','type-PCI','pci_0000_06_00_0','label_8086_10d3','available',NULL,'{"slot_path":"0000:12.0/00.0"}',NULL,NULL,NULL,1795952307777,NULL,NULL,0,NULL,NULL,1);
INSERT INTO pci_devices VALUES(7,'45e531ca-3bae-4d6d-99c0-22275559a140',1,'0000:06:00.1','8086','10d3','type-PCI','pci_0000_06_00_1','label_8086_10d3','available',NULL,'{"slot_path":"0000:12.0/00.1"}',NULL,NULL,NULL,1795952307777,NULL,NULL,0,NULL,NULL,1);
INSERT INTO pci_devices VALUES(8,'cebd31ed-78a0-4490-9975-f2bdced718d8',1,'0000:07:00.0','1b36','0010','type-PCI','pci_0000_07_00_0','label_1b36_0010','available',NULL,'{"card_serial_number":"QEMU_NVMe_Ctrl_LAB0_1","slot_path":"0000:13.0/00.0"}',NULL,NULL,NULL,1795952307777,NULL,NULL,0,NULL,NULL,1);
INSERT INTO pci_devices VALUES(9,'3faa44f9-e925-4a70-81e2-7fb671870b46',1,'0000:08:00.0','1b36','0010','type-PF','pci_0000_08_00_0','label_1b36_0010','available',NULL,'{"card_serial_number":"QEMU_NVMe_Ctrl_LAB1_1","slot_path":"0000:14.0/00.0"}',NULL,NULL,NULL,1795952307777,NULL,NULL,0,NULL,NULL,1);
INSERT INTO pci_devices VALUES(10,'46029481-a3a7-40c5-9215-3532bb6e2f81',1,'0000:0a:01.0','1234','11e8','type-PCI','pci_0000_0a_01_0','label_1234_11e8','available',NULL,'{"slot_path":"0000:15.0/00.0/01.0"}',NULL,NULL,NULL,1795952307777,NULL,NULL,0,NULL,NULL,1);
INSERT INTO pci_devices VALUES(11,'d873ffe3-047d-495e-aa4f-b360d2bc3be5',1,'0000:0a:03.0','8086','100e','type-PCI','pci_0000_0a_03_0','label_8086_100e','available',NULL,'{"slot_path":"0000:15.0/00.0/03.0"}',NULL,NULL,NULL,1795952307777,NULL,NULL,0,NULL,NULL,1);
CREATE TABLE attachments (
    id            TEXT   NOT NULL PRIMARY KEY,
    request_id    TEXT   NOT NULL,
    hypervisor_id BIGINT NOT NULL REFERENCES hypervisors (id),
    server_uuid   TEXT   NOT NULL,
    device_id     BIGINT NOT NULL REFERENCES pci_devices (id),
    alias_name    TEXT   NOT NULL,
    persistent    BIGINT NOT NULL CHECK (persistent IN (0, 1)),
    managed       BIGINT NOT NULL CHECK (managed IN (0, 1)),
    state         TEXT   NOT NULL CHECK (state IN ('attaching', 'attached', 'detaching', 'detached', 'failed')),
    state_reason  TEXT,
    inner_address TEXT,
    inner_source  TEXT,
    created_at    BIGINT NOT NULL,
    updated_at    BIGINT,
    attached_at   BIGINT,
    ended_at      BIGINT, mac_address TEXT, vlan BIGINT, physical_network TEXT, trusted BIGINT CHECK (trusted IN (0, 1)), whole_group BIGINT NOT NULL DEFAULT 0 CHECK (whole_group IN (0, 1)), taken BIGINT NOT NULL DEFAULT 0 CHECK (taken IN (0, 1)), forced BIGINT NOT NULL DEFAULT 0 CHECK (forced IN (0, 1)), worker TEXT, holder TEXT, asked BIGINT NOT NULL DEFAULT 0 CHECK (asked IN (0, 1)), unasked BIGINT NOT NULL DEFAULT 0 CHECK (unasked IN (0, 1)), inner_run BIGINT, project_id TEXT,
    CHECK ((state IN ('detached', 'failed')) = (ended_at IS NOT NULL))
);
INSERT INTO attachments VALUES('1222b309-4bca-4406-971c-de55eadbcf1c','e02cafaf-6189-4364-b2f2-1c6c0058da59',1,'10000000-0000-4000-8000-000000000001',3,'vf',1,1,'attached',NULL,'0000:02:00.0','computed',1795952308083,1795952308126,1795952308126,NULL,NULL,NULL,NULL,NULL,0,1,0,NULL,NULL,1,0,NULL,NULL);
INSERT INTO attachments VALUES('db09a997-9176-4ab3-ac76-3c715514e458','c7d7ca89-16a6-48eb-a520-637c5f10dcbb',1,'10000000-0000-4000-8000-000000000001',5,'e1000e',1,1,'detached',NULL,NULL,NULL,1795952308148,1795952308257,1795952308184,1795952308257,NULL,NULL,NULL,NULL,0,0,0,NULL,NULL,1,0,NULL,NULL);
CREATE TABLE pci_config (
    id         TEXT   NOT NULL PRIMARY KEY,
    kind       TEXT   NOT NULL CHECK (kind IN ('whitelist', 'alias', 'extra_info')),
    position   BIGINT NOT NULL,
    body       TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT
);
INSERT INTO pci_config VALUES('e77dd1de-45a6-4dcb-a073-50d6213076c6','alias',1,'{"name":"late","product_id":"10ca","vendor_id":"8086"}',1795952308266,NULL);
CREATE TABLE events (
    id            BIGINT NOT NULL PRIMARY KEY,
    time          BIGINT NOT NULL,
    who           TEXT   NOT NULL,
    kind          TEXT   NOT NULL,
    hypervisor_id BIGINT REFERENCES hypervisors (id),
    server_uuid   TEXT,
    device_id     BIGINT,
    address       TEXT,
    attachment_id TEXT,
    rule_id       TEXT,
    -- JSON.
    was           TEXT,
    became        TEXT,
    reason        TEXT
, user_id TEXT, user_name TEXT, project_id TEXT, roles TEXT, via TEXT, global_request_id TEXT, resource_id TEXT, traceparent TEXT);
INSERT INTO events VALUES(1,1795952307778,'discovery','device.added',1,NULL,1,'0000:00:1d.0',NULL,NULL,NULL,'{"address":"0000:00:1d.0","dev_type":"type-PCI","product_id":"11e8","slot_path":"0000:1d.0","status":"available","vendor_id":"1234"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO events VALUES(2,1795952307778,'discovery','device.added',1,NULL,2,'0000:04:00.0',NULL,NULL,NULL,'{"address":"0000:04:00.0","dev_type":"type-PF","mac_address":"52:54:00:aa:00:01","product_id":"10c9","slot_path":"0000:10.0/00.0","status":"available","vendor_id":"8086"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO events VALUES(3,1795952307778,'discovery','device.added',1,NULL,3,'0000:04:10.0',NULL,NULL,NULL,'{"address":"0000:04:10.0","capabilities":"{\"network\":[\"rx\",\"tx\",\"sg\",\"tso\",\"gso\",\"gro\",\"rxvlan\",\"txvlan\",\"txudptnl\"],\"sriov\":{\"pf_mac_address\":\"52:54:00:aa:00:01\",\"vf_num\":0}}","dev_type":"type-VF","parent_addr":"0000:04:00.0","parent_ifname":"eth5","phys_function":"0000:04:00.0","product_id":"10ca","slot_path":"0000:10.0/10.0","status":"available","vendor_id":"8086"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO events VALUES(4,1795952307778,'discovery','device.added',1,NULL,4,'0000:04:10.2',NULL,NULL,NULL,'{"address":"0000:04:10.2","capabilities":"{\"network\":[\"rx\",\"tx\",\"sg\",\"tso\",\"gso\",\"gro\",\"rxvlan\",\"txvlan\",\"txudptnl\"],\"sriov\":{\"pf_mac_address\":\"52:54:00:aa:00:01\",\"vf_num\":1}}","dev_type":"type-VF","parent_addr":"0000:04:00.0","parent_ifname":"eth5","phys_function":"0000:04:00.0","product_id":"10ca","slot_path":"0000:10.0/10.2","status":"available","vendor_id":"8086"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO events VALUES(5,1795952307778,'discovery','device.added',1,NULL,5,'0000:05:00.0',NULL,NULL,NULL,'{"address":"0000:05:00.0","dev_type":"type-PCI","product_id":"10d3","slot_path":"0000:11.0/00.0","status":"available","vendor_id":"8086"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO events VALUES(6,1795952307778,'discovery','device.added',1,NULL,6,'0000:06:00.0',NULL,NULL,NULL,'{"address":"0000:06:00.0","dev_type":"type-PCI","product_id":"10d3","slot_path":"0000:12.0/00.0","status":"available","vendor_id":"8086"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO events VALUES(7,1795952307778,'discovery','device.added',1,NULL,7,'0000:06:00.1',NULL,NULL,NULL,'{"address":"0000:06:00.1","dev_type":"type-PCI","product_id":"10d3","slot_path":"0000:12.0/00.1","status":"available","vendor_id":"8086"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO events VALUES(8,1795952307778,'discovery','device.added',1,NULL,8,'0000:07:00.0',NULL,NULL,NULL,'{"address":"0000:07:00.0","card_serial_number":"QEMU_NVMe_Ctrl_LAB0_1","dev_type":"type-PCI","product_id":"0010","slot_path":"0000:13.0/00.0","status":"available","vendor_id":"1b36"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO events VALUES(9,1795952307778,'discovery','device.added',1,NULL,9,'0000:08:00.0',NULL,NULL,NULL,'{"address":"0000:08:00.0","card_serial_number":"QEMU_NVMe_Ctrl_LAB1_1","dev_type":"type-PF","product_id":"0010","slot_path":"0000:14.0/00.0","status":"available","vendor_id":"1b36"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO events VALUES(10,1795952307778,'discovery','device.added',1,NULL,10,'0000:0a:01.0',NULL,NULL,NULL,'{"address":"0000:0a:01.0","dev_type":"type-PCI","product_id":"11e8","slot_path":"0000:15.0/00.0/01.0","status":"available","vendor_id":"1234"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO events VALUES(11,1795952307778,'discovery','device.added',1,NULL,11,'0000:0a:03.0',NULL,NULL,NULL,'{"address":"0000:0a:03.0","dev_type":"type-PCI","product_id":"100e","slot_path":"0000:15.0/00.0/03.0","status":"available","vendor_id":"8086"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO events VALUES(12,1795952308083,'request req-fa7ad263-433f-4449-82f8-f7ff79797267','attachment.state',1,'10000000-0000-4000-8000-000000000001',3,'0000:04:10.0','1222b309-4bca-4406-971c-de55eadbcf1c',NULL,NULL,'"attaching"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(13,1795952308083,'request req-fa7ad263-433f-4449-82f8-f7ff79797267','device.status',1,NULL,2,'0000:04:00.0',NULL,NULL,'"available"','"unclaimable"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(14,1795952308083,'request req-fa7ad263-433f-4449-82f8-f7ff79797267','device.status',1,'10000000-0000-4000-8000-000000000001',3,'0000:04:10.0',NULL,NULL,'"available"','"claimed"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(15,1795952308126,'request req-fa7ad263-433f-4449-82f8-f7ff79797267','attachment.state',1,'10000000-0000-4000-8000-000000000001',3,'0000:04:10.0','1222b309-4bca-4406-971c-de55eadbcf1c',NULL,'"attaching"','"attached"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(16,1795952308126,'request req-fa7ad263-433f-4449-82f8-f7ff79797267','attachment.inner_address',1,'10000000-0000-4000-8000-000000000001',3,'0000:04:10.0','1222b309-4bca-4406-971c-de55eadbcf1c',NULL,NULL,'{"address":"0000:02:00.0","source":"computed"}',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(17,1795952308126,'request req-fa7ad263-433f-4449-82f8-f7ff79797267','device.status',1,NULL,2,'0000:04:00.0',NULL,NULL,'"unclaimable"','"unavailable"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(18,1795952308126,'request req-fa7ad263-433f-4449-82f8-f7ff79797267','device.status',1,'10000000-0000-4000-8000-000000000001',3,'0000:04:10.0',NULL,NULL,'"claimed"','"allocated"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(19,1795952308148,'request req-af83a9b3-45a5-4384-a881-137a74f6c233','attachment.state',1,'10000000-0000-4000-8000-000000000001',5,'0000:05:00.0','db09a997-9176-4ab3-ac76-3c715514e458',NULL,NULL,'"attaching"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(20,1795952308148,'request req-af83a9b3-45a5-4384-a881-137a74f6c233','device.status',1,'10000000-0000-4000-8000-000000000001',5,'0000:05:00.0',NULL,NULL,'"available"','"claimed"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(21,1795952308184,'request req-af83a9b3-45a5-4384-a881-137a74f6c233','attachment.state',1,'10000000-0000-4000-8000-000000000001',5,'0000:05:00.0','db09a997-9176-4ab3-ac76-3c715514e458',NULL,'"attaching"','"attached"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(22,1795952308184,'request req-af83a9b3-45a5-4384-a881-137a74f6c233','attachment.inner_address',1,'10000000-0000-4000-8000-000000000001',5,'0000:05:00.0','db09a997-9176-4ab3-ac76-3c715514e458',NULL,NULL,'{"address":"0000:03:00.0","source":"computed"}',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(23,1795952308184,'request req-af83a9b3-45a5-4384-a881-137a74f6c233','device.status',1,'10000000-0000-4000-8000-000000000001',5,'0000:05:00.0',NULL,NULL,'"claimed"','"allocated"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(24,1795952308223,'request req-473381c9-692f-43ce-af64-f6f221ca0d1f','attachment.state',1,'10000000-0000-4000-8000-000000000001',5,'0000:05:00.0','db09a997-9176-4ab3-ac76-3c715514e458',NULL,'"attached"','"detaching"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(25,1795952308257,'request req-473381c9-692f-43ce-af64-f6f221ca0d1f','attachment.state',1,'10000000-0000-4000-8000-000000000001',5,'0000:05:00.0','db09a997-9176-4ab3-ac76-3c715514e458',NULL,'"detaching"','"detached"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(26,1795952308257,'request req-473381c9-692f-43ce-af64-f6f221ca0d1f','attachment.inner_address',1,'10000000-0000-4000-8000-000000000001',5,'0000:05:00.0','db09a997-9176-4ab3-ac76-3c715514e458',NULL,'{"address":"0000:03:00.0","source":"computed"}',NULL,NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(27,1795952308257,'request req-473381c9-692f-43ce-af64-f6f221ca0d1f','device.status',1,'10000000-0000-4000-8000-000000000001',5,'0000:05:00.0',NULL,NULL,'"allocated"','"available"',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(28,1795952308277,'request req-3bfbb986-a729-4592-b64d-41c5617f8383','rule.added',NULL,NULL,NULL,NULL,NULL,'e77dd1de-45a6-4dcb-a073-50d6213076c6',NULL,'{"entry":{"name":"late","product_id":"10ca","vendor_id":"8086"},"kind":"alias"}',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
INSERT INTO events VALUES(29,1795952308284,'request req-97bbdeb4-7b4d-4007-a5db-3a4486f561de','accelerator.created',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'{"name":"card","project_id":null}',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,'5001e223-6840-446b-9625-64ea9b702606',NULL);
INSERT INTO events VALUES(30,1795952308293,'request req-00edafea-6fc2-4247-9bc8-0f4728227d23','quota.changed',NULL,NULL,NULL,NULL,NULL,NULL,'{"limits":{},"project":"p1"}','{"limits":{"pci_attachments":8},"project":"p1"}',NULL,NULL,NULL,NULL,'["admin"]','insecure_tcp, TCP 127.0.0.1',NULL,NULL,NULL);
CREATE TABLE event_ids (
    last   BIGINT NOT NULL,
    pruned BIGINT NOT NULL
);
INSERT INTO event_ids VALUES(30,0);
CREATE TABLE webhooks (
    name       TEXT   NOT NULL PRIMARY KEY,
    told       BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT
);
CREATE TABLE dead_letters (
    webhook  TEXT   NOT NULL REFERENCES webhooks (name),
    event_id BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    reason   TEXT   NOT NULL,
    died_at  BIGINT NOT NULL,
    due      BIGINT NOT NULL DEFAULT 0 CHECK (due IN (0, 1)),
    PRIMARY KEY (webhook, event_id)
);
CREATE TABLE idempotency_keys (
    idempotency_key TEXT   NOT NULL,
    route           TEXT   NOT NULL,
    fingerprint     TEXT   NOT NULL,
    -- Of an attach: written with the reservation of its devices.
    request_id      TEXT,
    -- The answer; none while there is none, or when the first try was cut off.
    status          BIGINT,
    body            TEXT,
    created_at      BIGINT NOT NULL, location TEXT, project_id TEXT,
    PRIMARY KEY (idempotency_key, route),
    CHECK ((status IS NULL) = (body IS NULL))
);
CREATE TABLE commits (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    seq BIGINT NOT NULL
);
INSERT INTO commits VALUES(1,6);
CREATE TABLE processes (
    id         TEXT   NOT NULL PRIMARY KEY,
    host       TEXT   NOT NULL,
    pid        BIGINT NOT NULL,
    started_at BIGINT NOT NULL
);
CREATE TABLE accelerators (
    accelerator_id BIGINT NOT NULL PRIMARY KEY,
    uuid           TEXT   NOT NULL UNIQUE,
    name           TEXT   NOT NULL UNIQUE,
    device_type    TEXT   NOT NULL,
    acc_type       TEXT   NOT NULL,
    acc_capability TEXT   NOT NULL,
    vendor_id      TEXT,
    product_id     TEXT,
    remotable      BIGINT NOT NULL,
    -- The spec as it was put, JSON; none as long as none was.
    acc_specs      TEXT,
    -- One more with every spec.
    generation     BIGINT NOT NULL,
    -- The one device that it is; none takes any that its spec asks for.
    device_id      BIGINT REFERENCES pci_devices (id),
    created_at     BIGINT NOT NULL,
    updated_at     BIGINT
, project_id TEXT);
INSERT INTO accelerators VALUES(1,'5001e223-6840-446b-9625-64ea9b702606','card','UNKNOWN','','{}',NULL,NULL,0,NULL,0,NULL,1795952308283,NULL,NULL);
CREATE TABLE bindings (
    id              TEXT   NOT NULL PRIMARY KEY,
    request_id      TEXT   NOT NULL,
    hypervisor_id   BIGINT NOT NULL REFERENCES hypervisors (id),
    device_id       BIGINT NOT NULL REFERENCES pci_devices (id),
    holder          TEXT   NOT NULL,
    driver          TEXT   NOT NULL CHECK (driver IN ('native', 'vfio-pci')),
    -- What it was bound to before, and is to be bound to again; none: to nothing.
    previous_driver TEXT,
    state           TEXT   NOT NULL CHECK (state IN ('attaching', 'attached', 'detaching', 'detached', 'failed')),
    state_reason    TEXT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT,
    ended_at        BIGINT, attached_at BIGINT, forced BIGINT NOT NULL DEFAULT 0 CHECK (forced IN (0, 1)),
    CHECK ((state IN ('detached', 'failed')) = (ended_at IS NOT NULL))
);
CREATE TABLE device_profiles (
    id             BIGINT NOT NULL PRIMARY KEY,
    uuid           TEXT   NOT NULL UNIQUE,
    name           TEXT   NOT NULL UNIQUE,
    description    TEXT,
    profile_groups TEXT   NOT NULL,
    created_at     BIGINT NOT NULL,
    updated_at     BIGINT
);
CREATE TABLE accelerator_requests (
    id              BIGINT NOT NULL PRIMARY KEY,
    uuid            TEXT   NOT NULL UNIQUE,
    profile_id      BIGINT NOT NULL REFERENCES device_profiles (id),
    profile_group   BIGINT NOT NULL,
    resource_class  TEXT   NOT NULL,
    -- Whose it is; none: nobody was asked who they are.
    project_id      TEXT,
    state           TEXT   NOT NULL CHECK (state IN
        ('Initial', 'BindStarted', 'Bound', 'Unbound', 'BindFailed', 'UnbindFailed', 'Deleting')),
    state_reason    TEXT,
    hostname        TEXT,
    device_rp_uuid  TEXT,
    instance_uuid   TEXT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT,
    CHECK ((hostname IS NULL) = (instance_uuid IS NULL) AND (hostname IS NULL) = (device_rp_uuid IS NULL))
);
CREATE TABLE disabled_cards (
    hypervisor_id BIGINT NOT NULL REFERENCES hypervisors (id),
    address       TEXT   NOT NULL,
    created_at    BIGINT NOT NULL,
    PRIMARY KEY (hypervisor_id, address)
);
CREATE TABLE attributes (
    uuid          TEXT   NOT NULL PRIMARY KEY,
    deployable_id BIGINT NOT NULL REFERENCES pci_devices (id),
    attribute_key TEXT   NOT NULL,
    value         TEXT   NOT NULL,
    created_at    BIGINT NOT NULL
);
CREATE TABLE mdevs (
    -- Its UUID on the host, and of its alias in the domain.
    id            TEXT   NOT NULL PRIMARY KEY,
    request_id    TEXT   NOT NULL,
    hypervisor_id BIGINT NOT NULL REFERENCES hypervisors (id),
    -- The function whose driver makes it.
    device_id     BIGINT NOT NULL REFERENCES pci_devices (id),
    server_uuid   TEXT   NOT NULL,
    mdev_type     TEXT   NOT NULL,
    holder        TEXT   NOT NULL,
    persistent    BIGINT NOT NULL,
    -- It is to go whatever its guest says.
    forced        BIGINT NOT NULL DEFAULT 0,
    state         TEXT   NOT NULL CHECK (state IN ('attaching', 'attached', 'detaching', 'detached', 'failed')),
    state_reason  TEXT,
    inner_address TEXT,
    inner_source  TEXT,
    created_at    BIGINT NOT NULL,
    updated_at    BIGINT,
    ended_at      BIGINT, unasked BIGINT NOT NULL DEFAULT 0 CHECK (unasked IN (0, 1)), inner_run BIGINT, worker TEXT, attached_at BIGINT, project_id TEXT,
    CHECK ((state IN ('detached', 'failed')) = (ended_at IS NOT NULL))
);
CREATE TABLE overdue_calls (
    process       TEXT   NOT NULL,
    hypervisor_id BIGINT NOT NULL,
    operation     TEXT   NOT NULL,
    server_uuid   TEXT,
    address       TEXT,
    since         BIGINT NOT NULL
);
CREATE TABLE quotas (
    project_id TEXT   NOT NULL,
    resource   TEXT   NOT NULL,
    -- -1: no limit.
    hard_limit BIGINT NOT NULL CHECK (hard_limit >= -1),
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (project_id, resource)
);
INSERT INTO quotas VALUES('p1','pci_attachments',8,1795952308293);
CREATE TABLE host_modes (
    hypervisor_id BIGINT PRIMARY KEY,
    mode          TEXT   NOT NULL,
    set_by        TEXT   NOT NULL,
    reason        TEXT,
    since         BIGINT NOT NULL
);
CREATE INDEX pci_devices_by_parent ON pci_devices (compute_node_id, parent_addr, deleted);
CREATE INDEX pci_devices_by_owner ON pci_devices (instance_uuid, deleted);
CREATE UNIQUE INDEX attachments_one_per_device ON attachments (device_id) WHERE ended_at IS NULL;
CREATE INDEX attachments_by_server ON attachments (server_uuid, ended_at);
CREATE INDEX attachments_by_hypervisor ON attachments (hypervisor_id, ended_at);
CREATE INDEX attachments_taken ON attachments (hypervisor_id) WHERE taken = 1;
CREATE UNIQUE INDEX attachments_one_per_mac ON attachments (mac_address)
    WHERE ended_at IS NULL AND mac_address IS NOT NULL;
CREATE INDEX pci_config_in_order ON pci_config (kind, position);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
CREATE INDEX attachments_by_request ON attachments (request_id);
CREATE INDEX attachments_by_end ON attachments (ended_at);
CREATE INDEX pci_devices_by_seq ON pci_devices (seq);
CREATE INDEX attachments_by_holder ON attachments (holder) WHERE holder IS NOT NULL AND ended_at IS NULL;
CREATE UNIQUE INDEX bindings_one_per_device ON bindings (device_id) WHERE ended_at IS NULL;
CREATE INDEX bindings_by_holder ON bindings (holder) WHERE ended_at IS NULL;
CREATE INDEX accelerator_requests_by_instance ON accelerator_requests (instance_uuid);
CREATE INDEX mdevs_by_device ON mdevs (device_id) WHERE ended_at IS NULL;
CREATE INDEX mdevs_by_server ON mdevs (server_uuid) WHERE ended_at IS NULL;
CREATE INDEX mdevs_by_holder ON mdevs (holder) WHERE ended_at IS NULL;
CREATE INDEX bindings_by_request ON bindings (request_id);
CREATE INDEX mdevs_by_request ON mdevs (request_id);
CREATE INDEX bindings_by_end ON bindings (ended_at);
CREATE INDEX mdevs_by_end ON mdevs (ended_at);
CREATE INDEX idempotency_keys_by_request ON idempotency_keys (request_id);
CREATE INDEX overdue_calls_by_process ON overdue_calls (process, hypervisor_id);
CREATE INDEX events_by_user ON events (user_name, id) WHERE user_name IS NOT NULL;
CREATE INDEX events_by_user_id ON events (user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX events_by_project ON events (project_id, id) WHERE project_id IS NOT NULL;
CREATE INDEX attachments_by_project ON attachments (project_id, created_at, device_id)
    WHERE ended_at IS NULL AND project_id IS NOT NULL;
CREATE INDEX attachments_in_order ON attachments (created_at, device_id) WHERE ended_at IS NULL;
CREATE INDEX mdevs_by_project ON mdevs (project_id) WHERE ended_at IS NULL AND project_id IS NOT NULL;
CREATE INDEX accelerators_by_project ON accelerators (project_id, accelerator_id);
CREATE INDEX accelerator_requests_by_project ON accelerator_requests (project_id, id);
CREATE INDEX idempotency_keys_by_project ON idempotency_keys (project_id) WHERE project_id IS NOT NULL;
COMMIT;
