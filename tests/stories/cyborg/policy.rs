//! The policy: which role may call which route, for accelerators and for Cyborg's resources.

use hotslot_tests::{Answer, Hotslot};
use reqwest::Method;
use serde_json::{Value, json};

use super::{ARQS, G1, G2, QAT, V2, provider, service, target};

/// Returns the headers of a caller: a role in project `p`; `other …` in another project; `unscoped …` in no project;
/// `twice …` with two projects; `+service` with a service token.
fn headers(who: &str) -> Vec<(String, String)> {
    let (projects, role): (&[_], _) = match who.split_once(' ') {
        Some(("other", role)) => (&["q"], role),
        Some(("unscoped", role)) => (&[], role),
        Some(("twice", role)) => (&["p", "q"], role),
        _ => (&["p"], who),
    };
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(projects.iter().map(|project| ("x-project-id", *project)));
    match role {
        "nobody" => return Vec::new(),
        "system" => {
            headers.retain(|(name, _)| *name != "x-project-id");
            headers.extend([("x-roles", "admin"), ("openstack-system-scope", "all")]);
        }
        "none" => headers.push(("x-roles", "")),
        "+service" => headers.extend([("x-roles", "reader"), ("x-service-roles", "service,other")]),
        role => headers.push(("x-roles", role)),
    }
    headers.push(("x-user-id", "u"));
    headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Sends a request of a caller; null stands for no body.
async fn send(service: &Hotslot, method: Method, path: &str, who: &str, body: Value) -> Answer {
    let body = (!body.is_null()).then(|| body.to_string());
    service.send_with(method, path, headers(who), body).await
}

#[tokio::test]
async fn accelerators_are_changed_by_administrators_or_project_members() {
    let mut service = service().await;
    let device = service.device(QAT).await["uuid"].as_str().unwrap().to_owned();
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    for change in ["admin", "owner"] {
        service.reconfigure("[pci]\n", &format!("[accelerators]\nchange = \"{change}\"\n[pci]\n"));
        service.kill();
        service.start_again().await;
        service.reconfigure(&format!("[accelerators]\nchange = \"{change}\"\n[pci]\n"), "[pci]\n");
        let owner = change == "owner";
        let path = created(&service, change, owner).await;
        is_visible_to_its_project(&service, &path).await;
        is_changed_by_its_project(&service, &path, owner).await;
        may_be_attached_to_a_server_of_another_project(&service, &path).await;
        is_bound_and_purged_by_the_administrator(&service, &path, &device).await;
    }
}

/// Creates an accelerator as a member if members own accelerators, and as the administrator otherwise. Returns its path.
async fn created(service: &Hotslot, change: &str, owner: bool) -> String {
    let name = json!({ "name": change });
    for who in ["none", "reader", "service"] {
        send(service, Method::POST, "/accelerators", who, name.clone()).await.expect(403);
    }
    let made =
        send(service, Method::POST, "/accelerators", if owner { "member" } else { "admin" }, name).await;
    let path = made.expect(201).location.unwrap();
    let path = path[path.find("/accelerators/").unwrap()..].to_owned();
    if owner {
        // Members of other projects learn only that the name is taken.
        for (who, sees_uuid) in [("member", true), ("other member", false), ("other admin", true)] {
            let name = json!({ "name": change });
            let refused = send(service, Method::POST, "/accelerators", who, name).await.expect(409);
            let uuid = path.rsplit('/').next().unwrap();
            assert_eq!(refused.message().contains(uuid), sees_uuid, "{who}: {}", refused.message());
        }
    }
    path
}

async fn is_visible_to_its_project(service: &Hotslot, path: &str) {
    // An accelerator is visible to its project and to the administrator.
    let shown = send(service, Method::GET, path, "reader", json!({})).await.expect(200).body;
    assert_eq!(shown["project_id"], "p");
    send(service, Method::GET, path, "other reader", json!({})).await.expect(404);
    let seen = async |who: &str| {
        let listed = send(service, Method::GET, "/accelerators", who, json!({})).await.expect(200).body;
        listed["accelerator"].as_array().unwrap().iter().any(|one| one["uuid"] == shown["uuid"])
    };
    assert_eq!(
        (seen("reader").await, seen("other reader").await, seen("other admin").await),
        (true, false, true)
    );
}

async fn is_changed_by_its_project(service: &Hotslot, path: &str, owner: bool) {
    let (spec, into) = (json!({ "acc_specs": { "device_type": "QAT" } }), json!({ "instance_uuid": G1 }));
    let steps = [
        (Method::PUT, path, &spec, 200),
        (Method::PUT, path, &into, 200),
        (Method::DELETE, path, &into, 204),
    ];
    for (method, path, body, status) in steps {
        for who in ["reader", "service"] {
            send(service, method.clone(), path, who, body.clone()).await.expect(403);
        }
        let other = if owner { 404 } else { 403 };
        send(service, method.clone(), path, "other member", body.clone()).await.expect(other);
        if owner && body == &into && method == Method::PUT {
            // A server that Nova did not create for the project is not found.
            let nobodys = json!({ "instance_uuid": G2 });
            let refused = send(service, method.clone(), path, "member", nobodys).await.expect(404);
            assert!(refused.message().contains(G2), "{}", refused.message());
        }
        let member = if owner { status } else { 403 };
        send(service, method.clone(), path, "member", body.clone()).await.expect(member);
        if !owner {
            send(service, method, path, "other admin", body.clone()).await.expect(status);
        }
    }
}

async fn may_be_attached_to_a_server_of_another_project(service: &Hotslot, path: &str) {
    // When the administrator attached the accelerator to a server of another project, members neither see that
    // server nor may detach the accelerator.
    let others = json!({ "instance_uuid": G2 });
    send(service, Method::PUT, path, "admin", others).await.expect(200);
    let shown = send(service, Method::GET, path, "admin", json!({})).await.expect(200).body;
    assert_eq!(shown["instance_uuid"], G2);
    assert!(shown["address"].is_string(), "{shown}");
    let one = send(service, Method::GET, path, "member", json!({})).await.expect(200).body;
    let listed = send(service, Method::GET, "/accelerators", "reader", json!({})).await.expect(200).body;
    let mut listed = listed["accelerator"].as_array().unwrap().iter();
    for shown in [&one, listed.find(|other| other["uuid"] == one["uuid"]).unwrap()] {
        for key in ["instance_uuid", "host", "address", "inner_address"] {
            assert_eq!(shown[key], json!(null), "{key}");
        }
        assert_eq!(shown["devices"], json!([]));
    }
    let refused = send(service, Method::DELETE, path, "member", json!({})).await.expect(403);
    assert!(refused.message().contains("admin") && !refused.message().contains(G2), "{}", refused.message());
    let shown = send(service, Method::GET, path, "admin", json!({})).await.expect(200).body;
    assert_eq!(shown["instance_uuid"], G2, "it is still there");
    send(service, Method::DELETE, path, "admin", json!({})).await.expect(204);
}

async fn is_bound_and_purged_by_the_administrator(service: &Hotslot, path: &str, device: &str) {
    let gone = format!("{path}?purge=true");
    // Only the administrator may attach it to the host or purge the record.
    let none = json!({ "driver": "native" });
    for (method, path) in [(Method::PUT, path), (Method::DELETE, path), (Method::DELETE, &gone)] {
        send(service, method.clone(), path, "member", none.clone()).await.expect(403);
        let done = send(service, method, path, "admin", none.clone()).await;
        assert!(done.status < 300, "{}", done.body);
    }
    // Only the administrator may create the accelerator of a device.
    let named = json!({ "name": "mine", "uuid": device });
    send(service, Method::POST, "/accelerators", "member", named).await.expect(403);
    send(service, Method::POST, &format!("/accelerators/{device}"), "member", json!({ "name": "mine" }))
        .await
        .expect(403);
}

/// Starts a service that reads the roles of its callers from headers, with a device profile `qat` of two VFs. Also
/// returns the id of the card's resource provider.
async fn service_with_roles() -> (Hotslot, String) {
    let mut service = service().await;
    let card = provider(&service, QAT).await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    let group = json!([{ "name": "qat", "groups": [{ "resources:CUSTOM_QAT": "2" }] }]);
    send(&service, Method::POST, &format!("{V2}/device_profiles"), "admin", group).await.expect(201);
    (service, card)
}

/// Creates the two accelerator requests of the profile as a member of the project `p`. Returns their UUIDs.
async fn requests(service: &Hotslot) -> [String; 2] {
    let body = json!({ "device_profile_name": "qat" });
    let made = send(service, Method::POST, ARQS, "member", body).await.expect(201).body;
    assert_eq!(made["arqs"][0]["project_id"], "p");
    [0, 1].map(|at| made["arqs"][at]["uuid"].as_str().unwrap().to_owned())
}

/// Returns the number of accelerator requests that a caller sees.
async fn visible(service: &Hotslot, who: &str) -> usize {
    let all = send(service, Method::GET, ARQS, who, Value::Null).await.expect(200).body;
    all["arqs"].as_array().unwrap().len()
}

#[tokio::test]
async fn each_role_may_do_what_the_data_file_says() {
    let (service, card) = service_with_roles().await;
    let [bound, free] = requests(&service).await;
    // A service binds a request on behalf of a member of the project.
    send(&service, Method::PATCH, ARQS, "service", json!({ (&bound): target(&card, G1) })).await.expect(202);
    let path = format!("{ARQS}/{bound}");
    let is_bound = async || {
        send(&service, Method::GET, &path, "member", Value::Null).await.expect(200).body["state"] == "Bound"
    };
    service.until("it is bound", is_bound).await;

    let cases: Vec<Value> = serde_json::from_str(include_str!("../../data/policies.json")).unwrap();
    for case in cases {
        let filled =
            |text: &str| text.replace("{bound}", &bound).replace("{free}", &free).replace("{g1}", G1);
        let method: Method = case["method"].as_str().unwrap().parse().unwrap();
        let path = filled(case["path"].as_str().unwrap());
        let body: Value = serde_json::from_str(&filled(&case["body"].to_string())).unwrap();
        let mut sent = 0;
        for (status, all) in case.as_object().unwrap() {
            let Ok(status) = status.parse::<u16>() else { continue };
            for who in all.as_array().unwrap().iter().map(|who| who.as_str().unwrap()) {
                let answer = send(&service, method.clone(), &path, who, body.clone()).await;
                assert_eq!(answer.status, status, "{who}: {case}: {}", answer.body);
                if let (403, Some(says)) = (status, case["says"].as_str()) {
                    assert!(answer.fault_string().contains(says), "{who}: {case}: {}", answer.body);
                }
                sent += 1;
            }
        }
        assert!(sent > 0, "{case}");
    }
}

#[tokio::test]
async fn an_idempotency_key_belongs_to_its_caller() {
    let (service, _) = service_with_roles().await;
    // A stored response is not returned to another caller with the same key, and each caller can use the key
    // independently.
    let once = async |who: &str, body: Value| {
        let mut headers = headers(who);
        headers.push(("idempotency-key".to_owned(), "k1".to_owned()));
        service.send_with(Method::POST, ARQS, headers, Some(body.to_string())).await
    };
    let body = json!({ "device_profile_name": "qat" });
    let kept = once("member", body.clone()).await.expect(201).body;
    assert_eq!(once("member", body.clone()).await.expect(201).body, kept);
    for (who, status) in
        [("nobody", 401), ("unscoped member", 403), ("none", 403), ("reader", 403), ("system", 403)]
    {
        let refused = once(who, body.clone()).await.expect(status);
        assert!(!refused.fault_string().is_empty(), "{who}");
    }
    let others = once("other member", body).await.expect(201).body;
    assert_ne!(others, kept);
    for arq in others["arqs"].as_array().unwrap() {
        let path = format!("{ARQS}/{}", arq["uuid"].as_str().unwrap());
        send(&service, Method::DELETE, &path, "other member", Value::Null).await.expect(204);
    }
    let other = once("member", json!({ "device_profile_name": "other" })).await.expect(422);
    assert!(other.fault_string().contains("another body"), "{}", other.fault_string());
    for arq in kept["arqs"].as_array().unwrap() {
        let path = format!("{ARQS}/{}", arq["uuid"].as_str().unwrap());
        send(&service, Method::DELETE, &path, "member", Value::Null).await.expect(204);
    }
}

#[tokio::test]
async fn the_reason_of_a_failed_bind_is_hidden_from_members() {
    let (service, card) = service_with_roles().await;
    // The reason of a failed bind names devices, which members may not see.
    let ids = requests(&service).await;
    service.sim("fault attach fail");
    send(&service, Method::PATCH, ARQS, "service", json!({ (&ids[0]): target(&card, G1) })).await.expect(202);
    let path = format!("{ARQS}/{}", ids[0]);
    let failed =
        async |who: &str| send(&service, Method::GET, &path, who, Value::Null).await.expect(200).body;
    service.until("it failed", async || failed("member").await["state"] == "BindFailed").await;
    assert_eq!(
        (failed("member").await.get("state_reason"), failed("admin").await["state_reason"].is_string()),
        (None, true)
    );
    service.sim("fault clear");
    // A member may delete a request without a device.
    send(&service, Method::DELETE, &path, "member", Value::Null).await.expect(204);
}

#[tokio::test]
async fn a_bind_and_a_delete_of_one_request_do_not_both_succeed() {
    let (service, card) = service_with_roles().await;
    for _ in 0..20 {
        let [one, other] = requests(&service).await;
        send(&service, Method::DELETE, &format!("{ARQS}/{other}"), "member", Value::Null).await.expect(204);
        let path = format!("{ARQS}/{one}");
        let (bound, deleted) = tokio::join!(
            send(&service, Method::PATCH, ARQS, "service", json!({ (&one): target(&card, G1) })),
            send(&service, Method::DELETE, &path, "member", Value::Null)
        );
        match (bound.status, deleted.status) {
            (404, 204) => {}
            (202, 403) => {
                let is =
                    async || send(&service, Method::GET, &path, "member", Value::Null).await.expect(200).body;
                service.until("it is bound", async || is().await["state"] != "BindStarted").await;
                assert_eq!(is().await["state"], "Bound");
                send(&service, Method::DELETE, &path, "service", Value::Null).await.expect(204);
            }
            (bound, deleted) => panic!("bind {bound}, delete {deleted}"),
        }
    }
}

#[tokio::test]
async fn a_service_can_set_the_project_of_a_request() {
    let (service, card) = service_with_roles().await;
    let [_, free] = requests(&service).await;
    let seen = async || {
        (
            visible(&service, "reader").await,
            visible(&service, "other member").await,
            visible(&service, "other admin").await,
        )
    };
    assert_eq!(seen().await, (2, 0, 2));
    // A service can set the project of a request when it binds it.
    let mut given = target(&card, G1);
    given.as_array_mut().unwrap().push(json!({ "op": "add", "path": "/project_id", "value": "q" }));
    let mut latest = headers("service");
    latest.push(("openstack-api-version".to_owned(), "accelerator 2.1".to_owned()));
    let body = Some(json!({ (&free): given }).to_string());
    service.send_with(Method::PATCH, ARQS, latest, body).await.expect(202);
    assert_eq!(seen().await, (1, 1, 2));
}
