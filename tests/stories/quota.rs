//! Quotas: no project gets more than its limits, whatever it sends at once, and to whichever process.

use std::path::Path;
use std::process::{Command, Output};

use futures_util::future::join_all;
use hotslot_driver::sim::generate::{Size, guest_uuid};
use hotslot_tests::{Answer, Hotslot, Q35, attachments, binary, host, path, postgres};
use reqwest::Method;
use serde_json::{Value, json};

const CONFIG: &str = r#"
[attach]
verify = "off"
[accelerators]
change = "owner"
[quota]
accelerators = 3
accelerator_requests = 4
accelerator_spec_bytes = 1000
idempotency_keys = 3
[pci]
device_spec = ['{"vendor_id": "8086", "product_id": "10ca"}']
alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca"}']
"#;

/// The number of guests. Nova created all but the last for project `p`.
const GUESTS: u32 = 21;

fn make(_: usize, dir: &Path) {
    Size { pfs: 1, vfs: 24, guests: GUESTS, ports: 4 }.write(dir).unwrap();
    for number in 0..GUESTS - 1 {
        let file = dir.join(format!("domains/g{number}.xml"));
        let domain = std::fs::read_to_string(&file).unwrap();
        let owner = "<metadata><nova:instance xmlns:nova=\"http://openstack.org/xmlns/libvirt/nova/1.1\"><nova:owner>\
                     <nova:project uuid=\"p\">a project</nova:project></nova:owner></nova:instance></metadata>";
        std::fs::write(&file, domain.replacen("<memory", &format!("{owner}<memory"), 1)).unwrap();
    }
}

fn guest(number: u32) -> String {
    guest_uuid(number).to_string()
}

async fn usage(service: &Hotslot, resource: &str) -> Value {
    let detail = service.get("/v2.1/os-quota-sets/p/detail").await.expect(200).body;
    detail["quota_set"][resource].clone()
}

/// Sends 20 attaches at once, in turns to each process.
async fn race(services: &[&Hotslot]) -> Vec<Answer> {
    let of = services.iter().cycle().zip(0..GUESTS - 1);
    join_all(of.map(async |(service, number)| service.attach(&guest(number), "vf:1").await)).await
}

async fn twenty_attaches_at_once(services: &[&Hotslot]) {
    let service = services[0];
    let limit = async |resource: &str, limit: i64| {
        service.put("/v2.1/os-quota-sets/p", json!({ "quota_set": { resource: limit } })).await.expect(200)
    };
    for (resource, taken) in [("pci_attachments", 0), ("pci_attachments:vf", 5)] {
        let set = limit(resource, 5 + taken).await.body;
        assert_eq!(set["quota_set"][resource], 5 + taken, "{set}");
        let (made, refused): (Vec<_>, Vec<_>) =
            race(services).await.into_iter().partition(|answer| answer.status == 200);
        assert_eq!((made.len(), refused.len()), (5, 15), "{refused:?}");
        let reason = format!(
            "Quota exceeded for {resource}: requested 1, but project p already uses {used} of {used}",
            used = 5 + taken
        );
        for refused in refused {
            let refused = refused.expect(403);
            assert!(refused.message().starts_with(&reason), "{}", refused.message());
            assert!(refused.message().contains("PUT os-quota-sets/p"), "{}", refused.message());
        }
        let used = usage(service, resource).await;
        assert_eq!(used, json!({ "limit": 5 + taken, "in_use": 5 + taken, "reserved": 0 }));
        limit("pci_attachments", -1).await;
    }

    // Servers without a project are not limited, and what is detached may be attached again.
    service.attach(&guest(GUESTS - 1), "vf:1").await.expect(200);
    assert_eq!(usage(service, "pci_attachments").await["in_use"], 10);
    limit("pci_attachments", 3).await;
    assert_eq!(usage(service, "pci_attachments").await, json!({ "limit": 3, "in_use": 10, "reserved": 0 }));
    let dry = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1", "dry_run": true } });
    let dry = service.post(&attachments(&guest(0)), dry).await.expect(200).body["dry_run"].clone();
    let checks = dry["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["check"] == "quota").unwrap();
    assert_eq!((&check["result"], &dry["would_attach"]), (&json!("fail"), &json!(false)), "{dry:#}");
    assert!(check["message"].as_str().unwrap().contains("already uses 10 of 3"), "{check}");
    service.delete("/v2.1/os-quota-sets/p").await.expect(202);
    let listed = service.get("/v2.1/os-pci_attachments").await.expect(200).body;
    let all = listed["pciAttachment"].as_array().unwrap();
    let of_first = all.iter().find(|row| row["serverId"] != guest(GUESTS - 1)).unwrap();
    limit("pci_attachments", 10).await;
    service.attach(of_first["serverId"].as_str().unwrap(), "vf:1").await.expect(403);
    service.delete(&path(of_first)).await.expect(200);
    service.attach(of_first["serverId"].as_str().unwrap(), "vf:1").await.expect(200);
}

#[tokio::test]
async fn twenty_attaches_at_once_get_no_more_than_the_quota() {
    let service = Hotslot::many(1, CONFIG, make).await;
    twenty_attaches_at_once(&[&service]).await;
}

#[tokio::test]
async fn two_processes_together_give_no_more_than_the_quota() {
    let service = Hotslot::many(1, CONFIG, make).await.moved_to(&postgres::database().await).await;
    let other = service.beside().await;
    twenty_attaches_at_once(&[&service, &other]).await;
}

#[tokio::test]
async fn a_dry_run_counts_all_devices_of_a_group() {
    let service = Hotslot::bare(
        &host("small"),
        "[pci]\ndevice_spec = ['{\"address\": \"*:06:00.*\"}']\n\
         alias = ['{\"name\": \"pair\", \"vendor_id\": \"8086\", \"product_id\": \"10d3\"}']\n",
        |_| (),
    )
    .await;
    let owner = json!({ "pci_owner": { "project_id": "p" } });
    service.put(&format!("/v2.1/servers/{Q35}/pci_owner"), owner).await.expect(200);
    let body = |dry_run: bool| {
        json!({ "pciAttachment": {
            "pci_passthrough:alias": "pair:1", "whole_group": true, "dry_run": dry_run
        } })
    };
    for (limit, result, status) in [(1, "fail", 403), (2, "pass", 200)] {
        let limit = json!({ "quota_set": { "pci_attachments": limit } });
        service.put("/v2.1/os-quota-sets/p", limit).await.expect(200);
        let dry = service.post(&attachments(Q35), body(true)).await.expect(200).body["dry_run"].clone();
        let checks = dry["checks"].as_array().unwrap();
        let quota = checks.iter().find(|check| check["check"] == "quota").unwrap();
        assert_eq!(quota["result"], result, "{dry:#}");
        service.post(&attachments(Q35), body(false)).await.expect(status);
    }
}

fn caller(described: &str) -> Vec<(String, String)> {
    let pairs = described.split(' ').filter_map(|pair| pair.split_once('='));
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    pairs.chain([("x-user-id".to_owned(), "u".to_owned())]).collect()
}

const MEMBER: &str = "x-project-id=p x-roles=member";
const OTHER: &str = "x-project-id=q x-roles=member";
const ADMIN: &str = "x-project-id=a x-roles=admin";

/// A service whose callers are identified by headers.
async fn with_callers() -> Hotslot {
    let mut service = Hotslot::many(1, CONFIG, make).await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    service
}

#[tokio::test]
async fn accelerators_and_accelerator_requests_are_limited() {
    let service = with_callers().await;
    let send = async |method: Method, path: &str, who: &str, body: Value| {
        service.send_with(method, path, caller(who), Some(body.to_string())).await
    };
    let groups = json!([{ "name": "qat", "groups": [{ "resources:CUSTOM_A": "2" }] }]);
    send(Method::POST, "/accelerator/v2/device_profiles", ADMIN, groups).await.expect(201);
    for (path, body, (made, refused), reason) in [
        (
            "/accelerators",
            json!({ "name": "x" }),
            (3, 7),
            "accelerators: requested 1, but project p already uses 3",
        ),
        (
            "/accelerator/v2/accelerator_requests",
            json!({ "device_profile_name": "qat" }),
            (2, 8),
            "accelerator_requests: requested 2, but project p already uses 4",
        ),
    ] {
        let (send, body) = (&send, &body);
        let all = (0..10).map(async |number| {
            let mut body = body.clone();
            if body["name"].is_string() {
                body["name"] = json!(format!("x{number}"));
            }
            send(Method::POST, path, MEMBER, body).await
        });
        let (done, others): (Vec<_>, Vec<_>) =
            join_all(all).await.into_iter().partition(|answer| answer.status == 201);
        assert_eq!((done.len(), others.len()), (made, refused), "{path}: {others:?}");
        for other in others {
            let other = other.expect(403);
            assert!(other.body.to_string().contains(reason), "{}", other.body);
        }
        let mut body = body.clone();
        if body["name"].is_string() {
            body["name"] = json!("of another project");
        }
        send(Method::POST, path, OTHER, body).await.expect(201);
    }
}

#[tokio::test]
async fn a_project_reads_its_own_quota_and_only_an_administrator_sets_it() {
    let service = with_callers().await;
    let get = async |path: &str, who: &str| service.send_with(Method::GET, path, caller(who), None).await;
    let put = async |path: &str, who: &str, body: Value| {
        service.send_with(Method::PUT, path, caller(who), Some(body.to_string())).await
    };
    let (own, detail) = ("/v2.1/os-quota-sets/p", "/v2.1/os-quota-sets/p/detail");
    let defaults = json!({
        "accelerator_requests": 4, "accelerator_spec_bytes": 1000, "accelerators": 3, "idempotency_keys": 3,
        "pci_attachments": -1, "pci_attachments:vf": -1,
    });
    let mut set = get("/v2.1/p/os-quota-sets/p", MEMBER).await.expect(200).body["quota_set"].clone();
    assert_eq!(set.as_object_mut().unwrap().remove("id"), Some(json!("p")));
    assert_eq!(set, defaults);
    get(detail, MEMBER).await.expect(200);
    for path in [own, detail] {
        let refused = get(path, OTHER).await.expect(403);
        assert!(refused.message().contains("os_compute_api:os-quota-sets"), "{}", refused.message());
    }
    get("/v2.1/os-quota-sets/q/defaults", MEMBER).await.expect(200);
    let body = json!({ "quota_set": { "accelerators": "7", "pci_attachments:vf": 2, "force": true } });
    put(own, MEMBER, body.clone()).await.expect(403);
    let set = put(own, ADMIN, body).await.expect(200).body["quota_set"].clone();
    let now = json!({
        "accelerator_requests": 4, "accelerator_spec_bytes": 1000, "accelerators": 7, "idempotency_keys": 3,
        "pci_attachments": -1, "pci_attachments:vf": 2,
    });
    assert_eq!(set, now, "like Nova's, without an id");
    assert_eq!(get("/v2.1/os-quota-sets/q", OTHER).await.expect(200).body["quota_set"]["accelerators"], 3);
    for (body, says) in [
        (json!({}), "quota_set"),
        (json!({ "quota_set": [] }), "must not be a list"),
        (json!({ "quota_set": { "instances": 1 } }), "there is no quota `instances`"),
        (json!({ "quota_set": { "accelerators": -2 } }), "-1 for no limit"),
        (json!({ "quota_set": { "accelerators": 1.5 } }), "-1 for no limit"),
        (json!({ "quota_set": { "accelerators": null } }), "-1 for no limit"),
        (json!({ "quota_set": { "accelerators": 4_294_967_296_i64 } }), "-1 for no limit"),
        (json!({ "quota_set": { "pci_attachments:none": 1 } }), "no PCI alias is called `none`"),
        (json!({ "quota_set": { "accelerators": 1 }, "more": 1 }), "more"),
    ] {
        let refused = put(own, ADMIN, body).await.expect(400);
        assert!(refused.message().contains(says), "{}", refused.message());
    }
    for id in ["%00", "%0a", &"p".repeat(256), "%20%e2%80%ae"] {
        let path = format!("/v2.1/os-quota-sets/{id}");
        put(&path, ADMIN, json!({ "quota_set": { "accelerators": 1 } })).await.expect(400);
    }
    assert_eq!(get(own, MEMBER).await.expect(200).body["quota_set"]["accelerators"], 7);
}

#[tokio::test]
async fn specs_and_idempotency_keys_are_limited() {
    let service = with_callers().await;
    let send = async |method: Method, path: &str, who: &str, body: Value, key: Option<&str>| {
        let key = key.map(|key| ("idempotency-key".to_owned(), key.to_owned()));
        service.send_with(method, path, caller(who).into_iter().chain(key), Some(body.to_string())).await
    };
    let create = async |name: &str, who: &str, key: &str| {
        send(Method::POST, "/accelerators", who, json!({ "name": name }), Some(key)).await
    };
    let mut paths = Vec::new();
    for name in ["a", "b", "c"] {
        let location = create(name, MEMBER, name).await.expect(201).location.unwrap();
        paths.push(location[location.find("/accelerators/").unwrap()..].to_owned());
    }
    let refused = create("d", MEMBER, "d").await.expect(403);
    let reason = "Quota exceeded for idempotency_keys: requested 1, but project p already uses 3 of 3; send the \
                  request without Idempotency-Key";
    assert!(refused.message().starts_with(reason), "{}", refused.message());
    create("a", MEMBER, "a").await.expect(201);
    create("d", OTHER, "d").await.expect(201);
    // Of several that arrive together, those that succeed are kept.
    let limits = json!({ "quota_set": { "idempotency_keys": 5, "accelerators": 20 } });
    send(Method::PUT, "/v2.1/os-quota-sets/p", ADMIN, limits, None).await.expect(200);
    let names: Vec<_> = (0..8).map(|number| format!("n{number}")).collect();
    let made = join_all(names.iter().map(|name| create(name, MEMBER, name))).await;
    let made: Vec<_> = names.iter().zip(made).filter(|(_, answer)| answer.status == 201).collect();
    assert!((1..=2).contains(&made.len()), "{made:?}");
    for (name, answer) in made {
        assert_eq!(create(name, MEMBER, name).await.expect(201).location, answer.location);
    }
    let limits = json!({ "quota_set": { "accelerators": 3 } });
    send(Method::PUT, "/v2.1/os-quota-sets/p", ADMIN, limits, None).await.expect(200);

    let spec = async |path: &str, letters: usize| {
        let spec = json!({ "acc_specs": { "acc_capability": { "x": "a".repeat(letters) } } });
        send(Method::PUT, &format!("{path}/acc_spec"), MEMBER, spec, None).await
    };
    let large = spec(&paths[0], 5000).await.expect(413);
    assert!(large.message().contains("send at most 4096"), "{}", large.message());
    spec(&paths[0], 600).await.expect(200);
    let refused = spec(&paths[1], 600).await.expect(403);
    assert!(refused.message().contains("accelerator_spec_bytes"), "{}", refused.message());
    spec(&paths[0], 100).await.expect(200);
    spec(&paths[1], 600).await.expect(200);
    spec(&paths[1], 500).await.expect(200);
}

fn cli(service: &Hotslot, arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).args(["--url", service.url()]).output().unwrap()
}

#[tokio::test]
async fn the_command_line_shows_and_sets_quotas() {
    let service = Hotslot::many(1, CONFIG, make).await;
    let run = |arguments: &[&str], code: i32| {
        let output = cli(&service, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let shown = run(&["quota", "show", "p"], 0);
    assert!(
        shown.contains("RESOURCE LIMIT IN USE RESERVED") && shown.contains("accelerators 3 0 0"),
        "{shown}"
    );
    let shown = run(&["quota", "set", "p", "pci_attachments=1", "pci_attachments:vf=-1"], 0);
    assert!(shown.contains("pci_attachments 1 0 0"), "{shown}");
    let shown = run(&["attach", "g0", "vf:2"], 8);
    assert!(
        shown.contains("Quota exceeded") && shown.contains("`hotslot quota set p RESOURCE=NUMBER`"),
        "{shown}"
    );
    run(&["attach", "g0", "vf:1"], 0);
    let shown = run(&["quota", "show", "p", "-o", "json"], 0);
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["pci_attachments"]["in_use"], 1);
    let shown = run(&["quota", "reset", "p"], 0);
    assert!(shown.contains("pci_attachments -1 1 0"), "{shown}");
    let shown = run(&["quota", "set", "p", "pci_attachments:gpu=1"], 6);
    assert!(shown.contains("no PCI alias is called `gpu`"), "{shown}");
}
