--
-- PostgreSQL database dump
--

\restrict DPYCWhIB0rh2LPsC92EjOEOvBOZBKpd4SKov9kojpPNQvfazDnVov3yEnuiMGpM

-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: _sqlx_migrations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public._sqlx_migrations (
    version bigint NOT NULL,
    description text NOT NULL,
    installed_on timestamp with time zone DEFAULT now() NOT NULL,
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);


--
-- Name: accelerator_requests; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.accelerator_requests (
    id bigint NOT NULL,
    uuid text NOT NULL,
    profile_id bigint NOT NULL,
    profile_group bigint NOT NULL,
    resource_class text NOT NULL,
    project_id text,
    state text NOT NULL,
    state_reason text,
    hostname text,
    device_rp_uuid text,
    instance_uuid text,
    created_at bigint NOT NULL,
    updated_at bigint,
    CONSTRAINT accelerator_requests_check CHECK ((((hostname IS NULL) = (instance_uuid IS NULL)) AND ((hostname IS NULL) = (device_rp_uuid IS NULL)))),
    CONSTRAINT accelerator_requests_state_check CHECK ((state = ANY (ARRAY['Initial'::text, 'BindStarted'::text, 'Bound'::text, 'Unbound'::text, 'BindFailed'::text, 'UnbindFailed'::text, 'Deleting'::text])))
);


--
-- Name: accelerators; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.accelerators (
    accelerator_id bigint NOT NULL,
    uuid text NOT NULL,
    name text NOT NULL,
    device_type text NOT NULL,
    acc_type text NOT NULL,
    acc_capability text NOT NULL,
    vendor_id text,
    product_id text,
    remotable bigint NOT NULL,
    acc_specs text,
    generation bigint NOT NULL,
    device_id bigint,
    created_at bigint NOT NULL,
    updated_at bigint,
    project_id text
);


--
-- Name: attachments; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.attachments (
    id text NOT NULL,
    request_id text NOT NULL,
    hypervisor_id bigint NOT NULL,
    server_uuid text NOT NULL,
    device_id bigint NOT NULL,
    alias_name text NOT NULL,
    persistent bigint NOT NULL,
    managed bigint NOT NULL,
    state text NOT NULL,
    state_reason text,
    inner_address text,
    inner_source text,
    created_at bigint NOT NULL,
    updated_at bigint,
    attached_at bigint,
    ended_at bigint,
    mac_address text,
    vlan bigint,
    physical_network text,
    trusted bigint,
    whole_group bigint DEFAULT 0 NOT NULL,
    taken bigint DEFAULT 0 NOT NULL,
    forced bigint DEFAULT 0 NOT NULL,
    worker text,
    holder text,
    asked bigint DEFAULT 0 NOT NULL,
    unasked bigint DEFAULT 0 NOT NULL,
    inner_run bigint,
    project_id text,
    CONSTRAINT attachments_asked_check CHECK ((asked = ANY (ARRAY[(0)::bigint, (1)::bigint]))),
    CONSTRAINT attachments_check CHECK (((state = ANY (ARRAY['detached'::text, 'failed'::text])) = (ended_at IS NOT NULL))),
    CONSTRAINT attachments_forced_check CHECK ((forced = ANY (ARRAY[(0)::bigint, (1)::bigint]))),
    CONSTRAINT attachments_managed_check CHECK ((managed = ANY (ARRAY[(0)::bigint, (1)::bigint]))),
    CONSTRAINT attachments_persistent_check CHECK ((persistent = ANY (ARRAY[(0)::bigint, (1)::bigint]))),
    CONSTRAINT attachments_state_check CHECK ((state = ANY (ARRAY['attaching'::text, 'attached'::text, 'detaching'::text, 'detached'::text, 'failed'::text]))),
    CONSTRAINT attachments_taken_check CHECK ((taken = ANY (ARRAY[(0)::bigint, (1)::bigint]))),
    CONSTRAINT attachments_trusted_check CHECK ((trusted = ANY (ARRAY[(0)::bigint, (1)::bigint]))),
    CONSTRAINT attachments_unasked_check CHECK ((unasked = ANY (ARRAY[(0)::bigint, (1)::bigint]))),
    CONSTRAINT attachments_whole_group_check CHECK ((whole_group = ANY (ARRAY[(0)::bigint, (1)::bigint])))
);


--
-- Name: attributes; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.attributes (
    uuid text NOT NULL,
    deployable_id bigint NOT NULL,
    attribute_key text NOT NULL,
    value text NOT NULL,
    created_at bigint NOT NULL
);


--
-- Name: bindings; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.bindings (
    id text NOT NULL,
    request_id text NOT NULL,
    hypervisor_id bigint NOT NULL,
    device_id bigint NOT NULL,
    holder text NOT NULL,
    driver text NOT NULL,
    previous_driver text,
    state text NOT NULL,
    state_reason text,
    created_at bigint NOT NULL,
    updated_at bigint,
    ended_at bigint,
    attached_at bigint,
    forced bigint DEFAULT 0 NOT NULL,
    CONSTRAINT bindings_check CHECK (((state = ANY (ARRAY['detached'::text, 'failed'::text])) = (ended_at IS NOT NULL))),
    CONSTRAINT bindings_driver_check CHECK ((driver = ANY (ARRAY['native'::text, 'vfio-pci'::text]))),
    CONSTRAINT bindings_forced_check CHECK ((forced = ANY (ARRAY[(0)::bigint, (1)::bigint]))),
    CONSTRAINT bindings_state_check CHECK ((state = ANY (ARRAY['attaching'::text, 'attached'::text, 'detaching'::text, 'detached'::text, 'failed'::text])))
);


--
-- Name: commits; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.commits (
    one bigint NOT NULL,
    seq bigint NOT NULL,
    CONSTRAINT commits_one_check CHECK ((one = 1))
);


--
-- Name: dead_letters; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.dead_letters (
    webhook text NOT NULL,
    event_id bigint NOT NULL,
    attempts bigint NOT NULL,
    reason text NOT NULL,
    died_at bigint NOT NULL,
    due bigint DEFAULT 0 NOT NULL,
    CONSTRAINT dead_letters_due_check CHECK ((due = ANY (ARRAY[(0)::bigint, (1)::bigint])))
);


--
-- Name: device_profiles; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.device_profiles (
    id bigint NOT NULL,
    uuid text NOT NULL,
    name text NOT NULL,
    description text,
    profile_groups text NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint
);


--
-- Name: disabled_cards; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.disabled_cards (
    hypervisor_id bigint NOT NULL,
    address text NOT NULL,
    created_at bigint NOT NULL
);


--
-- Name: event_ids; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.event_ids (
    last bigint NOT NULL,
    pruned bigint NOT NULL
);


--
-- Name: events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.events (
    id bigint NOT NULL,
    "time" bigint NOT NULL,
    who text NOT NULL,
    kind text NOT NULL,
    hypervisor_id bigint,
    server_uuid text,
    device_id bigint,
    address text,
    attachment_id text,
    rule_id text,
    was text,
    became text,
    reason text,
    user_id text,
    user_name text,
    project_id text,
    roles text,
    via text,
    global_request_id text,
    resource_id text
);


--
-- Name: hypervisors; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.hypervisors (
    id bigint NOT NULL,
    uuid text NOT NULL,
    name text NOT NULL,
    uri text NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint
);


--
-- Name: idempotency_keys; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.idempotency_keys (
    idempotency_key text NOT NULL,
    route text NOT NULL,
    fingerprint text NOT NULL,
    request_id text,
    status bigint,
    body text,
    created_at bigint NOT NULL,
    location text,
    project_id text,
    CONSTRAINT idempotency_keys_check CHECK (((status IS NULL) = (body IS NULL)))
);


--
-- Name: mdevs; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.mdevs (
    id text NOT NULL,
    request_id text NOT NULL,
    hypervisor_id bigint NOT NULL,
    device_id bigint NOT NULL,
    server_uuid text NOT NULL,
    mdev_type text NOT NULL,
    holder text NOT NULL,
    persistent bigint NOT NULL,
    forced bigint DEFAULT 0 NOT NULL,
    state text NOT NULL,
    state_reason text,
    inner_address text,
    inner_source text,
    created_at bigint NOT NULL,
    updated_at bigint,
    ended_at bigint,
    unasked bigint DEFAULT 0 NOT NULL,
    inner_run bigint,
    worker text,
    attached_at bigint,
    project_id text,
    CONSTRAINT mdevs_check CHECK (((state = ANY (ARRAY['detached'::text, 'failed'::text])) = (ended_at IS NOT NULL))),
    CONSTRAINT mdevs_state_check CHECK ((state = ANY (ARRAY['attaching'::text, 'attached'::text, 'detaching'::text, 'detached'::text, 'failed'::text]))),
    CONSTRAINT mdevs_unasked_check CHECK ((unasked = ANY (ARRAY[(0)::bigint, (1)::bigint])))
);


--
-- Name: overdue_calls; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.overdue_calls (
    process text NOT NULL,
    hypervisor_id bigint NOT NULL,
    operation text NOT NULL,
    server_uuid text,
    address text,
    since bigint NOT NULL
);


--
-- Name: pci_config; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.pci_config (
    id text NOT NULL,
    kind text NOT NULL,
    "position" bigint NOT NULL,
    body text NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint,
    CONSTRAINT pci_config_kind_check CHECK ((kind = ANY (ARRAY['whitelist'::text, 'alias'::text, 'extra_info'::text])))
);


--
-- Name: pci_devices; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.pci_devices (
    id bigint NOT NULL,
    uuid text NOT NULL,
    compute_node_id bigint NOT NULL,
    address text NOT NULL,
    vendor_id text NOT NULL,
    product_id text NOT NULL,
    dev_type text NOT NULL,
    dev_id text NOT NULL,
    label text NOT NULL,
    status text NOT NULL,
    request_id text,
    extra_info text NOT NULL,
    instance_uuid text,
    numa_node bigint,
    parent_addr text,
    created_at bigint NOT NULL,
    updated_at bigint,
    deleted_at bigint,
    deleted bigint NOT NULL,
    gone_at bigint,
    used_at bigint,
    seq bigint DEFAULT 0 NOT NULL,
    CONSTRAINT pci_devices_check CHECK (((status = ANY (ARRAY['claimed'::text, 'allocated'::text])) = (instance_uuid IS NOT NULL))),
    CONSTRAINT pci_devices_dev_type_check CHECK ((dev_type = ANY (ARRAY['type-PCI'::text, 'type-PF'::text, 'type-VF'::text, 'vdpa'::text]))),
    CONSTRAINT pci_devices_status_check CHECK ((status = ANY (ARRAY['available'::text, 'claimed'::text, 'allocated'::text, 'removed'::text, 'deleted'::text, 'unclaimable'::text, 'unavailable'::text])))
);


--
-- Name: processes; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.processes (
    id text NOT NULL,
    host text NOT NULL,
    pid bigint NOT NULL,
    started_at bigint NOT NULL
);


--
-- Name: quotas; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.quotas (
    project_id text NOT NULL,
    resource text NOT NULL,
    hard_limit bigint NOT NULL,
    updated_at bigint NOT NULL,
    CONSTRAINT quotas_hard_limit_check CHECK ((hard_limit >= '-1'::integer))
);


--
-- Name: webhooks; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.webhooks (
    name text NOT NULL,
    told bigint NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint
);


--
-- Data for Name: _sqlx_migrations; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public._sqlx_migrations VALUES (1, 'hosts devices attachments', '2026-11-29 03:09:08.088674+00', true, '\xdade04bf26b5092891d3e2adc77498dbe579c98c1c18402801ec47965330feec797dc07d3ad5c9ebe742635b59a6c1f1', 68331736);
INSERT INTO public._sqlx_migrations VALUES (2, 'inventory', '2026-11-29 03:09:08.157434+00', true, '\x06b210067334ef9ce8fa1d0044038a604b188e935b5f5838b4be64342654042eb8ed8716c723b47335e4505bffa3e5ad', 18152523);
INSERT INTO public._sqlx_migrations VALUES (3, 'events', '2026-11-29 03:09:08.176632+00', true, '\x2ad3404d0318464a1962dc844533564bed08b3d500de66c8d9368d871872d581e455024dd448d164513fcfdd22ce946a', 28458237);
INSERT INTO public._sqlx_migrations VALUES (4, 'idempotency', '2026-11-29 03:09:08.204613+00', true, '\x35b7ac6fe0fdc26a5bcf331653ba1673dd465afbf470104527eb87ab6af6ae7747fe506d9b954ebc5c066e05cdd94cda', 18795045);
INSERT INTO public._sqlx_migrations VALUES (5, 'processes', '2026-11-29 03:09:08.224124+00', true, '\x039b32c57093b9192309c087cf59d19f0b3fa641785070faee683242c97bac81ef6df44694f661eff71bca6744afb465', 21548620);
INSERT INTO public._sqlx_migrations VALUES (6, 'accelerators', '2026-11-29 03:09:08.248037+00', true, '\x8d0590830f73747d87b6aeb78bc056484a5e16025c78f29b39481d4c4a7e2c7c4ebeba7f53800d786c13d541e72d6074', 30386697);
INSERT INTO public._sqlx_migrations VALUES (7, 'cyborg', '2026-11-29 03:09:08.278739+00', true, '\x4aa492bc2a0a6e3e80015d32113f7dd476c89b7b1333b66b0c48e793011915f6b7d17db951ce62f76d44c5ce4b6949a1', 42773089);
INSERT INTO public._sqlx_migrations VALUES (8, 'mdev', '2026-11-29 03:09:08.321697+00', true, '\x243282126e96d550fa2fdc5daaa7aec02823e8d00a30e9633fc09339923eb2627d88424cdfaf71eb1233c556e9de055a', 17821702);
INSERT INTO public._sqlx_migrations VALUES (9, 'accelerator project', '2026-11-29 03:09:08.339753+00', true, '\x0b94e9318ab66bffa0e0c001dede1052bb6da345c3a328755557562e0a50a7426a9a85b8ebcf416467383426d886e0c4', 452261);
INSERT INTO public._sqlx_migrations VALUES (10, 'rows of a request', '2026-11-29 03:09:08.341928+00', true, '\xf162f47025dbfb569f2ca86eb021b8141396374dc20fdb4aaf402d34a53aa63401e5a29af9d001d4d4717ad1440c6585', 3089683);
INSERT INTO public._sqlx_migrations VALUES (11, 'ended and asked', '2026-11-29 03:09:08.34732+00', true, '\x9165ec75ca21fa27ff006f693d6d6844ebebe31a8a53396d425b69b643707906f03d0a63ed7865c4b5389c41f2730e08', 9022962);
INSERT INTO public._sqlx_migrations VALUES (12, 'overdue calls', '2026-11-29 03:09:08.356481+00', true, '\xb19815194fbacf51152966d07f84f66ae86e3d21ec8c494d3b388e07aed14862e7e5306378dd4f9be219523bd35dea91', 7721842);
INSERT INTO public._sqlx_migrations VALUES (13, 'assignments alike', '2026-11-29 03:09:08.364332+00', true, '\xdf7b12aeffd1d0cc12dc023770627cdc9f66317ca054522c3545660eba10a202ff23f4958eb85773c49f8cfac1a2b799', 1552482);
INSERT INTO public._sqlx_migrations VALUES (14, 'audit', '2026-11-29 03:09:08.366017+00', true, '\x6dd33e77fcaf1df8fb4ca04ab356bdb19eb644b13b5d0ffba2d287d7fa1908c56ae76bebb685ca898bed669bff0297db', 3250771);
INSERT INTO public._sqlx_migrations VALUES (15, 'quotas', '2026-11-29 03:09:08.369379+00', true, '\x2d624a733c479b21db0e58cd1b5aa64a334c2bf3eb6fe52a812a39c35e2092dff163dc957039c27e0f7b19f447a8777b', 18532567);


--
-- Data for Name: accelerator_requests; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: accelerators; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.accelerators VALUES (1, 'b1ce6df5-f15b-4221-b226-5e620a971d8d', 'card', 'UNKNOWN', '', '{}', NULL, NULL, 0, NULL, 0, NULL, 1795921749150, NULL, NULL);


--
-- Data for Name: attachments; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.attachments VALUES ('a8d0f2d5-e696-48c0-afab-3fdcad1f414c', '53610755-e7f6-4801-bb10-9a7062142306', 1, '10000000-0000-4000-8000-000000000001', 3, 'vf', 1, 1, 'attached', NULL, '0000:02:00.0', 'computed', 1795921748857, 1795921748896, 1795921748896, NULL, NULL, NULL, NULL, NULL, 0, 1, 0, 'process eb9ba652-2744-4c34-9d66-4e2ca46f9425 f53a76f8-80da-4456-918b-9d0716e399d0 pid:[4026531836]', NULL, 1, 0, NULL, NULL);
INSERT INTO public.attachments VALUES ('2fa2881b-b656-4507-9e30-bba9ee7a75c6', '7246aa31-4628-414d-8dc3-86224447b2bd', 1, '10000000-0000-4000-8000-000000000001', 5, 'e1000e', 1, 1, 'detached', NULL, NULL, NULL, 1795921748942, 1795921749036, 1795921748985, 1795921749036, NULL, NULL, NULL, NULL, 0, 0, 0, 'process eb9ba652-2744-4c34-9d66-4e2ca46f9425 f53a76f8-80da-4456-918b-9d0716e399d0 pid:[4026531836]', NULL, 1, 0, NULL, NULL);


--
-- Data for Name: attributes; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: bindings; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: commits; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.commits VALUES (1, 6);


--
-- Data for Name: dead_letters; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: device_profiles; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: disabled_cards; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: event_ids; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.event_ids VALUES (30, 0);


--
-- Data for Name: events; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.events VALUES (1, 1795921748539, 'discovery', 'device.added', 1, NULL, 1, '0000:00:1d.0', NULL, NULL, NULL, '{"address":"0000:00:1d.0","dev_type":"type-PCI","product_id":"11e8","slot_path":"0000:1d.0","status":"available","vendor_id":"1234"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (2, 1795921748539, 'discovery', 'device.added', 1, NULL, 2, '0000:04:00.0', NULL, NULL, NULL, '{"address":"0000:04:00.0","dev_type":"type-PF","mac_address":"52:54:00:aa:00:01","product_id":"10c9","slot_path":"0000:10.0/00.0","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (3, 1795921748539, 'discovery', 'device.added', 1, NULL, 3, '0000:04:10.0', NULL, NULL, NULL, '{"address":"0000:04:10.0","capabilities":"{\"network\":[\"rx\",\"tx\",\"sg\",\"tso\",\"gso\",\"gro\",\"rxvlan\",\"txvlan\",\"txudptnl\"],\"sriov\":{\"pf_mac_address\":\"52:54:00:aa:00:01\",\"vf_num\":0}}","dev_type":"type-VF","parent_addr":"0000:04:00.0","parent_ifname":"eth5","phys_function":"0000:04:00.0","product_id":"10ca","slot_path":"0000:10.0/10.0","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (4, 1795921748539, 'discovery', 'device.added', 1, NULL, 4, '0000:04:10.2', NULL, NULL, NULL, '{"address":"0000:04:10.2","capabilities":"{\"network\":[\"rx\",\"tx\",\"sg\",\"tso\",\"gso\",\"gro\",\"rxvlan\",\"txvlan\",\"txudptnl\"],\"sriov\":{\"pf_mac_address\":\"52:54:00:aa:00:01\",\"vf_num\":1}}","dev_type":"type-VF","parent_addr":"0000:04:00.0","parent_ifname":"eth5","phys_function":"0000:04:00.0","product_id":"10ca","slot_path":"0000:10.0/10.2","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (5, 1795921748539, 'discovery', 'device.added', 1, NULL, 5, '0000:05:00.0', NULL, NULL, NULL, '{"address":"0000:05:00.0","dev_type":"type-PCI","product_id":"10d3","slot_path":"0000:11.0/00.0","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (6, 1795921748539, 'discovery', 'device.added', 1, NULL, 6, '0000:06:00.0', NULL, NULL, NULL, '{"address":"0000:06:00.0","dev_type":"type-PCI","product_id":"10d3","slot_path":"0000:12.0/00.0","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (7, 1795921748539, 'discovery', 'device.added', 1, NULL, 7, '0000:06:00.1', NULL, NULL, NULL, '{"address":"0000:06:00.1","dev_type":"type-PCI","product_id":"10d3","slot_path":"0000:12.0/00.1","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (8, 1795921748539, 'discovery', 'device.added', 1, NULL, 8, '0000:07:00.0', NULL, NULL, NULL, '{"address":"0000:07:00.0","card_serial_number":"QEMU_NVMe_Ctrl_LAB0_1","dev_type":"type-PCI","product_id":"0010","slot_path":"0000:13.0/00.0","status":"available","vendor_id":"1b36"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (9, 1795921748539, 'discovery', 'device.added', 1, NULL, 9, '0000:08:00.0', NULL, NULL, NULL, '{"address":"0000:08:00.0","card_serial_number":"QEMU_NVMe_Ctrl_LAB1_1","dev_type":"type-PF","product_id":"0010","slot_path":"0000:14.0/00.0","status":"available","vendor_id":"1b36"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (10, 1795921748539, 'discovery', 'device.added', 1, NULL, 10, '0000:0a:01.0', NULL, NULL, NULL, '{"address":"0000:0a:01.0","dev_type":"type-PCI","product_id":"11e8","slot_path":"0000:15.0/00.0/01.0","status":"available","vendor_id":"1234"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (11, 1795921748539, 'discovery', 'device.added', 1, NULL, 11, '0000:0a:03.0', NULL, NULL, NULL, '{"address":"0000:0a:03.0","dev_type":"type-PCI","product_id":"100e","slot_path":"0000:15.0/00.0/03.0","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (12, 1795921748857, 'request req-4544ab5f-44f6-40ab-8605-fd893837d702', 'attachment.state', 1, '10000000-0000-4000-8000-000000000001', 3, '0000:04:10.0', 'a8d0f2d5-e696-48c0-afab-3fdcad1f414c', NULL, NULL, '"attaching"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (13, 1795921748857, 'request req-4544ab5f-44f6-40ab-8605-fd893837d702', 'device.status', 1, NULL, 2, '0000:04:00.0', NULL, NULL, '"available"', '"unclaimable"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (14, 1795921748857, 'request req-4544ab5f-44f6-40ab-8605-fd893837d702', 'device.status', 1, '10000000-0000-4000-8000-000000000001', 3, '0000:04:10.0', NULL, NULL, '"available"', '"claimed"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (15, 1795921748896, 'request req-4544ab5f-44f6-40ab-8605-fd893837d702', 'attachment.state', 1, '10000000-0000-4000-8000-000000000001', 3, '0000:04:10.0', 'a8d0f2d5-e696-48c0-afab-3fdcad1f414c', NULL, '"attaching"', '"attached"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (16, 1795921748896, 'request req-4544ab5f-44f6-40ab-8605-fd893837d702', 'attachment.inner_address', 1, '10000000-0000-4000-8000-000000000001', 3, '0000:04:10.0', 'a8d0f2d5-e696-48c0-afab-3fdcad1f414c', NULL, NULL, '{"address":"0000:02:00.0","source":"computed"}', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (17, 1795921748896, 'request req-4544ab5f-44f6-40ab-8605-fd893837d702', 'device.status', 1, NULL, 2, '0000:04:00.0', NULL, NULL, '"unclaimable"', '"unavailable"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (18, 1795921748896, 'request req-4544ab5f-44f6-40ab-8605-fd893837d702', 'device.status', 1, '10000000-0000-4000-8000-000000000001', 3, '0000:04:10.0', NULL, NULL, '"claimed"', '"allocated"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (19, 1795921748942, 'request req-dc147735-9414-4d30-8219-ca457c87c147', 'attachment.state', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', '2fa2881b-b656-4507-9e30-bba9ee7a75c6', NULL, NULL, '"attaching"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (20, 1795921748942, 'request req-dc147735-9414-4d30-8219-ca457c87c147', 'device.status', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', NULL, NULL, '"available"', '"claimed"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (21, 1795921748985, 'request req-dc147735-9414-4d30-8219-ca457c87c147', 'attachment.state', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', '2fa2881b-b656-4507-9e30-bba9ee7a75c6', NULL, '"attaching"', '"attached"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (22, 1795921748985, 'request req-dc147735-9414-4d30-8219-ca457c87c147', 'attachment.inner_address', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', '2fa2881b-b656-4507-9e30-bba9ee7a75c6', NULL, NULL, '{"address":"0000:03:00.0","source":"computed"}', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (23, 1795921748985, 'request req-dc147735-9414-4d30-8219-ca457c87c147', 'device.status', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', NULL, NULL, '"claimed"', '"allocated"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (24, 1795921749005, 'request req-4b183997-7651-4c4a-a683-9a2795af848a', 'attachment.state', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', '2fa2881b-b656-4507-9e30-bba9ee7a75c6', NULL, '"attached"', '"detaching"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (25, 1795921749037, 'request req-4b183997-7651-4c4a-a683-9a2795af848a', 'attachment.state', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', '2fa2881b-b656-4507-9e30-bba9ee7a75c6', NULL, '"detaching"', '"detached"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (26, 1795921749037, 'request req-4b183997-7651-4c4a-a683-9a2795af848a', 'attachment.inner_address', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', '2fa2881b-b656-4507-9e30-bba9ee7a75c6', NULL, '{"address":"0000:03:00.0","source":"computed"}', NULL, NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (27, 1795921749037, 'request req-4b183997-7651-4c4a-a683-9a2795af848a', 'device.status', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', NULL, NULL, '"allocated"', '"available"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (28, 1795921749091, 'request req-b8f0834b-6118-47af-8fbc-74f642aa8b3a', 'rule.added', NULL, NULL, NULL, NULL, NULL, '2742a57d-4c7a-4f01-9d49-3ed7b50a0e67', NULL, '{"entry":{"name":"late","product_id":"10ca","vendor_id":"8086"},"kind":"alias"}', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);
INSERT INTO public.events VALUES (29, 1795921749153, 'request req-5ff513f7-e591-40c1-9dd5-631f17ad787e', 'accelerator.created', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '{"name":"card","project_id":null}', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, 'b1ce6df5-f15b-4221-b226-5e620a971d8d');
INSERT INTO public.events VALUES (30, 1795921749208, 'request req-6e80a158-ef48-4ba2-a463-003e87a67ca3', 'quota.changed', NULL, NULL, NULL, NULL, NULL, NULL, '{"limits":{},"project":"p1"}', '{"limits":{"pci_attachments":8},"project":"p1"}', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL);


--
-- Data for Name: hypervisors; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.hypervisors VALUES (1, '6d45184d-c956-4d05-b8d4-dfd72cf68871', 'node1', 'sim:///tmp/.tmpPUTXeu/host', 1795921748486, NULL);


--
-- Data for Name: idempotency_keys; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: mdevs; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: overdue_calls; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: pci_config; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.pci_config VALUES ('2742a57d-4c7a-4f01-9d49-3ed7b50a0e67', 'alias', 1, '{"name":"late","product_id":"10ca","vendor_id":"8086"}', 1795921749064, NULL);


--
-- Data for Name: pci_devices; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.pci_devices VALUES (1, '70e21ecd-7fcd-4337-9976-86f955c1df2b', 1, '0000:00:1d.0', '1234', '11e8', 'type-PCI', 'pci_0000_00_1d_0', 'label_1234_11e8', 'available', NULL, '{"slot_path":"0000:1d.0"}', NULL, NULL, NULL, 1795921748539, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (4, 'b5cc98cf-7c83-47ec-aab8-8ba59966f919', 1, '0000:04:10.2', '8086', '10ca', 'type-VF', 'pci_0000_04_10_2', 'label_8086_10ca', 'available', NULL, '{"capabilities":"{\"network\":[\"rx\",\"tx\",\"sg\",\"tso\",\"gso\",\"gro\",\"rxvlan\",\"txvlan\",\"txudptnl\"],\"sriov\":{\"pf_mac_address\":\"52:54:00:aa:00:01\",\"vf_num\":1}}","parent_ifname":"eth5","phys_function":"0000:04:00.0","slot_path":"0000:10.0/10.2"}', NULL, NULL, '0000:04:00.0', 1795921748539, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (6, 'fe55ed13-f8c2-4f48-99fc-886f9d5033a5', 1, '0000:06:00.0', '8086', '10d3', 'type-PCI', 'pci_0000_06_00_0', 'label_8086_10d3', 'available', NULL, '{"slot_path":"0000:12.0/00.0"}', NULL, NULL, NULL, 1795921748539, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (7, 'b935f5f3-637f-41da-a47d-78b60a0cb45d', 1, '0000:06:00.1', '8086', '10d3', 'type-PCI', 'pci_0000_06_00_1', 'label_8086_10d3', 'available', NULL, '{"slot_path":"0000:12.0/00.1"}', NULL, NULL, NULL, 1795921748539, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (8, 'f581522d-c7f1-4685-82e5-d586a1f98eb8', 1, '0000:07:00.0', '1b36', '0010', 'type-PCI', 'pci_0000_07_00_0', 'label_1b36_0010', 'available', NULL, '{"card_serial_number":"QEMU_NVMe_Ctrl_LAB0_1","slot_path":"0000:13.0/00.0"}', NULL, NULL, NULL, 1795921748539, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (9, '6e8307f3-d4d3-4432-9546-778e4e2c8d76', 1, '0000:08:00.0', '1b36', '0010', 'type-PF', 'pci_0000_08_00_0', 'label_1b36_0010', 'available', NULL, '{"card_serial_number":"QEMU_NVMe_Ctrl_LAB1_1","slot_path":"0000:14.0/00.0"}', NULL, NULL, NULL, 1795921748539, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (10, '5e39d7be-583d-4648-b260-c7cb9890a76d', 1, '0000:0a:01.0', '1234', '11e8', 'type-PCI', 'pci_0000_0a_01_0', 'label_1234_11e8', 'available', NULL, '{"slot_path":"0000:15.0/00.0/01.0"}', NULL, NULL, NULL, 1795921748539, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (11, 'b8da662c-1902-4560-9995-0fb20d96aa8c', 1, '0000:0a:03.0', '8086', '100e', 'type-PCI', 'pci_0000_0a_03_0', 'label_8086_100e', 'available', NULL, '{"slot_path":"0000:15.0/00.0/03.0"}', NULL, NULL, NULL, 1795921748539, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (2, 'bc7c2ced-380e-4da9-88ad-7a54848cf128', 1, '0000:04:00.0', '8086', '10c9', 'type-PF', 'pci_0000_04_00_0', 'label_8086_10c9', 'unavailable', NULL, '{"mac_address":"52:54:00:aa:00:01","slot_path":"0000:10.0/00.0"}', NULL, NULL, NULL, 1795921748539, 1795921748896, NULL, 0, NULL, NULL, 3);
INSERT INTO public.pci_devices VALUES (3, 'c10e5613-6e26-47f1-b8cc-b60a0586f68b', 1, '0000:04:10.0', '8086', '10ca', 'type-VF', 'pci_0000_04_10_0', 'label_8086_10ca', 'allocated', '53610755-e7f6-4801-bb10-9a7062142306', '{"capabilities":"{\"network\":[\"rx\",\"tx\",\"sg\",\"tso\",\"gso\",\"gro\",\"rxvlan\",\"txvlan\",\"txudptnl\"],\"sriov\":{\"pf_mac_address\":\"52:54:00:aa:00:01\",\"vf_num\":0}}","parent_ifname":"eth5","phys_function":"0000:04:00.0","slot_path":"0000:10.0/10.0"}', '10000000-0000-4000-8000-000000000001', NULL, '0000:04:00.0', 1795921748539, 1795921748896, NULL, 0, NULL, NULL, 3);
INSERT INTO public.pci_devices VALUES (5, '4b6f4f7a-6923-4b13-8ae3-1020b0e849ab', 1, '0000:05:00.0', '8086', '10d3', 'type-PCI', 'pci_0000_05_00_0', 'label_8086_10d3', 'available', NULL, '{"slot_path":"0000:11.0/00.0"}', NULL, NULL, NULL, 1795921748539, 1795921749037, NULL, 0, NULL, NULL, 6);


--
-- Data for Name: processes; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.processes VALUES ('process eb9ba652-2744-4c34-9d66-4e2ca46f9425 f53a76f8-80da-4456-918b-9d0716e399d0 pid:[4026531836]', 'vm', 13609, 1795921748396);


--
-- Data for Name: quotas; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.quotas VALUES ('p1', 'pci_attachments', 8, 1795921749203);


--
-- Data for Name: webhooks; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Name: _sqlx_migrations _sqlx_migrations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public._sqlx_migrations
    ADD CONSTRAINT _sqlx_migrations_pkey PRIMARY KEY (version);


--
-- Name: accelerator_requests accelerator_requests_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.accelerator_requests
    ADD CONSTRAINT accelerator_requests_pkey PRIMARY KEY (id);


--
-- Name: accelerator_requests accelerator_requests_uuid_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.accelerator_requests
    ADD CONSTRAINT accelerator_requests_uuid_key UNIQUE (uuid);


--
-- Name: accelerators accelerators_name_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.accelerators
    ADD CONSTRAINT accelerators_name_key UNIQUE (name);


--
-- Name: accelerators accelerators_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.accelerators
    ADD CONSTRAINT accelerators_pkey PRIMARY KEY (accelerator_id);


--
-- Name: accelerators accelerators_uuid_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.accelerators
    ADD CONSTRAINT accelerators_uuid_key UNIQUE (uuid);


--
-- Name: attachments attachments_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.attachments
    ADD CONSTRAINT attachments_pkey PRIMARY KEY (id);


--
-- Name: attributes attributes_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.attributes
    ADD CONSTRAINT attributes_pkey PRIMARY KEY (uuid);


--
-- Name: bindings bindings_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.bindings
    ADD CONSTRAINT bindings_pkey PRIMARY KEY (id);


--
-- Name: commits commits_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.commits
    ADD CONSTRAINT commits_pkey PRIMARY KEY (one);


--
-- Name: dead_letters dead_letters_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (webhook, event_id);


--
-- Name: device_profiles device_profiles_name_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.device_profiles
    ADD CONSTRAINT device_profiles_name_key UNIQUE (name);


--
-- Name: device_profiles device_profiles_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.device_profiles
    ADD CONSTRAINT device_profiles_pkey PRIMARY KEY (id);


--
-- Name: device_profiles device_profiles_uuid_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.device_profiles
    ADD CONSTRAINT device_profiles_uuid_key UNIQUE (uuid);


--
-- Name: disabled_cards disabled_cards_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.disabled_cards
    ADD CONSTRAINT disabled_cards_pkey PRIMARY KEY (hypervisor_id, address);


--
-- Name: events events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (id);


--
-- Name: hypervisors hypervisors_name_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.hypervisors
    ADD CONSTRAINT hypervisors_name_key UNIQUE (name);


--
-- Name: hypervisors hypervisors_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.hypervisors
    ADD CONSTRAINT hypervisors_pkey PRIMARY KEY (id);


--
-- Name: hypervisors hypervisors_uuid_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.hypervisors
    ADD CONSTRAINT hypervisors_uuid_key UNIQUE (uuid);


--
-- Name: idempotency_keys idempotency_keys_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (idempotency_key, route);


--
-- Name: mdevs mdevs_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.mdevs
    ADD CONSTRAINT mdevs_pkey PRIMARY KEY (id);


--
-- Name: pci_config pci_config_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.pci_config
    ADD CONSTRAINT pci_config_pkey PRIMARY KEY (id);


--
-- Name: pci_devices pci_devices_compute_node_id_address_deleted_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.pci_devices
    ADD CONSTRAINT pci_devices_compute_node_id_address_deleted_key UNIQUE (compute_node_id, address, deleted);


--
-- Name: pci_devices pci_devices_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.pci_devices
    ADD CONSTRAINT pci_devices_pkey PRIMARY KEY (id);


--
-- Name: pci_devices pci_devices_uuid_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.pci_devices
    ADD CONSTRAINT pci_devices_uuid_key UNIQUE (uuid);


--
-- Name: processes processes_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.processes
    ADD CONSTRAINT processes_pkey PRIMARY KEY (id);


--
-- Name: quotas quotas_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.quotas
    ADD CONSTRAINT quotas_pkey PRIMARY KEY (project_id, resource);


--
-- Name: webhooks webhooks_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhooks
    ADD CONSTRAINT webhooks_pkey PRIMARY KEY (name);


--
-- Name: accelerator_requests_by_instance; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX accelerator_requests_by_instance ON public.accelerator_requests USING btree (instance_uuid);


--
-- Name: accelerator_requests_by_project; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX accelerator_requests_by_project ON public.accelerator_requests USING btree (project_id, id);


--
-- Name: accelerators_by_project; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX accelerators_by_project ON public.accelerators USING btree (project_id, accelerator_id);


--
-- Name: attachments_by_end; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX attachments_by_end ON public.attachments USING btree (ended_at);


--
-- Name: attachments_by_holder; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX attachments_by_holder ON public.attachments USING btree (holder) WHERE ((holder IS NOT NULL) AND (ended_at IS NULL));


--
-- Name: attachments_by_hypervisor; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX attachments_by_hypervisor ON public.attachments USING btree (hypervisor_id, ended_at);


--
-- Name: attachments_by_project; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX attachments_by_project ON public.attachments USING btree (project_id, created_at, device_id) WHERE ((ended_at IS NULL) AND (project_id IS NOT NULL));


--
-- Name: attachments_by_request; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX attachments_by_request ON public.attachments USING btree (request_id);


--
-- Name: attachments_by_server; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX attachments_by_server ON public.attachments USING btree (server_uuid, ended_at);


--
-- Name: attachments_in_order; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX attachments_in_order ON public.attachments USING btree (created_at, device_id) WHERE (ended_at IS NULL);


--
-- Name: attachments_one_per_device; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX attachments_one_per_device ON public.attachments USING btree (device_id) WHERE (ended_at IS NULL);


--
-- Name: attachments_one_per_mac; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX attachments_one_per_mac ON public.attachments USING btree (mac_address) WHERE ((ended_at IS NULL) AND (mac_address IS NOT NULL));


--
-- Name: attachments_taken; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX attachments_taken ON public.attachments USING btree (hypervisor_id) WHERE (taken = 1);


--
-- Name: bindings_by_end; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX bindings_by_end ON public.bindings USING btree (ended_at);


--
-- Name: bindings_by_holder; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX bindings_by_holder ON public.bindings USING btree (holder) WHERE (ended_at IS NULL);


--
-- Name: bindings_by_request; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX bindings_by_request ON public.bindings USING btree (request_id);


--
-- Name: bindings_one_per_device; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX bindings_one_per_device ON public.bindings USING btree (device_id) WHERE (ended_at IS NULL);


--
-- Name: events_by_project; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX events_by_project ON public.events USING btree (project_id, id) WHERE (project_id IS NOT NULL);


--
-- Name: events_by_user; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX events_by_user ON public.events USING btree (user_name, id) WHERE (user_name IS NOT NULL);


--
-- Name: events_by_user_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX events_by_user_id ON public.events USING btree (user_id, id) WHERE (user_id IS NOT NULL);


--
-- Name: idempotency_keys_by_age; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idempotency_keys_by_age ON public.idempotency_keys USING btree (created_at);


--
-- Name: idempotency_keys_by_project; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idempotency_keys_by_project ON public.idempotency_keys USING btree (project_id) WHERE (project_id IS NOT NULL);


--
-- Name: idempotency_keys_by_request; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idempotency_keys_by_request ON public.idempotency_keys USING btree (request_id);


--
-- Name: mdevs_by_device; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX mdevs_by_device ON public.mdevs USING btree (device_id) WHERE (ended_at IS NULL);


--
-- Name: mdevs_by_end; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX mdevs_by_end ON public.mdevs USING btree (ended_at);


--
-- Name: mdevs_by_holder; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX mdevs_by_holder ON public.mdevs USING btree (holder) WHERE (ended_at IS NULL);


--
-- Name: mdevs_by_project; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX mdevs_by_project ON public.mdevs USING btree (project_id) WHERE ((ended_at IS NULL) AND (project_id IS NOT NULL));


--
-- Name: mdevs_by_request; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX mdevs_by_request ON public.mdevs USING btree (request_id);


--
-- Name: mdevs_by_server; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX mdevs_by_server ON public.mdevs USING btree (server_uuid) WHERE (ended_at IS NULL);


--
-- Name: overdue_calls_by_process; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX overdue_calls_by_process ON public.overdue_calls USING btree (process, hypervisor_id);


--
-- Name: pci_config_in_order; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX pci_config_in_order ON public.pci_config USING btree (kind, "position");


--
-- Name: pci_devices_by_owner; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX pci_devices_by_owner ON public.pci_devices USING btree (instance_uuid, deleted);


--
-- Name: pci_devices_by_parent; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX pci_devices_by_parent ON public.pci_devices USING btree (compute_node_id, parent_addr, deleted);


--
-- Name: pci_devices_by_seq; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX pci_devices_by_seq ON public.pci_devices USING btree (seq);


--
-- Name: accelerator_requests accelerator_requests_profile_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.accelerator_requests
    ADD CONSTRAINT accelerator_requests_profile_id_fkey FOREIGN KEY (profile_id) REFERENCES public.device_profiles(id);


--
-- Name: accelerators accelerators_device_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.accelerators
    ADD CONSTRAINT accelerators_device_id_fkey FOREIGN KEY (device_id) REFERENCES public.pci_devices(id);


--
-- Name: attachments attachments_device_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.attachments
    ADD CONSTRAINT attachments_device_id_fkey FOREIGN KEY (device_id) REFERENCES public.pci_devices(id);


--
-- Name: attachments attachments_hypervisor_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.attachments
    ADD CONSTRAINT attachments_hypervisor_id_fkey FOREIGN KEY (hypervisor_id) REFERENCES public.hypervisors(id);


--
-- Name: attributes attributes_deployable_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.attributes
    ADD CONSTRAINT attributes_deployable_id_fkey FOREIGN KEY (deployable_id) REFERENCES public.pci_devices(id);


--
-- Name: bindings bindings_device_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.bindings
    ADD CONSTRAINT bindings_device_id_fkey FOREIGN KEY (device_id) REFERENCES public.pci_devices(id);


--
-- Name: bindings bindings_hypervisor_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.bindings
    ADD CONSTRAINT bindings_hypervisor_id_fkey FOREIGN KEY (hypervisor_id) REFERENCES public.hypervisors(id);


--
-- Name: dead_letters dead_letters_webhook_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dead_letters
    ADD CONSTRAINT dead_letters_webhook_fkey FOREIGN KEY (webhook) REFERENCES public.webhooks(name);


--
-- Name: disabled_cards disabled_cards_hypervisor_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.disabled_cards
    ADD CONSTRAINT disabled_cards_hypervisor_id_fkey FOREIGN KEY (hypervisor_id) REFERENCES public.hypervisors(id);


--
-- Name: events events_hypervisor_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_hypervisor_id_fkey FOREIGN KEY (hypervisor_id) REFERENCES public.hypervisors(id);


--
-- Name: mdevs mdevs_device_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.mdevs
    ADD CONSTRAINT mdevs_device_id_fkey FOREIGN KEY (device_id) REFERENCES public.pci_devices(id);


--
-- Name: mdevs mdevs_hypervisor_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.mdevs
    ADD CONSTRAINT mdevs_hypervisor_id_fkey FOREIGN KEY (hypervisor_id) REFERENCES public.hypervisors(id);


--
-- Name: pci_devices pci_devices_compute_node_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.pci_devices
    ADD CONSTRAINT pci_devices_compute_node_id_fkey FOREIGN KEY (compute_node_id) REFERENCES public.hypervisors(id);


--
-- PostgreSQL database dump complete
--

\unrestrict DPYCWhIB0rh2LPsC92EjOEOvBOZBKpd4SKov9kojpPNQvfazDnVov3yEnuiMGpM

