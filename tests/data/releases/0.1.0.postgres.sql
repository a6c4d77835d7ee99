--
-- PostgreSQL database dump
--

\restrict qzZmr7aVclRIgsyIFMhVYY8Dka19q3uw63Kxb1adkPoKY1zFcKqbIOgxsfjsnEY

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
    resource_id text,
    traceparent text
);


--
-- Name: host_modes; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.host_modes (
    hypervisor_id bigint NOT NULL,
    mode text NOT NULL,
    set_by text NOT NULL,
    reason text,
    since bigint NOT NULL
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

INSERT INTO public._sqlx_migrations VALUES (1, 'hosts devices attachments', '2026-11-29 11:38:23.781663+00', true, '\xdade04bf26b5092891d3e2adc77498dbe579c98c1c18402801ec47965330feec797dc07d3ad5c9ebe742635b59a6c1f1', 59237726);
INSERT INTO public._sqlx_migrations VALUES (2, 'inventory', '2026-11-29 11:38:23.841565+00', true, '\x06b210067334ef9ce8fa1d0044038a604b188e935b5f5838b4be64342654042eb8ed8716c723b47335e4505bffa3e5ad', 19272616);
INSERT INTO public._sqlx_migrations VALUES (3, 'events', '2026-11-29 11:38:23.864962+00', true, '\x2ad3404d0318464a1962dc844533564bed08b3d500de66c8d9368d871872d581e455024dd448d164513fcfdd22ce946a', 24072425);
INSERT INTO public._sqlx_migrations VALUES (4, 'idempotency', '2026-11-29 11:38:23.889291+00', true, '\x35b7ac6fe0fdc26a5bcf331653ba1673dd465afbf470104527eb87ab6af6ae7747fe506d9b954ebc5c066e05cdd94cda', 19520514);
INSERT INTO public._sqlx_migrations VALUES (5, 'processes', '2026-11-29 11:38:23.916564+00', true, '\x039b32c57093b9192309c087cf59d19f0b3fa641785070faee683242c97bac81ef6df44694f661eff71bca6744afb465', 19874280);
INSERT INTO public._sqlx_migrations VALUES (6, 'accelerators', '2026-11-29 11:38:23.936977+00', true, '\x8d0590830f73747d87b6aeb78bc056484a5e16025c78f29b39481d4c4a7e2c7c4ebeba7f53800d786c13d541e72d6074', 20331308);
INSERT INTO public._sqlx_migrations VALUES (7, 'cyborg', '2026-11-29 11:38:23.957577+00', true, '\x4aa492bc2a0a6e3e80015d32113f7dd476c89b7b1333b66b0c48e793011915f6b7d17db951ce62f76d44c5ce4b6949a1', 31821765);
INSERT INTO public._sqlx_migrations VALUES (8, 'mdev', '2026-11-29 11:38:23.989602+00', true, '\x243282126e96d550fa2fdc5daaa7aec02823e8d00a30e9633fc09339923eb2627d88424cdfaf71eb1233c556e9de055a', 9760728);
INSERT INTO public._sqlx_migrations VALUES (9, 'accelerator project', '2026-11-29 11:38:24.001944+00', true, '\x0b94e9318ab66bffa0e0c001dede1052bb6da345c3a328755557562e0a50a7426a9a85b8ebcf416467383426d886e0c4', 2927057);
INSERT INTO public._sqlx_migrations VALUES (10, 'rows of a request', '2026-11-29 11:38:24.00257+00', true, '\xf162f47025dbfb569f2ca86eb021b8141396374dc20fdb4aaf402d34a53aa63401e5a29af9d001d4d4717ad1440c6585', 1537794);
INSERT INTO public._sqlx_migrations VALUES (11, 'ended and asked', '2026-11-29 11:38:24.00425+00', true, '\x9165ec75ca21fa27ff006f693d6d6844ebebe31a8a53396d425b69b643707906f03d0a63ed7865c4b5389c41f2730e08', 5651855);
INSERT INTO public._sqlx_migrations VALUES (12, 'overdue calls', '2026-11-29 11:38:24.010032+00', true, '\xb19815194fbacf51152966d07f84f66ae86e3d21ec8c494d3b388e07aed14862e7e5306378dd4f9be219523bd35dea91', 2388177);
INSERT INTO public._sqlx_migrations VALUES (13, 'assignments alike', '2026-11-29 11:38:24.012607+00', true, '\xdf7b12aeffd1d0cc12dc023770627cdc9f66317ca054522c3545660eba10a202ff23f4958eb85773c49f8cfac1a2b799', 3344998);
INSERT INTO public._sqlx_migrations VALUES (14, 'audit', '2026-11-29 11:38:24.01612+00', true, '\x6dd33e77fcaf1df8fb4ca04ab356bdb19eb644b13b5d0ffba2d287d7fa1908c56ae76bebb685ca898bed669bff0297db', 4136043);
INSERT INTO public._sqlx_migrations VALUES (15, 'quotas', '2026-11-29 11:38:24.020557+00', true, '\x2d624a733c479b21db0e58cd1b5aa64a334c2bf3eb6fe52a812a39c35e2092dff163dc957039c27e0f7b19f447a8777b', 16603742);
INSERT INTO public._sqlx_migrations VALUES (16, 'host modes', '2026-11-29 11:38:24.037155+00', true, '\xd7f6f4951a133ea20c061486c82f7c2aba02c2d3bd8a5153fbe82ea8b2686038531f57e7043c1d7193a84912bf8dae12', 5018003);
INSERT INTO public._sqlx_migrations VALUES (17, 'traceparent', '2026-11-29 11:38:24.042316+00', true, '\x84371c42a0f634116f831397012cc0193bf2ee6e8d4b7eb64209e5ec83421675809558c8f0785b20f46ba192ab40dd92', 385533);


--
-- Data for Name: accelerator_requests; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: accelerators; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.accelerators VALUES (1, '78f6d052-f666-45f9-ac15-35b23c89e5e2', 'card', 'UNKNOWN', '', '{}', NULL, NULL, 0, NULL, 0, NULL, 1795952304941, NULL, NULL);


--
-- Data for Name: attachments; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.attachments VALUES ('a92587b2-58b6-4d30-abb8-497799af2dc0', '20856ace-aeee-4861-a447-c39d0030f2b1', 1, '10000000-0000-4000-8000-000000000001', 3, 'vf', 1, 1, 'attached', NULL, '0000:02:00.0', 'computed', 1795952304577, 1795952304620, 1795952304620, NULL, NULL, NULL, NULL, NULL, 0, 1, 0, 'process d1da40d7-24ce-4b1a-9064-83ced4bb5ab9 f583902e-6a99-4694-a516-3d95b4b94895 pid:[4026531836]', NULL, 1, 0, NULL, NULL);
INSERT INTO public.attachments VALUES ('e6bf9fe0-98e4-419a-9dc4-d77af158902f', '9db7f3e5-9ba4-417e-9c7c-f63e93edc038', 1, '10000000-0000-4000-8000-000000000001', 5, 'e1000e', 1, 1, 'detached', NULL, NULL, NULL, 1795952304663, 1795952304861, 1795952304726, 1795952304861, NULL, NULL, NULL, NULL, 0, 0, 0, 'process d1da40d7-24ce-4b1a-9064-83ced4bb5ab9 f583902e-6a99-4694-a516-3d95b4b94895 pid:[4026531836]', NULL, 1, 0, NULL, NULL);


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

INSERT INTO public.events VALUES (1, 1795952304160, 'discovery', 'device.added', 1, NULL, 1, '0000:00:1d.0', NULL, NULL, NULL, '{"address":"0000:00:1d.0","dev_type":"type-PCI","product_id":"11e8","slot_path":"0000:1d.0","status":"available","vendor_id":"1234"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (2, 1795952304160, 'discovery', 'device.added', 1, NULL, 2, '0000:04:00.0', NULL, NULL, NULL, '{"address":"0000:04:00.0","dev_type":"type-PF","mac_address":"52:54:00:aa:00:01","product_id":"10c9","slot_path":"0000:10.0/00.0","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (3, 1795952304160, 'discovery', 'device.added', 1, NULL, 3, '0000:04:10.0', NULL, NULL, NULL, '{"address":"0000:04:10.0","capabilities":"{\"network\":[\"rx\",\"tx\",\"sg\",\"tso\",\"gso\",\"gro\",\"rxvlan\",\"txvlan\",\"txudptnl\"],\"sriov\":{\"pf_mac_address\":\"52:54:00:aa:00:01\",\"vf_num\":0}}","dev_type":"type-VF","parent_addr":"0000:04:00.0","parent_ifname":"eth5","phys_function":"0000:04:00.0","product_id":"10ca","slot_path":"0000:10.0/10.0","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (4, 1795952304160, 'discovery', 'device.added', 1, NULL, 4, '0000:04:10.2', NULL, NULL, NULL, '{"address":"0000:04:10.2","capabilities":"{\"network\":[\"rx\",\"tx\",\"sg\",\"tso\",\"gso\",\"gro\",\"rxvlan\",\"txvlan\",\"txudptnl\"],\"sriov\":{\"pf_mac_address\":\"52:54:00:aa:00:01\",\"vf_num\":1}}","dev_type":"type-VF","parent_addr":"0000:04:00.0","parent_ifname":"eth5","phys_function":"0000:04:00.0","product_id":"10ca","slot_path":"0000:10.0/10.2","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (5, 1795952304160, 'discovery', 'device.added', 1, NULL, 5, '0000:05:00.0', NULL, NULL, NULL, '{"address":"0000:05:00.0","dev_type":"type-PCI","product_id":"10d3","slot_path":"0000:11.0/00.0","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (6, 1795952304160, 'discovery', 'device.added', 1, NULL, 6, '0000:06:00.0', NULL, NULL, NULL, '{"address":"0000:06:00.0","dev_type":"type-PCI","product_id":"10d3","slot_path":"0000:12.0/00.0","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (7, 1795952304160, 'discovery', 'device.added', 1, NULL, 7, '0000:06:00.1', NULL, NULL, NULL, '{"address":"0000:06:00.1","dev_type":"type-PCI","product_id":"10d3","slot_path":"0000:12.0/00.1","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (8, 1795952304160, 'discovery', 'device.added', 1, NULL, 8, '0000:07:00.0', NULL, NULL, NULL, '{"address":"0000:07:00.0","card_serial_number":"QEMU_NVMe_Ctrl_LAB0_1","dev_type":"type-PCI","product_id":"0010","slot_path":"0000:13.0/00.0","status":"available","vendor_id":"1b36"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (9, 1795952304160, 'discovery', 'device.added', 1, NULL, 9, '0000:08:00.0', NULL, NULL, NULL, '{"address":"0000:08:00.0","card_serial_number":"QEMU_NVMe_Ctrl_LAB1_1","dev_type":"type-PF","product_id":"0010","slot_path":"0000:14.0/00.0","status":"available","vendor_id":"1b36"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (10, 1795952304160, 'discovery', 'device.added', 1, NULL, 10, '0000:0a:01.0', NULL, NULL, NULL, '{"address":"0000:0a:01.0","dev_type":"type-PCI","product_id":"11e8","slot_path":"0000:15.0/00.0/01.0","status":"available","vendor_id":"1234"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (11, 1795952304160, 'discovery', 'device.added', 1, NULL, 11, '0000:0a:03.0', NULL, NULL, NULL, '{"address":"0000:0a:03.0","dev_type":"type-PCI","product_id":"100e","slot_path":"0000:15.0/00.0/03.0","status":"available","vendor_id":"8086"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events VALUES (12, 1795952304578, 'request req-13e34879-784f-44c8-9b9d-99601797d0a2', 'attachment.state', 1, '10000000-0000-4000-8000-000000000001', 3, '0000:04:10.0', 'a92587b2-58b6-4d30-abb8-497799af2dc0', NULL, NULL, '"attaching"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (13, 1795952304578, 'request req-13e34879-784f-44c8-9b9d-99601797d0a2', 'device.status', 1, NULL, 2, '0000:04:00.0', NULL, NULL, '"available"', '"unclaimable"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (14, 1795952304578, 'request req-13e34879-784f-44c8-9b9d-99601797d0a2', 'device.status', 1, '10000000-0000-4000-8000-000000000001', 3, '0000:04:10.0', NULL, NULL, '"available"', '"claimed"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (15, 1795952304620, 'request req-13e34879-784f-44c8-9b9d-99601797d0a2', 'attachment.state', 1, '10000000-0000-4000-8000-000000000001', 3, '0000:04:10.0', 'a92587b2-58b6-4d30-abb8-497799af2dc0', NULL, '"attaching"', '"attached"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (16, 1795952304620, 'request req-13e34879-784f-44c8-9b9d-99601797d0a2', 'attachment.inner_address', 1, '10000000-0000-4000-8000-000000000001', 3, '0000:04:10.0', 'a92587b2-58b6-4d30-abb8-497799af2dc0', NULL, NULL, '{"address":"0000:02:00.0","source":"computed"}', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (17, 1795952304620, 'request req-13e34879-784f-44c8-9b9d-99601797d0a2', 'device.status', 1, NULL, 2, '0000:04:00.0', NULL, NULL, '"unclaimable"', '"unavailable"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (18, 1795952304620, 'request req-13e34879-784f-44c8-9b9d-99601797d0a2', 'device.status', 1, '10000000-0000-4000-8000-000000000001', 3, '0000:04:10.0', NULL, NULL, '"claimed"', '"allocated"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (19, 1795952304663, 'request req-5126d63a-7875-4a69-b669-346af8e9ae90', 'attachment.state', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', 'e6bf9fe0-98e4-419a-9dc4-d77af158902f', NULL, NULL, '"attaching"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (20, 1795952304663, 'request req-5126d63a-7875-4a69-b669-346af8e9ae90', 'device.status', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', NULL, NULL, '"available"', '"claimed"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (21, 1795952304726, 'request req-5126d63a-7875-4a69-b669-346af8e9ae90', 'attachment.state', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', 'e6bf9fe0-98e4-419a-9dc4-d77af158902f', NULL, '"attaching"', '"attached"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (22, 1795952304726, 'request req-5126d63a-7875-4a69-b669-346af8e9ae90', 'attachment.inner_address', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', 'e6bf9fe0-98e4-419a-9dc4-d77af158902f', NULL, NULL, '{"address":"0000:03:00.0","source":"computed"}', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (23, 1795952304726, 'request req-5126d63a-7875-4a69-b669-346af8e9ae90', 'device.status', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', NULL, NULL, '"claimed"', '"allocated"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (24, 1795952304777, 'request req-1d99e733-6268-43f9-bb6a-d3bba9ed2cf8', 'attachment.state', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', 'e6bf9fe0-98e4-419a-9dc4-d77af158902f', NULL, '"attached"', '"detaching"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (25, 1795952304861, 'request req-1d99e733-6268-43f9-bb6a-d3bba9ed2cf8', 'attachment.state', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', 'e6bf9fe0-98e4-419a-9dc4-d77af158902f', NULL, '"detaching"', '"detached"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (26, 1795952304861, 'request req-1d99e733-6268-43f9-bb6a-d3bba9ed2cf8', 'attachment.inner_address', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', 'e6bf9fe0-98e4-419a-9dc4-d77af158902f', NULL, '{"address":"0000:03:00.0","source":"computed"}', NULL, NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (27, 1795952304861, 'request req-1d99e733-6268-43f9-bb6a-d3bba9ed2cf8', 'device.status', 1, '10000000-0000-4000-8000-000000000001', 5, '0000:05:00.0', NULL, NULL, '"allocated"', '"available"', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (28, 1795952304910, 'request req-8140fdde-9873-44ae-9362-af8c0edbb4cf', 'rule.added', NULL, NULL, NULL, NULL, NULL, '0986b177-c6c1-4aaa-bbbe-7f11d594e887', NULL, '{"entry":{"name":"late","product_id":"10ca","vendor_id":"8086"},"kind":"alias"}', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);
INSERT INTO public.events VALUES (29, 1795952304942, 'request req-cfbc17e8-ba1d-4e9e-acd7-a8e7af522911', 'accelerator.created', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '{"name":"card","project_id":null}', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, '78f6d052-f666-45f9-ac15-35b23c89e5e2', NULL);
INSERT INTO public.events VALUES (30, 1795952304992, 'request req-ccef7101-3428-4cbc-8b01-69f599437ae2', 'quota.changed', NULL, NULL, NULL, NULL, NULL, NULL, '{"limits":{},"project":"p1"}', '{"limits":{"pci_attachments":8},"project":"p1"}', NULL, NULL, NULL, NULL, '["admin"]', 'insecure_tcp, TCP 127.0.0.1', NULL, NULL, NULL);


--
-- Data for Name: host_modes; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: hypervisors; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.hypervisors VALUES (1, '3a8b7238-b70c-44f1-aa6e-e8a3a554c0c7', 'node1', 'sim:///tmp/.tmp3KvBqD/host', 1795952304118, NULL);


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

INSERT INTO public.pci_config VALUES ('0986b177-c6c1-4aaa-bbbe-7f11d594e887', 'alias', 1, '{"name":"late","product_id":"10ca","vendor_id":"8086"}', 1795952304905, NULL);


--
-- Data for Name: pci_devices; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.pci_devices VALUES (1, '7dce0449-5760-44c4-bdc5-bd5befe52bf5', 1, '0000:00:1d.0', '1234', '11e8', 'type-PCI', 'pci_0000_00_1d_0', 'label_1234_11e8', 'available', NULL, '{"slot_path":"0000:1d.0"}', NULL, NULL, NULL, 1795952304160, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (4, '389872b8-be09-4e26-988e-03c4f2f99595', 1, '0000:04:10.2', '8086', '10ca', 'type-VF', 'pci_0000_04_10_2', 'label_8086_10ca', 'available', NULL, '{"capabilities":"{\"network\":[\"rx\",\"tx\",\"sg\",\"tso\",\"gso\",\"gro\",\"rxvlan\",\"txvlan\",\"txudptnl\"],\"sriov\":{\"pf_mac_address\":\"52:54:00:aa:00:01\",\"vf_num\":1}}","parent_ifname":"eth5","phys_function":"0000:04:00.0","slot_path":"0000:10.0/10.2"}', NULL, NULL, '0000:04:00.0', 1795952304160, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (6, '10a812c5-3c90-4348-b9f9-efadb1a2f973', 1, '0000:06:00.0', '8086', '10d3', 'type-PCI', 'pci_0000_06_00_0', 'label_8086_10d3', 'available', NULL, '{"slot_path":"0000:12.0/00.0"}', NULL, NULL, NULL, 1795952304160, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (7, '15f64d34-6270-479c-bc84-9a6ee4532d42', 1, '0000:06:00.1', '8086', '10d3', 'type-PCI', 'pci_0000_06_00_1', 'label_8086_10d3', 'available', NULL, '{"slot_path":"0000:12.0/00.1"}', NULL, NULL, NULL, 1795952304160, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (8, '9c38f23d-1287-4e08-ae86-d59bbd445a87', 1, '0000:07:00.0', '1b36', '0010', 'type-PCI', 'pci_0000_07_00_0', 'label_1b36_0010', 'available', NULL, '{"card_serial_number":"QEMU_NVMe_Ctrl_LAB0_1","slot_path":"0000:13.0/00.0"}', NULL, NULL, NULL, 1795952304160, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (9, 'f36f741a-f3c4-4009-8e22-6857e11e0cea', 1, '0000:08:00.0', '1b36', '0010', 'type-PF', 'pci_0000_08_00_0', 'label_1b36_0010', 'available', NULL, '{"card_serial_number":"QEMU_NVMe_Ctrl_LAB1_1","slot_path":"0000:14.0/00.0"}', NULL, NULL, NULL, 1795952304160, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (10, '17e721f7-d53b-4439-9faf-e24bfa94ab38', 1, '0000:0a:01.0', '1234', '11e8', 'type-PCI', 'pci_0000_0a_01_0', 'label_1234_11e8', 'available', NULL, '{"slot_path":"0000:15.0/00.0/01.0"}', NULL, NULL, NULL, 1795952304160, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (11, '06512a87-e1a2-4b37-83b2-bc6a92c14f4c', 1, '0000:0a:03.0', '8086', '100e', 'type-PCI', 'pci_0000_0a_03_0', 'label_8086_100e', 'available', NULL, '{"slot_path":"0000:15.0/00.0/03.0"}', NULL, NULL, NULL, 1795952304160, NULL, NULL, 0, NULL, NULL, 1);
INSERT INTO public.pci_devices VALUES (2, 'e8042210-a606-485a-8f46-0206943cd31b', 1, '0000:04:00.0', '8086', '10c9', 'type-PF', 'pci_0000_04_00_0', 'label_8086_10c9', 'unavailable', NULL, '{"mac_address":"52:54:00:aa:00:01","slot_path":"0000:10.0/00.0"}', NULL, NULL, NULL, 1795952304160, 1795952304620, NULL, 0, NULL, NULL, 3);
INSERT INTO public.pci_devices VALUES (3, '1f6d7a27-84be-405d-9c24-1c1cfeed425b', 1, '0000:04:10.0', '8086', '10ca', 'type-VF', 'pci_0000_04_10_0', 'label_8086_10ca', 'allocated', '20856ace-aeee-4861-a447-c39d0030f2b1', '{"capabilities":"{\"network\":[\"rx\",\"tx\",\"sg\",\"tso\",\"gso\",\"gro\",\"rxvlan\",\"txvlan\",\"txudptnl\"],\"sriov\":{\"pf_mac_address\":\"52:54:00:aa:00:01\",\"vf_num\":0}}","parent_ifname":"eth5","phys_function":"0000:04:00.0","slot_path":"0000:10.0/10.0"}', '10000000-0000-4000-8000-000000000001', NULL, '0000:04:00.0', 1795952304160, 1795952304620, NULL, 0, NULL, NULL, 3);
INSERT INTO public.pci_devices VALUES (5, '180422be-7611-498a-ae17-4865ea8fa1c9', 1, '0000:05:00.0', '8086', '10d3', 'type-PCI', 'pci_0000_05_00_0', 'label_8086_10d3', 'available', NULL, '{"slot_path":"0000:11.0/00.0"}', NULL, NULL, NULL, 1795952304160, 1795952304861, NULL, 0, NULL, NULL, 6);


--
-- Data for Name: processes; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.processes VALUES ('process d1da40d7-24ce-4b1a-9064-83ced4bb5ab9 f583902e-6a99-4694-a516-3d95b4b94895 pid:[4026531836]', 'vm', 29997, 1795952304056);


--
-- Data for Name: quotas; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.quotas VALUES ('p1', 'pci_attachments', 8, 1795952304990);


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
-- Name: host_modes host_modes_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.host_modes
    ADD CONSTRAINT host_modes_pkey PRIMARY KEY (hypervisor_id);


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

\unrestrict qzZmr7aVclRIgsyIFMhVYY8Dka19q3uw63Kxb1adkPoKY1zFcKqbIOgxsfjsnEY

