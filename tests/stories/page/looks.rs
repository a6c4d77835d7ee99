//! How each page looks, in light, in dark, in a narrow window and on a phone: without barriers (axe-core), and not wider
//! than the window. `make screenshots` writes a picture of each page for people to look at, and those of the docs. The pages
//! are those of the made-up host of `hotslot serve --simulate`.

use std::path::{Path, PathBuf};
use std::process::Command;

use hotslot_tests::browser::{Browser, Look, axe};
use hotslot_tests::{Api, attachments, binary};
use reqwest::Method;
use serde_json::{Value, json};

use super::own::made_up_host;

/// A page: the name of its picture, its address, and what is pressed on it before somebody looks at it. The names of servers
/// in angle brackets stand for their ids, `<attachment>` for a device of web1, and the others for an accelerator that holds
/// a device, one that does not, an accelerator request and a device profile.
struct Page(&'static str, &'static str, &'static str);

const PAGES: [Page; 36] = [
    Page("sign-in", "sign-in", ""),
    Page("account", "account", ""),
    Page("hosts", "hosts", ""),
    Page("host", "host?host=demo", ""),
    Page("functions", "host?host=demo&q=network", ""),
    Page("function-free", "function?host=demo&address=0000:31:01.5", ""),
    Page("function-needed", "function?host=demo&address=0000:01:00.0", ""),
    Page("function-gpu", "function?host=demo&address=0000:98:00.0", ""),
    Page("servers", "servers", ""),
    Page("server", "server?id=<web1>&of=<attachment>&done=attached", ""),
    Page("server-pending", "server?id=<db1>", ""),
    Page("server-off", "server?id=<build1>", ""),
    Page("attach", "attach?id=<web1>", ""),
    Page("attach-possible", "attach?id=<web1>&address=0000:31:01.5", "button[value=check]"),
    Page("attach-refused", "attach?id=<web1>&address=0000:4b:00.0", "button[value=check]"),
    Page("attach-to", "attach?host=demo&address=0000:31:01.5", ""),
    Page("detach", "detach?server=<web1>&attachment=<attachment>", ""),
    Page("attach-settings", "attach?id=<web1>&address=0000:31:01.5", "details summary"),
    Page("accelerators", "accelerators", ""),
    Page("accelerator", "accelerator?id=<held>", ""),
    Page("accelerator-free", "accelerator?id=<free>", ""),
    Page("accelerator-new", "accelerator-new", ""),
    Page("accelerator-spec", "accelerator-spec?id=<free>", "button[value=check]"),
    Page("accelerator-attach", "accelerator-attach?id=<free>", "button[value=check]"),
    Page("accelerator-detach", "accelerator-detach?id=<held>", ""),
    Page("accelerator-delete", "accelerator-detach?id=<free>", ""),
    Page("accelerator-request", "accelerator-request?id=<request>", ""),
    Page("device-profile", "device-profile", ""),
    Page("device-profile-delete", "device-profile-delete?id=<profile>", ""),
    Page("rules", "rules", ""),
    Page("rule", "rule?kind=alias", "button[value=preview]"),
    Page("quotas", "quotas?project=p", ""),
    Page("webhooks", "webhooks", ""),
    Page("drift", "drift", ""),
    Page("events", "events", ""),
    Page("not-found", "server?id=00000000-0000-4000-8000-000000000000", ""),
];

/// A picture of the docs: its name, the pictures of pages of which it shows the upper parts side by side, and its height.
struct Picture(&'static str, &'static [&'static str], u32);

const PICTURES: [Picture; 4] = [
    Picture("host", &["host-light"], 990),
    Picture("attach", &["attach-refused-light"], 370),
    Picture("server", &["server-pending-dark"], 860),
    Picture("phone", &["host-phone", "server-phone", "function-needed-phone"], 760),
];

/// The made-up host, as its administrator uses it by the API.
struct Scene {
    api: Api,
    token: String,
}

impl Scene {
    async fn send(&self, method: Method, path: &str, body: Value) -> Value {
        let headers = [("x-auth-token".to_owned(), self.token.clone())];
        let body = (!body.is_null()).then(|| body.to_string());
        let answer = self.api.send_with(method, path, headers, body).await;
        assert!((200..300).contains(&answer.status), "{path}: {} {}", answer.status, answer.body);
        answer.body
    }

    async fn get(&self, path: &str) -> Value {
        self.send(Method::GET, path, Value::Null).await
    }

    /// Returns the id of a server.
    async fn id(&self, name: &str) -> String {
        let found = self.get(&format!("/v2.1/servers?name={name}")).await;
        found["servers"][0]["id"].as_str().expect(name).to_owned()
    }

    async fn attach(&self, server: &str, aliases: &str) -> Value {
        let body = json!({ "pciAttachment": { "pci_passthrough:alias": aliases } });
        self.send(Method::POST, &attachments(&self.id(server).await), body).await
    }

    /// Makes an accelerator that holds a device, one that does not, a device profile and an accelerator request. Returns
    /// their ids.
    async fn accelerators(&self) -> [(&'static str, String); 4] {
        let (held, free) = ("00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002");
        for (id, name, of) in [(held, "encryption", "QAT"), (free, "inference", "GPU")] {
            let path = format!("/v1/accelerators/{id}");
            self.send(Method::POST, "/v1/accelerators", json!({ "name": name, "uuid": id })).await;
            self.send(Method::PUT, &path, json!({ "acc_specs": { "device_type": of } })).await;
        }
        let server = json!({ "instance_uuid": self.id("train1").await });
        self.send(Method::PUT, &format!("/v1/accelerators/{held}"), server).await;
        let profile = json!([{ "name": "crypto", "groups": [{ "resources:CUSTOM_QAT": "1" }] }]);
        let profile = self.send(Method::POST, "/accelerator/v2/device_profiles", profile).await;
        let request = json!({ "device_profile_name": "crypto" });
        let request = self.send(Method::POST, "/accelerator/v2/accelerator_requests", request).await;
        let id = |value: &Value| value["uuid"].as_str().unwrap().to_owned();
        [
            ("<held>", held.to_owned()),
            ("<free>", free.to_owned()),
            ("<profile>", id(&profile)),
            ("<request>", id(&request["arqs"][0])),
        ]
    }

    /// Sends a command to the made-up host.
    async fn sim(&self, words: &[&str]) {
        let host = self.get("/v2.1/os-hypervisors/demo").await;
        let dir = host["hypervisor"]["uri"].as_str().unwrap().strip_prefix("sim://").unwrap().to_owned();
        assert!(Command::new(binary()).args(["sim", &dir]).args(words).status().unwrap().success());
    }
}

/// Gives the servers devices: web1 has some, one of which somebody took out of its definition, and db1 does not release
/// its one. Returns the addresses of the pages.
async fn scene() -> (super::own::Running, Scene, Vec<String>) {
    let (running, api, token) = made_up_host();
    let scene = Scene { api, token };
    let headers = || [("x-auth-token".to_owned(), scene.token.clone())];
    let hosts = "/v2.1/os-hypervisors/demo/pci_devices";
    let is_read = async || scene.api.send_with(Method::GET, hosts, headers(), None).await.status == 200;
    scene.api.until("the host is read", is_read).await;
    scene.attach("train1", "gpu:1").await;
    let made = scene.attach("web1", "nic:2,qat:1").await;
    let devices = made["pci_devices"].as_array().unwrap();
    let kept = scene.attach("db1", "nvme:1").await;
    scene.sim(&["guest", "db1", "unplug=ignore"]).await;
    let id = kept["pci_devices"][0]["attachment_id"].as_str().unwrap();
    // With this version, the answer does not wait for the guest.
    let path = format!("/v2.1/servers/{}/os-pci_attachments/{id}", scene.id("db1").await);
    scene.send(Method::DELETE, &path, Value::Null).await;
    let names = scene.accelerators().await;
    scene.sim(&["unplug", "web1", devices[1]["address"].as_str().unwrap(), "config"]).await;
    let mut paths = Vec::new();
    for Page(_, path, _) in &PAGES {
        let mut path = path.replace("<attachment>", devices[0]["attachment_id"].as_str().unwrap());
        for name in ["web1", "db1", "build1"] {
            path = path.replace(&format!("<{name}>"), &scene.id(name).await);
        }
        for (name, id) in &names {
            path = path.replace(name, id);
        }
        paths.push(path);
    }
    (running, scene, paths)
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn no_page_has_a_barrier() {
    let (_running, scene, paths) = scene().await;
    let pictures = std::env::var_os("HOTSLOT_SCREENSHOTS").map(PathBuf::from);
    if let Some(folder) = &pictures {
        std::fs::create_dir_all(folder).unwrap();
    }
    let (axe, mut wrong) = (axe(), Vec::new());
    let narrow = Look { size: (920, 800), ..Look::WIDE };
    for (look, name) in
        [(Look::WIDE, "light"), (Look::DARK, "dark"), (narrow, "narrow"), (Look::PHONE, "phone")]
    {
        let person = Browser::open(scene.api.url(), look).await;
        person.go(&format!("/ui/sign-in#token={}", scene.token)).await;
        person.until("demo").await;
        for (Page(page, _, button), path) in PAGES.iter().zip(&paths) {
            person.go(&format!("/ui/{path}")).await;
            person.find("main h1").await;
            if !button.is_empty() {
                person.click(button).await;
                let shows = if button.starts_with("button") { ".verdict, .refusal" } else { "details[open]" };
                person.find(shows).await;
            }
            let barriers = person.barriers(&axe).await;
            wrong.extend(barriers.into_iter().map(|barrier| format!("{page}, {name}: {barrier}")));
            let over = person.script("return document.documentElement.scrollWidth - window.innerWidth").await;
            if over.as_i64() > Some(0) {
                wrong.push(format!("{page}, {name}: {over} pixels wider than the window"));
            }
            if let Some(folder) = &pictures {
                person.picture(&Path::new(folder).join(format!("{page}-{name}.png"))).await;
            }
        }
        person.close().await;
    }
    let docs = std::env::var_os("HOTSLOT_PICTURES").map(PathBuf::from);
    if let (Some(folder), Some(docs)) = (&pictures, &docs) {
        let person = Browser::open(scene.api.url(), Look::WIDE).await;
        for Picture(name, parts, height) in &PICTURES {
            let parts: Vec<_> = parts.iter().map(|part| folder.join(format!("{part}.png"))).collect();
            person.collage(&parts, *height, &docs.join(format!("{name}.png"))).await;
        }
        person.close().await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
