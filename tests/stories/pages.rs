//! Lists in pages: every item once, in order, and nothing of another project.

use hotslot_tests::{Hotslot, I440FX, Q35};
use reqwest::Method;
use serde_json::{Value, json};

fn caller(project: &str, role: &str) -> Vec<(String, String)> {
    [("x-user-id", "u"), ("x-project-id", project), ("x-roles", role)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// Returns the ids of a list, read in pages, and checks the size of each page.
async fn in_pages(
    service: &Hotslot,
    path: &str,
    (key, id): (&str, &str),
    limit: usize,
    project: &str,
) -> Vec<String> {
    let mut all = Vec::new();
    let join = if path.contains('?') { '&' } else { '?' };
    let mut next = Some(format!("{path}{join}limit={limit}"));
    while let Some(path) = next {
        let body =
            service.send_with(Method::GET, &path, caller(project, "member"), None).await.expect(200).body;
        let items = body[key].as_array().unwrap();
        all.extend(items.iter().map(|item| item[id].as_str().unwrap().to_owned()));
        let link = body[format!("{key}_links")][0]["href"].as_str();
        assert!(items.len() == limit || link.is_none() && items.len() <= limit, "{body}");
        next = link.map(|link| link.strip_prefix(service.url()).unwrap().to_owned());
    }
    all
}

#[tokio::test]
async fn accelerators_and_their_requests_are_listed_in_pages_of_the_project() {
    let mut service =
        Hotslot::with(&hotslot_tests::host("small"), "[accelerators]\nchange = \"owner\"\n").await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    let post = async |project: &str, role: &str, path: &str, body: Value| {
        service.send_with(Method::POST, path, caller(project, role), Some(body.to_string())).await.expect(201)
    };
    let groups = json!([{ "name": "one", "groups": [{ "resources:CUSTOM_A": "1" }] }]);
    post("a", "admin", "/accelerator/v2/device_profiles", groups).await;
    let arqs = "/accelerator/v2/accelerator_requests";
    let mut made = Vec::new();
    for number in 0..7 {
        // The other project's are between them.
        for project in ["q", "p"] {
            let name = format!("{project}{number}");
            post(project, "member", "/v1/accelerators", json!({ "name": name })).await;
            let answer = post(project, "member", arqs, json!({ "device_profile_name": "one" })).await;
            let id = answer.body["arqs"][0]["uuid"].as_str().unwrap().to_owned();
            made.extend((project == "p").then_some(id));
        }
    }
    for limit in [1, 3, 7, 8] {
        assert_eq!(in_pages(&service, arqs, ("arqs", "uuid"), limit, "p").await, made, "{limit}");
        let names = in_pages(&service, "/v1/accelerators", ("accelerators", "name"), limit, "p").await;
        assert_eq!(names, ["p0", "p1", "p2", "p3", "p4", "p5", "p6"], "{limit}");
        let path = "/v1/accelerators?sort_dir=desc";
        let names = in_pages(&service, path, ("accelerators", "name"), limit, "p").await;
        assert_eq!(names, ["p6", "p5", "p4", "p3", "p2", "p1", "p0"], "{limit}");
        let path = "/v1/accelerators?sort_key=name&sort_dir=desc";
        assert_eq!(in_pages(&service, path, ("accelerators", "name"), limit, "p").await, names, "{limit}");
    }
    let resolved = format!("{arqs}?bind_state=resolved");
    assert_eq!(in_pages(&service, &resolved, ("arqs", "uuid"), 2, "p").await, Vec::<String>::new());
    // Another project's request is no marker.
    for (project, marker, status) in
        [("q", made[2].as_str(), 400), ("p", Q35, 400), ("p", "x", 400), ("a", made[2].as_str(), 400)]
    {
        let path = format!("{arqs}?marker={marker}");
        service.send_with(Method::GET, &path, caller(project, "member"), None).await.expect(status);
    }
    let all = service.send_with(Method::GET, arqs, caller("a", "admin"), None).await.expect(200).body;
    assert_eq!(all["arqs"].as_array().unwrap().len(), 14, "the administrator sees all");
}

#[tokio::test]
async fn attachments_are_listed_in_pages() {
    let service = Hotslot::on("small").await;
    service.attach(Q35, "vf:2").await.expect(200);
    service.attach(I440FX, "e1000:1").await.expect(200);
    let all = service.get("/v2.1/os-pci_attachments").await.expect(200).body;
    let all: Vec<_> =
        all["pciAttachment"].as_array().unwrap().iter().map(|row| row["attachment_id"].clone()).collect();
    assert_eq!(all.len(), 3);
    let mut found = Vec::new();
    let mut next = Some("/v2.1/os-pci_attachments?limit=2".to_owned());
    while let Some(path) = next {
        let body = service.get(&path).await.expect(200).body;
        found
            .extend(body["pciAttachment"].as_array().unwrap().iter().map(|row| row["attachment_id"].clone()));
        let link = body["pciAttachment_links"][0]["href"].as_str();
        next = link.map(|link| link.strip_prefix(service.url()).unwrap().to_owned());
    }
    assert_eq!(found, all);
    let first =
        service.get(&format!("/v2.1/servers/{Q35}/os-pci_attachments?limit=1")).await.expect(200).body;
    assert_eq!(first["pciAttachment"].as_array().unwrap().len(), 1);
    assert!(first["pciAttachment_links"].is_array(), "{first}");
    for marker in ["x", Q35] {
        service.get(&format!("/v2.1/os-pci_attachments?marker={marker}")).await.expect(400);
        service.get(&format!("/v2.1/servers/{Q35}/os-pci_attachments?marker={marker}")).await.expect(400);
    }
}
