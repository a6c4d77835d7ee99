//! The door: who may connect, and what each caller may do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hotslot_tests::recorded::{record, rows};
use hotslot_tests::{Api, Hotslot, I440FX, Q35, SWITCH, attachments, binary, description, host};
use reqwest::Method;
use serde_json::{Value, json};

use crate::socket::at_socket;
use crate::users::{as_nobody, chmod, program_for_all};

/// Callers by the headers of a proxy: scope and roles.
const CALLERS: [(&str, &str); 14] = [
    ("nobody", ""),
    ("none", "x-project-id=p"),
    ("stranger", "x-project-id=p x-roles=netops"),
    ("unscoped admin", "x-roles=admin"),
    ("domain admin", "x-domain-id=d x-roles=admin"),
    ("reader", "x-project-id=p x-roles=reader"),
    ("member", "x-project-id=p x-roles=member"),
    ("manager", "x-project-id=p x-roles=manager"),
    ("admin", "x-project-id=p x-roles=admin"),
    ("other member", "x-project-id=q x-roles=member"),
    ("system reader", "openstack-system-scope=all x-roles=reader"),
    ("system admin", "openstack-system-scope=all x-roles=admin"),
    ("service", "x-project-id=p x-roles=service"),
    ("+service", "x-project-id=p x-roles=reader x-service-roles=service"),
];

fn headers(described: &str) -> Vec<(String, String)> {
    let pairs = described.split_whitespace().filter_map(|pair| pair.split_once('='));
    let mut headers: Vec<_> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    if !headers.is_empty() {
        headers.push(("x-user-id".to_owned(), "u".to_owned()));
    }
    headers
}

/// Gives a server each to the projects `p` and `q`, and attaches a device to them and to one of nobody. Returns their ids and
/// those of the attachments, by the names that requests have for them.
async fn owned_servers(service: &Hotslot) -> BTreeMap<String, String> {
    let send = async |method, path: &str, body: Value| {
        let admin = headers("openstack-system-scope=all x-roles=admin");
        service.send_with(method, path, admin, Some(body.to_string())).await.expect(200).body
    };
    let mut names = BTreeMap::new();
    for (server, project, alias) in
        [(Q35, Some("p"), "vf:1"), (I440FX, Some("q"), "e1000:1"), (SWITCH, None, "vf:1")]
    {
        let path = format!("/v2.1/servers/{server}");
        let owner = json!({ "pci_owner": { "project_id": project } });
        send(Method::PUT, &format!("{path}/pci_owner"), owner).await;
        let body = json!({ "pciAttachment": { "pci_passthrough:alias": alias } });
        let made = send(Method::POST, &format!("{path}/os-pci_attachments"), body).await;
        let project = project.unwrap_or("nobody");
        names.insert(format!("<server of {project}>"), server.to_owned());
        let id = made["pci_devices"][0]["attachment_id"].as_str().unwrap();
        names.insert(format!("<attachment of {project}>"), id.to_owned());
    }
    names
}

/// Returns the requests of `data/routes.json`. One that names a server is there for a server of each project, and of none.
/// What detaches something comes last.
fn requests() -> Vec<String> {
    let mut requests = BTreeSet::new();
    for row in rows("routes.json") {
        let request = row["request"].as_str().unwrap();
        if !request.contains("<q35>") {
            requests.insert(request.to_owned());
            continue;
        }
        for project in ["p", "q", "nobody"] {
            let request = request.replace("/v2/demo/", "/v2.1/");
            let request = request.replace("<attachment>", &format!("<attachment of {project}>"));
            requests.insert(request.replace("<q35>", &format!("<server of {project}>")));
        }
    }
    let (last, first): (Vec<_>, Vec<_>) = requests
        .into_iter()
        .partition(|request| request.starts_with("DELETE") && request.contains("<server"));
    first.into_iter().chain(last).collect()
}

/// The routes that need no identity.
const OPEN: [&str; 19] = [
    "/openapi.json",
    "/docs",
    "/",
    "/v2",
    "/v2/",
    "/v2.1",
    "/v2.1/",
    "/v3",
    "/v3/",
    "/healthz",
    "/readyz",
    "/accelerator/",
    "/accelerator/v2/",
    "/ui",
    "/ui/",
    "/ui/page.css",
    "/ui/page.js",
    "/ui/icon.svg",
    "/ui/sign-in",
];

/// Every route of the router, from `data/routes.json`, for every caller: `data/access.json` has the status of each.
/// `HOTSLOT_RECORD=1` records the current ones; read the difference before you commit it.
#[tokio::test]
async fn every_route_admits_the_callers_that_the_data_file_says() {
    let config = "[accelerators]\nchange = \"owner\"\n";
    let mut service = Hotslot::with(&host("small"), config).await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    for number in [1, 2] {
        let body = json!({ "name": format!("a{number}"), "uuid": format!("00000000-0000-4000-8000-00000000000{number}") });
        let admin = headers("x-project-id=p x-roles=admin");
        service.send_with(Method::POST, "/accelerators", admin, Some(body.to_string())).await.expect(201);
    }
    let names = owned_servers(&service).await;
    let (mut found, mut undescribed) = (Vec::new(), Vec::new());
    for request in requests() {
        let filled = names.iter().fold(request.clone(), |text, (name, id)| text.replace(name, id));
        let (method, path) = filled.split_once(' ').unwrap();
        let parts = path.split('<').map(|part| part.split_once('>').map_or(part, |(_, rest)| rest));
        let path = parts.collect::<Vec<_>>().join("00000000-0000-4000-8000-0000000000aa");
        let open = OPEN.contains(&path.as_str());
        let mut by_status: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (who, described) in CALLERS {
            let body = (method != "GET").then(|| "{}".to_owned());
            let method_name = method;
            let method: Method = method.parse().unwrap();
            let answer = service.send_with(method, &path, headers(described), body).await;
            let is_page = path.starts_with("/ui/");
            let expected = match who {
                // A browser is sent to the form to sign in.
                "nobody" if is_page && !open && answer.status == 303 => {
                    assert!(answer.headers["location"].to_str().unwrap().starts_with("sign-in"), "{request}");
                    None
                }
                "nobody" => Some(401),
                // These need no right.
                _ if ["/v2.1/caller", "/ui/account", "/ui/home", "/ui/sign-out", "/ui/nowhere"]
                    .contains(&path.as_str()) =>
                {
                    None
                }
                "none" | "stranger" | "unscoped admin" | "domain admin" => Some(403),
                _ => None,
            };
            match expected.filter(|_| !open) {
                Some(status) => {
                    assert_eq!(answer.status, status, "{request} has no rule? {who}: {}", answer.body)
                }
                // A form without the token of the page is refused after that.
                None if open && is_page => {
                    assert!([200, 303, 403, 415].contains(&answer.status), "{request}: {who}")
                }
                None if open => assert!([200, 303].contains(&answer.status), "{request}: {who}"),
                None => {}
            }
            // The description is that of the API.
            let described = if path.starts_with("/ui") {
                Vec::new()
            } else {
                description::problems(method_name, &path, answer.status, &answer.body)
            };
            undescribed.extend(described.into_iter().map(|problem| format!("{who}: {problem}")));
            assert_ne!(answer.status, 500, "{request}: {who}: {}", answer.body);
            by_status.entry(answer.status.to_string()).or_default().push(who);
        }
        let mut row = json!(by_status);
        row["request"] = request.into();
        found.push(row);
    }
    assert!(undescribed.is_empty(), "not as in docs/openapi.json:\n{}", undescribed.join("\n"));
    record("access.json", &found);
    let expected = rows("access.json");
    let wrong: Vec<_> = found.iter().filter(|row| !expected.contains(row)).map(ToString::to_string).collect();
    assert!(
        wrong.is_empty() && found.len() == expected.len(),
        "not as in access.json:\n{}",
        wrong.join("\n")
    );
}

/// Starts the service with this `[api]`, and returns what it says when it ends.
fn refused(api: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("hotslot.toml");
    fs::write(&config, format!("[api]\n{api}\n[database]\nurl = \"sqlite:///proc/none/hotslot.db\"\n"))
        .unwrap();
    let mut command = Command::new("timeout");
    let output = command.arg("10").arg(binary()).args(["serve", "--config"]).arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_port_without_identity_is_refused_at_start() {
    for api in [
        "listen = \"127.0.0.1:0\"",
        "listen = \"[::1]:0\"\nidentity = \"headers\"",
        "listen = \"127.0.0.1:0\"\ninsecure_tcp = false",
    ] {
        let output = refused(api);
        assert!(
            output.contains("nothing identifies them") && output.contains("insecure_tcp"),
            "{api}: {output}"
        );
    }
    for api in
        ["listen = \"0.0.0.0:0\"\ninsecure_tcp = true", "listen = \"192.0.2.1:80\"\ninsecure_tcp = true"]
    {
        assert!(refused(api).contains("other machines"), "{api}");
    }
    let output = refused(
        "listen = \"127.0.0.1:0\"\nidentity = \"headers\"\nproxy_secret_file = \"/proc/none/secret\"",
    );
    assert!(output.contains("proxy_secret_file"), "{output}");

    let service = Hotslot::on("small").await;
    assert!(service.log().contains("insecure_tcp"), "{}", service.log());
    let ready = service.get("/readyz").await.expect(200).body;
    assert!(ready["warnings"][0].as_str().unwrap().contains("insecure_tcp"), "{ready}");
    let doctor = Command::new(binary()).args(["doctor", "--url", service.url()]).output().unwrap();
    let output = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(output.contains("insecure_tcp"), "{output}");
}

#[tokio::test]
async fn headers_over_tcp_need_the_proxys_secret() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    let mut service = Hotslot::on("small").await;
    let file = service.database().with_file_name("secret");
    fs::write(&file, format!("{SECRET}\n")).unwrap();
    let api = format!("identity = \"headers\"\nproxy_secret_file = \"{}\"\n", file.display());
    service.reconfigure("insecure_tcp = true\n", &api);
    service.kill();
    service.start_again().await;
    let send = async |secrets: &[&str]| {
        let mut headers = headers("x-project-id=p x-roles=admin");
        let secrets =
            secrets.iter().map(|secret| ("x-hotslot-proxy-secret".to_owned(), (*secret).to_owned()));
        headers.extend(secrets);
        service.send_with(Method::GET, "/v2.1/os-pci", headers, None).await
    };
    send(&[SECRET]).await.expect(200);
    for secrets in [&[][..], &[""], &["0"], &[&SECRET[1..]], &[SECRET, SECRET], &[SECRET, "x"]] {
        let refused = send(secrets).await.expect(401);
        assert_eq!(refused.headers["www-authenticate"], "Bearer");
        assert!(!refused.message().contains(SECRET), "{}", refused.message());
    }
    assert!(!service.log().contains(SECRET), "the secret is in no log");
    let ready = service.get("/readyz").await.expect(200).body;
    assert_eq!(ready, json!({ "status": "ready" }), "without identity there are no details");
}

/// Runs the command line as the user nobody at a socket.
fn nobody_runs(dir: &Path, socket: &Path, command: &str) -> (Option<i32>, String) {
    let program = program_for_all(dir);
    let output = as_nobody(&format!("{} {command} --url unix:{}", program.display(), socket.display()));
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn local_users_have_the_rights_of_their_entry() {
    let open = "socket_mode = \"0666\"\n";
    let (service, socket, dir) = at_socket("022", open).await;
    assert!(service.log().contains("lets every user of this machine connect"), "{}", service.log());
    let (code, stderr) = nobody_runs(dir.path(), &socket, "pci list");
    assert_eq!(code, Some(0), "without entries, who may connect is the administrator: {stderr}");
    // Nobody becomes another user by headers.
    service
        .send_with(Method::GET, "/v2.1/os-pci", headers("x-project-id=p x-roles=reader"), None)
        .await
        .expect(200);
    drop(service);

    let other = format!("{open}[[identity.local]]\nuser = \"daemon\"\nrole = \"admin\"\n");
    let (service, socket, dir) = at_socket("022", &other).await;
    let (code, stderr) = nobody_runs(dir.path(), &socket, "pci list");
    assert_eq!(code, Some(8), "{stderr}");
    assert!(
        stderr.contains("nobody") && stderr.contains("65534") && stderr.contains("[[identity.local]]"),
        "{stderr}"
    );
    // Root is the administrator, and the events say who it was.
    service.attach(Q35, "vf:1").await.expect(200);
    let events = service.get("/v2.1/events?limit=1000").await.expect(200).body;
    let by_root = |event: &Value| event["who"].as_str().unwrap().ends_with(" of user root (uid 0)");
    assert!(events["events"].as_array().unwrap().iter().any(by_root), "{events:#}");
    drop(service);

    let reader = format!("{open}[[identity.local]]\ngroup = \"nogroup\"\nrole = \"reader\"\n");
    let (service, socket, dir) = at_socket("022", &reader).await;
    for (command, code) in
        [("pci list", 0), ("host list", 0), ("drift", 0), ("drift --repair", 8), ("server list", 8)]
    {
        let (found, stderr) = nobody_runs(dir.path(), &socket, command);
        assert_eq!(found, Some(code), "{command}: {stderr}");
    }
    let (code, stderr) = nobody_runs(dir.path(), &socket, &format!("attach {Q35} vf:1"));
    assert_eq!(code, Some(8), "{stderr}");
    assert!(stderr.contains("requires"), "{stderr}");
    service.expect_clean().await;
}

pub(crate) fn cli(arguments: &[&str], token: Option<&str>) -> Output {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .env_remove("HOTSLOT_CONFIG")
        .env_remove("HOTSLOT_URL")
        .env_remove("HOTSLOT_TOKEN");
    command.envs(token.map(|token| ("HOTSLOT_TOKEN", token)));
    command.output().unwrap()
}

/// A service with the tokens of an administrator, a reader, and a member of a project. Returns also the path of the file
/// of the tokens and of the configuration.
pub(crate) async fn with_tokens() -> (Hotslot, PathBuf, String, [String; 3]) {
    let mut service = Hotslot::on("small").await;
    let file = service.database().with_file_name("tokens");
    let config = service.database().with_file_name("hotslot.toml").display().to_string();
    let identity = format!("[identity]\ntokens = \"{}\"\n[database]\n", file.display());
    service.reconfigure("insecure_tcp = true\n", "");
    service.reconfigure("[database]\n", &identity);
    service.kill();
    service.start_again().await;
    let make = |arguments: &[&str]| {
        let output = cli(&[&["token", "create", "--config", &config], arguments].concat(), None);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let admin = make(&["ops", "--role", "admin"]);
    let reader = make(&["watch", "--role", "reader", "--expires", "90d"]);
    let member = make(&["app", "--role", "member", "--project", "p"]);
    (service, file, config, [admin, reader, member])
}

#[tokio::test]
async fn tokens_give_rights_until_they_are_revoked() {
    let (service, file, config, [admin, reader, member]) = with_tokens().await;
    let url = service.url().to_owned();
    let send = async |name: &str, value: &str, method: Method, path: &str| {
        let api = Api::at(url.clone());
        api.send_with(method, path, [(name.to_owned(), value.to_owned())], None).await
    };
    let bearer = |token: &str| format!("Bearer {token}");
    let path = "/v2.1/os-pci";
    for (name, value, status) in [
        ("authorization", bearer(&admin), 200),
        ("authorization", format!("bearer {reader}"), 200),
        ("x-auth-token", admin.clone(), 200),
        ("x-auth-token", member.clone(), 403),
        ("x-none", "x".to_owned(), 401),
        ("authorization", bearer(&admin[..60]), 401),
        ("authorization", bearer(""), 401),
        ("authorization", format!("Basic {admin}"), 401),
        ("x-auth-token", "hst_0".to_owned(), 401),
        ("x-auth-token", "0".repeat(8000), 401),
    ] {
        let answer = send(name, &value, Method::GET, path).await.expect(status);
        assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401, "{name}: {value}");
    }
    send("x-auth-token", &reader, Method::POST, "/drift").await.expect(403);
    send("x-auth-token", &member, Method::GET, "/accelerators").await.expect(200);
    send("x-auth-token", &member, Method::POST, &attachments(Q35).replace("/t/", "/p/")).await.expect(400);

    // A revoked token is refused soon, and a file that others may read admits nobody from then on.
    let done = cli(&["token", "revoke", "ops", "--config", &config], None);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let status = async |token: &str| send("x-auth-token", token, Method::GET, path).await.status;
    service.until("the token is refused", async || status(&admin).await == 401).await;
    assert_eq!(status(&reader).await, 200);
    assert_eq!(service.get("/readyz").await.expect(200).body["identity"], "ok");
    // A file with mistakes locks nobody out, and says so.
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, "garbage = [").unwrap();
    let refused = cli(&["config", "reload", "--url", &url], Some(&reader));
    assert_eq!(refused.status.code(), Some(8), "a reader may not: {refused:?}");
    let warned = async || {
        let ready = send("x-auth-token", &reader, Method::GET, "/readyz").await.expect(200).body;
        ready["warnings"].to_string().contains("the tokens that were read before stay valid")
    };
    service.until("the mistake is known", warned).await;
    assert_eq!(status(&reader).await, 200);
    assert_eq!(status(&admin).await, 401, "it stays revoked");
    std::fs::write(&file, &good).unwrap();
    service.until("the file is used again", async || !warned().await).await;
    chmod(&file, 0o644);
    service.until("no token is accepted", async || status(&reader).await == 503).await;
    let ready = service.get("/readyz").await.expect(503).body;
    assert_eq!(ready["status"], "not ready: identity");
    assert!(
        ready["identity"].as_str().unwrap().starts_with("the file of the tokens cannot be used;"),
        "{ready}"
    );
    chmod(&file, 0o600);
    service.until("it is accepted again", async || status(&reader).await == 200).await;
    for secret in [&admin, &reader, &member] {
        assert!(!service.log().contains(&secret[..]), "no token is in the log");
    }
}

#[tokio::test]
async fn the_command_line_sends_its_token_and_has_exit_codes_for_refusals() {
    let (service, _, config, [admin, reader, _]) = with_tokens().await;
    let url = service.url().to_owned();
    for (token, arguments, code) in [
        (None, &["pci", "list"][..], 7),
        (Some("hst_0"), &["pci", "list"], 7),
        (Some(reader.as_str()), &["pci", "list"], 0),
        (Some(reader.as_str()), &["drift", "--repair"], 8),
        (Some(admin.as_str()), &["drift", "--repair"], 0),
    ] {
        let output = cli(&[arguments, &["--url", &url]].concat(), token);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    }
    let listed = cli(&["token", "list", "--config", &config], None);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("ops") && listed.contains("watch") && !listed.contains("hst_"), "{listed}");
    let twice = cli(&["token", "create", "ops", "--role", "admin", "--config", &config], None);
    assert_eq!(twice.status.code(), Some(4), "{twice:?}");
}
