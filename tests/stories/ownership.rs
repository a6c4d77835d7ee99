//! Whose a server is: members of a project use their own servers, and learn nothing of those of others.

use std::process::{Command, Output};

use hotslot_tests::{Answer, FULL, Hotslot, I440FX, Q35, SWITCH, binary, host};
use reqwest::Method;
use serde_json::{Value, json};

/// The headers of a caller: `ROLE of PROJECT`, or a role in the whole system.
fn headers(who: &str) -> Vec<(String, String)> {
    let (role, project) = who.split_once(" of ").unwrap_or((who, ""));
    let scope =
        if project.is_empty() { ("openstack-system-scope", "all") } else { ("x-project-id", project) };
    let service = ("x-service-roles", if role == "nova" { "service" } else { "" });
    let role = if role == "nova" { "member" } else { role };
    [("x-user-id", who), ("x-roles", role), scope, service]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

async fn send(service: &Hotslot, who: &str, method: Method, path: &str, body: Value) -> Answer {
    let body = (!body.is_null()).then(|| body.to_string());
    service.send_with(method, path, headers(who), body).await
}

async fn get(service: &Hotslot, who: &str, path: &str) -> Answer {
    send(service, who, Method::GET, path, Value::Null).await
}

fn server(id: &str) -> String {
    format!("/v2.1/servers/{id}")
}

fn attachments(id: &str) -> String {
    format!("/v2.1/servers/{id}/os-pci_attachments")
}

fn wants(alias: &str) -> Value {
    let alias = if alias.contains(':') { alias.to_owned() } else { format!("{alias}:1") };
    json!({ "pciAttachment": { "pci_passthrough:alias": alias } })
}

async fn set_owner(service: &Hotslot, id: &str, project: Option<&str>) -> Answer {
    let body = json!({ "pci_owner": { "project_id": project } });
    send(service, "admin", Method::PUT, &format!("{}/pci_owner", server(id)), body).await
}

/// A service whose server `q35` belongs to project `a`, and `i440fx` to project `b`; `switch` belongs to nobody.
async fn service() -> Hotslot {
    let mut service = Hotslot::with(&host("small"), "[accelerators]\nchange = \"owner\"\n").await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    for (id, project) in [(Q35, "a"), (I440FX, "b")] {
        let owner = set_owner(&service, id, Some(project)).await.expect(200).body["pci_owner"].clone();
        assert_eq!((&owner["project_id"], &owner["source"]), (&json!(project), &json!("hotslot")));
    }
    service
}

fn ids(list: &Value, key: &str) -> Vec<String> {
    let mut ids: Vec<_> =
        list.as_array().unwrap().iter().map(|item| item[key].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

/// A caller may neither read nor guess what another project has: the answer for a server of another project is the same
/// as for one that does not exist, apart from the id.
#[tokio::test]
async fn another_projects_server_is_not_found_in_any_route() {
    let service = service().await;
    let made = send(&service, "member of b", Method::POST, &attachments(I440FX), wants("e1000")).await;
    let made = made.expect(200).body["pci_devices"][0].clone();
    let id = made["attachment_id"].as_str().unwrap();
    let nowhere = "10000000-0000-4000-8000-0000000000ff";
    for who in ["reader of a", "member of a", "manager of a"] {
        let mut requests = vec![
            (Method::GET, server("{}"), Value::Null),
            (Method::GET, server("{}/pci_topology"), Value::Null),
            (Method::GET, attachments("{}"), Value::Null),
            (Method::GET, attachments("{}") + "?ended=true", Value::Null),
            (Method::GET, attachments("{}") + "/" + id, Value::Null),
        ];
        if who != "reader of a" {
            let mut dry = wants("e1000");
            dry["dry_run"] = true.into();
            requests.extend([
                (Method::POST, attachments("{}"), wants("vf")),
                (Method::POST, attachments("{}"), dry),
                (Method::DELETE, attachments("{}") + "/" + id, Value::Null),
                (Method::DELETE, attachments("{}").replace("/v2.1/", "/v2/a/") + "/" + id, Value::Null),
                (Method::DELETE, attachments("{}") + "/" + id + "?force=true", Value::Null),
            ]);
        }
        for (method, path, body) in requests {
            let mut answers = Vec::new();
            for named in [I440FX, SWITCH, nowhere] {
                let path = path.replace("{}", named);
                let answer = send(&service, who, method.clone(), &path, body.clone()).await.expect(404);
                answers.push(answer.body.to_string().replace(named, "ID"));
            }
            assert!(answers.iter().all(|answer| *answer == answers[2]), "{method} {path}: {answers:?}");
        }
    }
    // The attachment of another project's server is not found under one's own server either.
    for method in [Method::GET, Method::DELETE] {
        let path = format!("{}/{id}", attachments(Q35));
        let refused = send(&service, "member of a", method, &path, Value::Null).await.expect(404);
        assert!(!refused.body.to_string().contains(I440FX), "{}", refused.body);
    }
    let still = get(&service, "member of b", &format!("{}/{id}", attachments(I440FX))).await.expect(200).body;
    assert_eq!(still["pciAttachment"]["status"], "attached");
    service.sim("disconnect");
    // While a host is unreachable, nobody learns whether it has a server, and nobody learns its name.
    for named in [Q35, I440FX, nowhere] {
        let away = get(&service, "member of a", &server(named)).await.expect(503);
        assert!(!away.message().contains("node1") && away.message().contains("later"), "{}", away.message());
    }
    service.sim("reconnect");
}

#[tokio::test]
async fn lists_have_the_servers_and_attachments_of_the_callers_project_only() {
    let service = service().await;
    for (who, id, alias) in
        [("member of a", Q35, "vf"), ("member of b", I440FX, "e1000"), ("admin", SWITCH, "vf")]
    {
        send(&service, who, Method::POST, &attachments(id), wants(alias)).await.expect(200);
    }
    let all = [Q35, SWITCH, I440FX, FULL];
    for (who, servers) in [
        ("reader of a", &[Q35][..]),
        ("member of a", &[Q35]),
        ("manager of b", &[I440FX]),
        ("reader of c", &[]),
        ("admin of a", &all),
        ("admin", &all),
        ("nova of a", &all),
    ] {
        for path in ["/v2.1/servers", "/v2.1/servers/detail", "/v2.1/servers?all_tenants=1", "/v2/-/servers"]
        {
            let listed = get(&service, who, path).await.expect(200).body;
            assert_eq!(ids(&listed["servers"], "id"), servers, "{who}: {path}");
        }
        let listed = get(&service, who, "/v2.1/os-pci_attachments").await.expect(200).body;
        let with_device: Vec<_> = servers.iter().filter(|id| **id != FULL).copied().collect();
        assert_eq!(ids(&listed["pciAttachment"], "serverId"), with_device, "{who}");
    }
    // The marker of another project's server is as unknown as any other.
    let marker = async |id: &str| {
        let path = format!("/v2.1/servers?marker={id}");
        let refused = get(&service, "reader of a", &path).await.expect(400);
        refused.message().replace(id, "ID")
    };
    assert_eq!(marker(I440FX).await, marker("10000000-0000-4000-8000-0000000000ff").await);
    // A filter selects among these.
    let upper = Q35.to_uppercase();
    for (who, query, servers) in [
        ("admin", "project_id=a", &[Q35][..]),
        ("admin", "tenant_id=b&all_tenants=1", &[I440FX]),
        ("admin", "project_id=a&tenant_id=b", &[]),
        ("admin", "project_id=nobody", &[]),
        ("member of b", "project_id=a", &[]),
        ("member of b", "project_id=b", &[I440FX]),
        ("admin", &format!("uuid={upper}"), &[Q35]),
        ("member of b", &format!("uuid={Q35}"), &[]),
    ] {
        for path in ["/v2.1/servers", "/v2.1/servers/detail"] {
            let listed = get(&service, who, &format!("{path}?{query}")).await.expect(200).body;
            assert_eq!(ids(&listed["servers"], "id"), servers, "{who}: {path}?{query}");
        }
    }
    // A filter by host would tell where a server is.
    for host in ["node1", "node2"] {
        let listed =
            get(&service, "reader of a", &format!("/v2.1/servers?host={host}")).await.expect(200).body;
        assert_eq!(ids(&listed["servers"], "id"), [Q35]);
    }
    let detail = get(&service, "reader of a", &server(Q35)).await.expect(200).body;
    assert_eq!(detail["server"]["tenant_id"], "a");
    // Ended attachments too.
    let path = attachments(Q35);
    let own = get(&service, "reader of a", &path).await.expect(200).body["pciAttachment"][0]["attachment_id"]
        .clone();
    let path = format!("{}/{}", path.replace("/v2.1/", "/v2/a/"), own.as_str().unwrap());
    send(&service, "reader of a", Method::DELETE, &path, Value::Null).await.expect(403);
    send(&service, "member of a", Method::DELETE, &path, Value::Null).await.expect(200);
    for (who, count) in [("reader of a", 1), ("reader of b", 0), ("admin", 1)] {
        let listed = get(&service, who, "/v2.1/os-pci_attachments?ended=true").await.expect(200).body;
        assert_eq!(listed["pciAttachment"].as_array().unwrap().len(), count, "{who}");
    }
}

#[tokio::test]
async fn members_choose_no_vlan_no_mac_address_and_no_long_wait() {
    let service = service().await;
    // Neutron separates the networks of projects; a tenant does not choose a VLAN or another one's MAC address.
    for (key, value) in [
        ("vlan", json!(100)),
        ("mac_address", json!("52:54:00:00:00:99")),
        ("trusted", json!(true)),
        ("spoof_check", json!(false)),
        ("max_tx_rate", json!(0)),
    ] {
        for dry_run in [true, false] {
            let mut body = wants("vf");
            (body["pciAttachment"][key], body["dry_run"]) = (value.clone(), dry_run.into());
            let refused =
                send(&service, "member of a", Method::POST, &attachments(Q35), body).await.expect(403);
            assert!(refused.message().contains("administrators and services"), "{}", refused.message());
        }
    }
    let made =
        send(&service, "member of a", Method::POST, &attachments(Q35), wants("vf")).await.expect(200).body;
    let id = made["pci_devices"][0]["attachment_id"].as_str().unwrap();
    let long = format!("{}/{id}?timeout=24h", attachments(Q35));
    let refused = send(&service, "member of a", Method::DELETE, &long, Value::Null).await.expect(400);
    assert!(refused.message().contains("at most 600s"), "{}", refused.message());
}

/// What a member gets is what the administrator gets, without hosts, addresses and reasons.
#[tokio::test]
async fn members_see_their_devices_without_the_host() {
    let service = service().await;
    let mut dry = wants("vf");
    dry["dry_run"] = true.into();
    let member =
        send(&service, "member of a", Method::POST, &attachments(Q35), dry.clone()).await.expect(200).body;
    let admin = send(&service, "admin", Method::POST, &attachments(Q35), dry).await.expect(200).body;
    assert_eq!(member["dry_run"]["would_attach"], true);
    assert!(!member.to_string().contains("0000:04:"), "{member}");
    assert!(admin.to_string().contains("0000:04:"), "{admin}");
    let made =
        send(&service, "member of a", Method::POST, &attachments(Q35), wants("vf")).await.expect(200).body;
    let made = &made["pci_devices"][0];
    let id = made["attachment_id"].as_str().unwrap();
    for (key, seen) in
        [("dev_id", false), ("address", false), ("host", false), ("vendor_id", true), ("inner_address", true)]
    {
        assert_eq!(made[key].is_string(), seen, "{key}: {made}");
    }
    let acc = json!({ "name": "mine" });
    let acc =
        send(&service, "member of a", Method::POST, "/accelerators", acc).await.expect(201).location.unwrap();
    let acc = acc[acc.find("/accelerators/").unwrap()..].to_owned();
    let spec = json!({ "acc_specs": { "vendor_id": "8086", "product_id": "10d3" } });
    send(&service, "member of a", Method::PUT, &acc, spec).await.expect(200);
    send(&service, "member of a", Method::PUT, &acc, json!({ "instance_uuid": Q35 })).await.expect(200);

    for path in [
        server(Q35),
        "/v2.1/servers".to_owned(),
        "/v2.1/servers/detail".to_owned(),
        server(Q35) + "/pci_topology",
        attachments(Q35),
        attachments(Q35) + "/" + id,
        "/v2.1/os-pci_attachments".to_owned(),
        "/accelerators".to_owned(),
        "/v1/accelerators".to_owned(),
        acc.clone(),
    ] {
        let full = get(&service, "admin of a", &path).await.expect(200).body;
        assert!(names_the_host(&full), "{path}: {full:#}");
        assert!(names_the_host(&get(&service, "nova of a", &path).await.expect(200).body), "{path}");
        for who in ["reader of a", "member of a", "manager of a"] {
            let shown = get(&service, who, &path).await.expect(200).body;
            assert!(!names_the_host(&shown), "{who}: {path}: {shown:#}");
            agrees(&shown, &full, &path);
            if path == acc {
                assert_eq!(
                    (&shown["address"], &shown["devices"][0]["address"]),
                    (&Value::Null, &Value::Null)
                );
                assert_eq!(full["address"], "0000:05:00.0");
            }
        }
    }
}

/// Whether an answer names the host, or an address of it.
fn names_the_host(answer: &Value) -> bool {
    let text = answer.to_string();
    // The VF and the e1000e; a bus of the guest may have the number of one of the host.
    ["node1", "0000:04:10.", "pci_0000", "\"address\":\"0000:05:00.0\",\"device_type\""]
        .iter()
        .any(|name| text.contains(name))
}

/// Checks that `shown` has the members of `full`, with null or the same value, in lists too.
fn agrees(shown: &Value, full: &Value, place: &str) {
    match (shown, full) {
        (Value::Null, _) => {}
        (Value::Object(shown), Value::Object(full)) => {
            assert_eq!(shown.keys().collect::<Vec<_>>(), full.keys().collect::<Vec<_>>(), "{place}");
            for (key, value) in shown {
                if key != "holder" {
                    agrees(value, &full[key], &format!("{place} {key}"));
                }
            }
        }
        (Value::Array(shown), Value::Array(full))
            if !place.contains("servers") || shown.len() == full.len() =>
        {
            shown.iter().zip(full).for_each(|(shown, full)| agrees(shown, full, place));
        }
        (Value::Array(_), Value::Array(_)) => {}
        (shown, full) => assert_eq!(shown, full, "{place}"),
    }
}

#[tokio::test]
async fn errors_do_not_name_hosts_devices_or_other_projects() {
    let service = service().await;
    let attach = async |who: &str, id: &str, body: Value| {
        send(&service, who, Method::POST, &attachments(id), body).await
    };
    // All devices of a kind are taken by another project.
    attach("member of b", I440FX, wants("e1000")).await.expect(200);
    let mac =
        json!({ "pciAttachment": { "pci_passthrough:alias": "nic:1", "mac_address": "52:54:00:12:34:56" } });
    attach("admin", SWITCH, mac.clone()).await.expect(200);
    service.sim("fault attach fail text=Requested_operation_is_not_valid:_PCI_device_0000:04:10.0_is_in_use_by_driver_QEMU,_domain_secret-guest");
    let mut refused = vec![attach("member of a", Q35, wants("vf")).await];
    for body in [wants("vf:9"), wants("pf"), mac, wants("e1000:2")] {
        refused.push(attach("member of a", Q35, body).await);
    }
    for answer in &refused {
        let text = answer.body.to_string();
        assert!((400..600).contains(&answer.status) && answer.status != 500, "{text}");
        for secret in ["0000:", "pci_0000", "node1", "secret-guest", I440FX, SWITCH, "i440fx", "switch"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        assert!(answer.message().len() > 30, "{text}");
    }
    assert_eq!(refused[0].status, 502);
    assert!(service.log().contains("secret-guest"), "an administrator finds the reason in the log");
    let full = attach("admin", Q35, wants("vf:9")).await;
    assert!(full.message().contains("node1"), "{}", full.message());
    // The guest keeps the device.
    service.sim("guest q35 unplug=ignore");
    let made = attach("member of a", Q35, wants("vf")).await.expect(200).body;
    let id = made["pci_devices"][0]["attachment_id"].as_str().unwrap();
    let path = format!("{}/{id}", attachments(Q35).replace("/v2.1/", "/v2/a/"));
    let kept = send(&service, "member of a", Method::DELETE, &path, Value::Null).await.expect(409);
    assert!(!names_the_host(&kept.body) && !kept.body.to_string().contains("0000:"), "{}", kept.body);
    let shown = get(&service, "member of a", &path.replace("/v2/a/", "/v2.1/")).await.expect(200).body;
    assert_eq!(shown["pciAttachment"]["status_reason"], "the guest has not released the device yet");
}

#[tokio::test]
async fn a_member_reaches_nothing_of_another_project_by_other_ways() {
    let service = service().await;
    // By the project in the path: Nova's answer is 400 too.
    for path in ["/v2/b/servers", "/v2.1/b/servers", "/v2/b/os-pci_attachments", "/v2/%62/servers"] {
        let refused = get(&service, "member of a", path).await.expect(400);
        assert!(refused.message().contains("project"), "{}", refused.message());
        get(&service, "admin of a", path).await.expect(200);
    }
    for path in ["/v2/a/servers", "/v2.1/a/servers"] {
        assert_eq!(ids(&get(&service, "member of a", path).await.expect(200).body["servers"], "id"), [Q35]);
    }
    // By what only operators may read.
    for path in [
        "/v2.1/events",
        "/events",
        "/v2.1/os-pci",
        "/v2.1/os-hypervisors",
        "/drift",
        "/webhooks",
        &format!("/v2.1/os-pci?instance_uuid={I440FX}"),
        &format!("/v2.1/servers/{Q35}/pci_owner"),
        &format!("/v2.1/servers/{I440FX}/pci_owner"),
    ] {
        let refused = get(&service, "manager of a", path).await.expect(403);
        assert!(!refused.body.to_string().contains("project b"), "{}", refused.body);
    }
    let owner = json!({ "pci_owner": { "project_id": "a" } });
    for id in [Q35, I440FX, SWITCH] {
        for who in ["member of a", "manager of a", "reader", "nova of a"] {
            let path = format!("{}/pci_owner", server(id));
            send(&service, who, Method::PUT, &path, owner.clone()).await.expect(403);
        }
    }
    // By an accelerator of one's own, or of the other project.
    let made = send(&service, "member of a", Method::POST, "/accelerators", json!({ "name": "mine" })).await;
    let acc = made.expect(201).location.unwrap();
    let acc = &acc[acc.find("/accelerators/").unwrap()..];
    for id in [I440FX, SWITCH, "10000000-0000-4000-8000-0000000000ff"] {
        let refused =
            send(&service, "member of a", Method::PUT, acc, json!({ "instance_uuid": id })).await.expect(404);
        assert_eq!(refused.message().replace(id, "ID"), "server ID not found; GET servers lists all servers");
    }
    for (method, body) in [
        (Method::GET, Value::Null),
        (Method::PUT, json!({ "instance_uuid": I440FX })),
        (Method::DELETE, Value::Null),
    ] {
        send(&service, "member of b", method, acc, body).await.expect(404);
    }
}

#[tokio::test]
async fn the_idempotency_key_of_another_caller_gives_nothing() {
    let service = service().await;
    let once = async |who: &str, id: &str| {
        let mut headers = headers(who);
        headers.push(("idempotency-key".to_owned(), "k1".to_owned()));
        service.send_with(Method::POST, &attachments(id), headers, Some(wants("vf").to_string())).await
    };
    let first = once("member of a", Q35).await.expect(200).body;
    assert_eq!(once("member of a", Q35).await.expect(200).body, first);
    for (who, status) in [("member of b", 404), ("reader of a", 403), ("member of c", 404)] {
        let refused = once(who, Q35).await.expect(status);
        assert!(!refused.body.to_string().contains("attachment_id"), "{}", refused.body);
    }
}

#[tokio::test]
async fn the_owner_is_in_the_metadata_and_survives_a_lost_database() {
    let mut service = service().await;
    // It survives a lost database.
    service.kill();
    for file in ["", "-wal", "-shm"] {
        drop(std::fs::remove_file(format!("{}{file}", service.database().display())));
    }
    service.start_again().await;
    get(&service, "reader of a", &server(Q35)).await.expect(200);
    get(&service, "reader of a", &server(I440FX)).await.expect(404);

    for (body, says) in [
        (json!({}), "pci_owner"),
        (json!({ "pci_owner": {} }), "project_id"),
        (json!({ "pci_owner": { "project_id": "" } }), "it is empty"),
        (json!({ "pci_owner": { "project_id": "a b" } }), "blanks"),
        (json!({ "pci_owner": { "project_id": "a\u{202e}" } }), "not ASCII"),
        (json!({ "pci_owner": { "project_id": "x".repeat(256) } }), "255"),
        (json!({ "pci_owner": { "project_id": 7 } }), "string"),
        (json!({ "pci_owner": { "project_id": "a", "nova": true } }), "nova"),
    ] {
        let path = format!("{}/pci_owner", server(Q35));
        let refused = send(&service, "admin", Method::PUT, &path, body.clone()).await.expect(400);
        assert!(refused.message().contains(says), "{body}: {}", refused.message());
    }
    let missing = set_owner(&service, "10000000-0000-4000-8000-0000000000ff", Some("a")).await.expect(404);
    assert!(missing.message().contains("not found"), "{}", missing.message());
    set_owner(&service, SWITCH, Some("a&'<\">")).await.expect(200);
    get(&service, "reader of a&'<\">", &server(SWITCH)).await.expect(200);
    set_owner(&service, SWITCH, None).await.expect(200);
    get(&service, "reader of a&'<\">", &server(SWITCH)).await.expect(404);

    // A refusal leaves the owner as it was, and after a lost answer a GET tells.
    service.sim("fault set-owner fail");
    let refused = set_owner(&service, SWITCH, Some("c")).await.expect(502);
    assert!(refused.message().contains("setting the owner"), "{}", refused.message());
    get(&service, "reader of c", &server(SWITCH)).await.expect(404);
    service.sim("fault set-owner fail kind=timed-out at=after");
    set_owner(&service, SWITCH, Some("c")).await.expect(503);
    get(&service, "reader of c", &server(SWITCH)).await.expect(200);
}

#[tokio::test]
async fn novas_metadata_decides_and_two_owners_are_none() {
    let service = service().await;
    let file = service.host_dir().join("domains/switch.xml");
    let definition = std::fs::read_to_string(&file).unwrap();
    let nova = "<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'><nova:owner>\
                <nova:project uuid='b'>b</nova:project></nova:owner></nova:instance>";
    let own = "<h:owner xmlns:h='urn:hotslot:domain:1.0' project='a'/>";
    for (metadata, owner, problem) in [
        (nova.to_owned(), json!("b"), None),
        (format!("{nova}{own}"), Value::Null, Some("both Nova's and hotslot's")),
        (nova.replace("uuid", "id"), Value::Null, Some("names no project")),
        (format!("{own}{own}"), Value::Null, Some("several times")),
    ] {
        let definition =
            definition.replacen("<memory ", &format!("<metadata>{metadata}</metadata><memory "), 1);
        let other = service.host_dir().join("other.xml");
        std::fs::write(&other, definition).unwrap();
        service.sim(&format!("define {}", other.display()));
        let path = format!("{}/pci_owner", server(SWITCH));
        let shown = get(&service, "admin", &path).await.expect(200).body["pci_owner"].clone();
        assert_eq!(shown["project_id"], owner, "{shown}");
        let found = shown["problem"].as_str();
        assert!(
            problem.map_or(found.is_none(), |says| found.is_some_and(|found| found.contains(says))),
            "{shown}"
        );
        for who in ["reader of a", "reader of b"] {
            let seen = owner == who.rsplit(' ').next().unwrap();
            get(&service, who, &server(SWITCH)).await.expect(if seen { 200 } else { 404 });
        }
        if metadata.contains("nova") {
            let refused = set_owner(&service, SWITCH, Some("a")).await.expect(409);
            assert!(refused.message().contains("Nova"), "{}", refused.message());
        } else {
            set_owner(&service, SWITCH, Some("a")).await.expect(200);
        }
    }
}

fn cli(service: &Hotslot, token: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .args(["--url", service.url()])
        .env("HOTSLOT_TOKEN", token)
        .env_remove("HOTSLOT_CONFIG");
    command.output().unwrap()
}

/// An administrator gives a server to a project, and a member works with it by the command line.
#[tokio::test]
async fn a_member_uses_the_command_line() {
    let mut service = Hotslot::on("small").await;
    let file = service.database().with_file_name("tokens");
    let config = service.database().with_file_name("hotslot.toml").display().to_string();
    service.reconfigure("insecure_tcp = true\n", "");
    service
        .reconfigure("[database]\n", &format!("[identity]\ntokens = \"{}\"\n[database]\n", file.display()));
    service.kill();
    service.start_again().await;
    let token = |arguments: &[&str]| {
        let said = Command::new(binary())
            .args(["token", "create", "--config", &config])
            .args(arguments)
            .output()
            .unwrap();
        assert!(said.status.success(), "{said:?}");
        String::from_utf8(said.stdout).unwrap().trim().to_owned()
    };
    let admin = token(&["ops", "--role", "admin"]);
    let (member, other) = (
        token(&["app", "--role", "member", "--project", "a"]),
        token(&["other", "--role", "member", "--project", "b"]),
    );
    let run = |token: &str, line: &str, code: i32| {
        let said = cli(&service, token, &line.split(' ').collect::<Vec<_>>());
        let text =
            format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert_eq!(said.status.code(), Some(code), "{line}: {text}");
        text
    };
    assert!(run(&admin, "server set q35 --project a", 0).contains("Project"));
    let listed = run(&member, "server list", 0);
    assert!(listed.contains("q35") && !listed.contains("i440fx") && !listed.contains("node1"), "{listed}");
    assert!(!run(&other, "server list", 0).contains("q35"));
    run(&other, "server show q35", 3);
    run(&other, &format!("server show {Q35}"), 3);
    run(&member, "server set q35 --no-project", 8);
    let made = run(&member, "attach q35 vf", 0);
    assert!(!made.contains("0000:04:"), "{made}");
    run(&other, &format!("attach {Q35} vf"), 3);
    let shown = run(&member, "server show q35 -o json", 0);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let id = shown["pciAttachment"][0]["attachment_id"].as_str().unwrap();
    assert_eq!(shown["tenant_id"], "a");
    run(&member, "attachment list", 0);
    run(&member, "topology q35 --server", 0);
    run(&other, &format!("detach {id}"), 3);
    run(&member, &format!("detach {id}"), 0);
    run(&admin, "server set q35 --no-project", 0);
    run(&member, "server show q35", 3);
}
