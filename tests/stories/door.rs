//! Who gets in: which files others can read, who may connect, what web pages may do, and how long a connection that does
//! nothing is kept.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hotslot_tests::{Api, Hotslot, Q35, attachments, binary, host};
use serde_json::{Value, json};

/// A user who is nobody in particular.
const NOBODY: &str = "65534";

/// Runs a line of a shell as another user.
fn as_nobody(line: &str) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "sh", "-c", line]);
    command.output().expect("setpriv")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

/// The modes of a database's directory and of the files in it, by name.
fn modes(database: &Path) -> BTreeMap<String, u32> {
    let name = database.file_name().unwrap().to_str().unwrap();
    let directory = database.parent().unwrap();
    let mut all = BTreeMap::from([(".".to_owned(), mode(directory))]);
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.starts_with(name) {
            all.insert(file, mode(&entry.path()));
        }
    }
    all
}

#[tokio::test]
async fn others_can_neither_read_nor_lock_the_database() {
    let mut service = Hotslot::on("small").await;
    service.attach(Q35, "vf:1").await.expect(200);
    let database = service.database();
    // As an earlier version left it, under a usual umask.
    service.kill();
    chmod(database.parent().unwrap(), 0o755);
    for file in ["", "-wal", "-shm", ".lock"] {
        let file = format!("{}{file}", database.display());
        fs::OpenOptions::new().append(true).create(true).open(&file).unwrap();
        chmod(Path::new(&file), 0o644);
    }
    let log = service.log_length();
    service.start_again_after("umask 0").await;
    // The directory holds the configuration and the simulated host too, so it stays.
    let found = modes(&database);
    assert!(found.keys().any(|name| name.ends_with("-shm")), "{found:?}");
    for (name, mode) in &found {
        assert_eq!(*mode, if name == "." { 0o755 } else { 0o600 }, "{name}: {found:?}");
    }
    let log = service.log_from(log);
    assert!(log.contains("hotslot.db was open to other users (0644)"), "{log}");
    assert!(log.contains("which is open to other users (0755)"), "{log}");

    // Not by the directory alone.
    chmod(database.parent().unwrap(), 0o755);
    let file = database.display();
    for line in [
        format!("cat {file}"),
        format!("cat {file}-wal"),
        format!("flock -n {file}.lock true"),
        format!("flock -n -s {file}.lock true"),
        format!("exec 3<{file}-shm"),
    ] {
        let said = as_nobody(&line);
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && error.contains("ermission denied"), "{line}: {said:?}");
    }
    chmod(database.parent().unwrap(), 0o700);
    service.attach(Q35, "vf:1").await.expect(200);
}

#[tokio::test]
async fn a_new_database_and_its_backups_are_for_hotslots_user_whatever_the_umask() {
    let mut service = Hotslot::on("small").await;
    service.kill();
    let dir = tempfile::tempdir().unwrap();
    chmod(dir.path(), 0o755);
    let database = dir.path().join("new/hotslot.db");
    service.reconfigure(&service.database().display().to_string(), &database.display().to_string());
    service.start_again_after("umask 0").await;
    let found = modes(&database);
    assert!(found.len() >= 4, "{found:?}");
    assert!(found.iter().all(|(name, mode)| *mode == if name == "." { 0o700 } else { 0o600 }), "{found:?}");

    let config = dir.path().join("hotslot.toml");
    fs::write(&config, format!("[database]\nurl = \"sqlite://{}\"\n", database.display())).unwrap();
    let db = |verb: &str, file: &Path| {
        let line = format!(
            "umask 0; exec {} db {verb} {} --config {}",
            binary().display(),
            file.display(),
            config.display()
        );
        let said = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert!(said.status.success(), "{said:?}");
    };
    let backup = dir.path().join("backup.db");
    db("backup", &backup);
    assert_eq!((mode(&backup), mode(dir.path())), (0o600, 0o755), "a backup's directory is whoever's it is");
    service.kill();
    chmod(&backup, 0o644);
    db("restore", &backup);
    let found = modes(&database);
    assert!(found.iter().all(|(name, mode)| *mode == if name == "." { 0o700 } else { 0o600 }), "{found:?}");
    assert!(found.contains_key("hotslot.db.before-restore"), "{found:?}");
    service.start_again().await;
}

#[tokio::test]
async fn a_directory_that_others_use_too_is_left_as_it_is() {
    let mut service = Hotslot::on("small").await;
    service.kill();
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    chmod(dir.path(), 0o755);
    chmod(&shared, 0o1777);
    let database = shared.join("hotslot.db");
    service.reconfigure(&service.database().display().to_string(), &database.display().to_string());
    service.start_again_after("umask 0").await;
    let found = modes(&database);
    assert!(found.iter().all(|(name, mode)| *mode == if name == "." { 0o1777 } else { 0o600 }), "{found:?}");
    assert!(service.log().contains("give it a directory of its own"), "{}", service.log());
}

#[tokio::test]
async fn a_database_of_another_user_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    chmod(dir.path(), 0o1777);
    let config = dir.path().join("config.toml");
    for file in ["hotslot.db", "hotslot.db.lock", "hotslot.db-wal"] {
        let made = dir.path().join(file);
        fs::write(&made, "kept").unwrap();
        std::os::unix::fs::chown(&made, Some(65534), None).unwrap();
        chmod(&made, 0o666);
        let text = format!(
            "[api]\nlisten = \"127.0.0.1:0\"\n[database]\nurl = \"sqlite://{}/hotslot.db\"\n",
            dir.path().display()
        );
        fs::write(&config, text).unwrap();
        let said = Command::new(binary()).arg("serve").arg("--config").arg(&config).output().unwrap();
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && error.contains("belongs to the user 65534"), "{error}");
        assert!(error.contains(&format!("chown 0 {}", made.display())), "{error}");
        assert_eq!(fs::read_to_string(&made).unwrap(), "kept");
        fs::remove_file(&made).unwrap();
    }
}

/// What `hotslot serve` says with a configuration of this database, when it does not start.
fn refused_to_serve(dir: &Path, url: &str) -> String {
    let config = dir.join("refused.toml");
    fs::write(&config, format!("[api]\nlisten = \"127.0.0.1:0\"\n[database]\nurl = \"{url}\"\n")).unwrap();
    let mut command = Command::new("timeout");
    let said = command.arg("10").arg(binary()).args(["serve", "--config"]).arg(&config).output().unwrap();
    assert!(said.status.code() == Some(1), "{url}: {said:?}");
    String::from_utf8_lossy(&said.stderr).into_owned()
}

#[tokio::test]
async fn the_remedy_for_a_database_of_another_user_is_the_only_one_and_works() {
    let dir = tempfile::tempdir().unwrap();
    chmod(dir.path(), 0o1777);
    let at = dir.path().join("its place");
    fs::create_dir(&at).unwrap();
    for file in ["hotslot.db", "hotslot.db.lock", "hotslot.db-wal"] {
        fs::write(at.join(file), "no database").unwrap();
        std::os::unix::fs::chown(at.join(file), Some(65534), None).unwrap();
    }
    let url = format!("sqlite://{}/hotslot.db", at.display());
    let error = refused_to_serve(dir.path(), &url);
    assert!(error.contains("belongs to the user 65534"), "{error}");
    assert!(!error.contains("check that its directory exists"), "{error}");
    let remedy = error.split_once("run: ").unwrap().1.split_once("; ").unwrap().0.replace('\n', " ");
    let done = Command::new("sh").args(["-c", &remedy]).output().unwrap();
    assert!(done.status.success(), "{remedy}: {done:?}");
    let error = refused_to_serve(dir.path(), &url);
    assert!(error.contains("is not a SQLite database"), "the owners are right now: {error}");
}

#[tokio::test]
async fn two_names_of_one_database_are_one_database() {
    let service = Hotslot::on("small").await;
    let database = service.database();
    let dir = tempfile::tempdir().unwrap();
    let (link, far) = (dir.path().join("link.db"), dir.path().join("far.db"));
    std::os::unix::fs::symlink(&database, &far).unwrap();
    std::os::unix::fs::symlink("far.db", &link).unwrap();
    fs::create_dir(database.with_file_name("sub")).unwrap();
    let above = database.parent().unwrap().display();
    for url in [
        format!("sqlite://{}", database.display()),
        format!("sqlite://{}", link.display()),
        format!("sqlite://{above}/%68otslot.db"),
        format!("sqlite://{above}/sub/../hotslot.db"),
    ] {
        let error = refused_to_serve(dir.path(), &url);
        assert!(error.contains("another process has its lock"), "{url}: {error}");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".lock")), "{left:?}");
}

#[tokio::test]
async fn a_database_behind_a_link_is_backed_up_and_restored_where_it_is() {
    let mut service = Hotslot::on("small").await;
    service.kill();
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("a place/real.db");
    let link = dir.path().join("link.db");
    fs::create_dir(real.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("a place/real.db", &link).unwrap();
    let own = service.database().display().to_string();
    // The link leads to nothing yet.
    service.reconfigure(&own, &link.display().to_string().replace("link", "%6Cink"));
    service.start_again_after("umask 0").await;
    let found = modes(&real);
    assert!(found.keys().any(|name| name == "real.db.lock"), "{found:?}");
    assert!(found.iter().all(|(name, mode)| *mode == if name == "." { 0o700 } else { 0o600 }), "{found:?}");
    let config = service.host_dir().with_file_name("hotslot.toml");
    let backup = dir.path().join("backup");
    let db = |verb: &str| {
        let mut command = Command::new(binary());
        command.args(["db", verb]).arg(&backup).arg("--config").arg(&config).output().unwrap()
    };
    assert!(db("backup").status.success());
    let refused = db("restore");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("stop it first"), "{refused:?}");
    service.kill();
    let restored = db("restore");
    assert!(restored.status.success(), "{restored:?}");
    assert!(link.is_symlink() && real.is_file() && !real.is_symlink());
    assert!(real.with_file_name("real.db.before-restore").is_file());
    service.start_again().await;
}

#[test]
fn a_configuration_that_is_named_is_read_or_its_mistake_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("broken.toml");
    fs::write(&config, "[api]\nlisten = \"unix:api.sock\"\n").unwrap();
    let run = |arguments: &str| {
        let mut command = Command::new(binary());
        command.args(arguments.split(' ')).env_remove("HOTSLOT_URL").env("HOTSLOT_CONFIG", &config);
        let said = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (said.status.code(), text(&said.stdout), text(&said.stderr))
    };
    let name = config.display().to_string();
    let (code, _, error) = run("host list");
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(&name) && error.contains("names no absolute path"), "{error}");
    assert!(error.contains("hotslot config check"), "{error}");
    let (code, out, error) = run(&format!("config check {name}"));
    assert!(code == Some(1) && out.contains("names no absolute path"), "{out}{error}");
    let (_, out, error) = run("doctor -o json");
    let findings: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}"));
    let service = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "service").unwrap();
    assert!(service["says"].as_str().unwrap().contains(&name), "{service}");
    // Where it is said by --url, the configuration is not asked.
    let (code, _, error) = run("host list --url http://127.0.0.1:1");
    assert_eq!(code, Some(5), "{error}");
    fs::remove_file(&config).unwrap();
    let (code, _, error) = run("host list");
    assert!(code == Some(1) && error.contains(&name) && error.contains("No such file"), "{error}");
}

#[test]
fn what_config_check_accepts_serve_does_not_refuse_for_its_url() {
    let dir = tempfile::tempdir().unwrap();
    for url in [
        "postgres://hotslot:s3cret@db:port/hotslot",
        "postgres://hotslot:s3cret@db/hotslot?sslmode=s3cret",
        "postgres://hotslot:s3cret@db/hotslot?port=s3cret",
        "postgres://hotslot:s3cret@/hotslot?hostaddr=s3cret",
        "postgres://hotslot:s3cret@[db/hotslot",
        "sqlite:///tmp/x.db?mode=s3cret",
        "sqlite:///tmp/x.db?s3cret=1",
        "sqlite://",
        "sqlite://:memory:",
    ] {
        let error = refused_to_serve(dir.path(), url);
        assert!(error.contains("[database] url: ") && !error.contains("s3cret"), "{url}: {error}");
        let config = dir.path().join("refused.toml");
        let said = Command::new(binary()).args(["config", "check"]).arg(&config).output().unwrap();
        let told = String::from_utf8_lossy(&said.stdout).into_owned();
        assert_eq!(said.status.code(), Some(1), "{url}: {told}");
        assert!(told.contains("[database] url: ") && !told.contains("s3cret"), "{url}: {told}");
    }
}

#[tokio::test]
async fn names_have_no_characters_that_nobody_sees() {
    let service = Hotslot::on("small").await;
    for hidden in ['\u{200b}', '\u{ad}', '\u{202e}', '\u{2028}', '\u{feff}', '\u{e0041}', '\u{7}'] {
        let name = format!("a{hidden}1");
        for (path, body) in [
            ("/accelerators", json!({ "name": name })),
            (
                "/v2.1/os-pci-config/alias",
                json!({ "alias": { "name": name, "vendor_id": "8086", "product_id": "10ca" } }),
            ),
            ("/v2.1/os-pci-config/whitelist", json!({ "whitelist": { "vendor_id": "8086", "rack": name } })),
            (
                "/v2.1/os-pci-config/whitelist",
                json!({ "whitelist": { "vendor_id": "8086", (name.clone()): "r1" } }),
            ),
            (
                "/v2.1/os-pci-config/extra_info",
                json!({ "extra_info": { "match": { "vendor_id": "8086" }, "values": { "switch": name } } }),
            ),
            (
                "/accelerator/v2/device_profiles",
                json!([{ "name": "p1", "description": name, "groups": [{ "resources:PGPU": "1" }] }]),
            ),
        ] {
            let answer = service.post(path, body.clone()).await;
            assert_eq!(answer.status, 400, "{path} {body}: {}", answer.body);
            let said = answer.body.to_string();
            assert!(said.contains(&format!("U+{:04X}", u32::from(hidden))), "{path} {body}: {said}");
            assert!(!said.contains(hidden), "{said}");
        }
    }
}

/// A request of a page in a browser: its headers.
fn page(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn a_web_page_of_another_origin_attaches_nothing() {
    let service = Hotslot::on("small").await;
    let port = service.url().rsplit(':').next().unwrap().to_owned();
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } }).to_string();
    let (own, evil) = (format!("127.0.0.1:{port}"), format!("evil.example:{port}"));
    let (same, rebound) = (format!("http://{own}"), format!("http://{evil}"));
    for (headers, status) in [
        // fetch() of a page, without a preflight.
        (
            page(&[
                ("origin", "http://evil.example"),
                ("sec-fetch-site", "cross-site"),
                ("content-type", "text/plain"),
            ]),
            403,
        ),
        // By another port of this machine, and by a sandboxed frame.
        (page(&[("origin", "http://localhost:3000"), ("content-type", "application/json")]), 403),
        (page(&[("origin", "null"), ("content-type", "application/json")]), 403),
        (page(&[("sec-fetch-site", "same-site"), ("content-type", "application/json")]), 403),
        // Its name was made to lead here: to the browser it is of the same origin.
        (page(&[("host", &evil), ("origin", &rebound), ("sec-fetch-site", "same-origin")]), 421),
        (page(&[("host", &evil)]), 421),
        // No page, but what it could send without a preflight.
        (page(&[("content-type", "text/plain")]), 415),
        (page(&[("content-type", "application/x-www-form-urlencoded")]), 415),
    ] {
        let (post, path) = (reqwest::Method::POST, attachments(Q35));
        let answer = service.send_with(post, &path, headers.clone(), Some(body.clone())).await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.body);
        assert!(!answer.message().is_empty());
        if status == 421 {
            assert!(answer.message().contains("[api]"), "{}", answer.message());
        }
    }
    // What a page may look at, and what goes before a request with a body that is JSON.
    let headers = page(&[("origin", "http://evil.example"), ("access-control-request-method", "POST")]);
    let preflight =
        service.send_with(reqwest::Method::OPTIONS, &attachments(Q35), headers, None).await.expect(403);
    assert!(!preflight.headers.contains_key("access-control-allow-origin"));
    let headers = page(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]);
    service.send_with(reqwest::Method::GET, "/v2/t/servers", headers, None).await.expect(403);
    let cyborg = service.send_with(
        reqwest::Method::POST,
        "/accelerator/v2/device_profiles",
        page(&[("origin", "http://evil.example")]),
        Some("[]".into()),
    );
    let told = cyborg.await.expect(403).fault_string();
    assert!(told.contains("web page"), "{told}");
    service.expect_clean().await;

    // Programs, and the service's own origin.
    let headers =
        page(&[("origin", &same), ("sec-fetch-site", "same-origin"), ("content-type", "application/json")]);
    let answer =
        service.send_with(reqwest::Method::POST, &attachments(Q35), headers, Some(body)).await.expect(200);
    for (name, value) in [("cache-control", "no-store"), ("x-content-type-options", "nosniff")] {
        assert_eq!(answer.headers[name], value);
        assert_eq!(service.get("/v2/t/nowhere").await.expect(404).headers[name], value);
    }
}

/// What an evil page does: it asks for devices in each way that needs nobody's leave, and shows when all is over.
const PAGE: &str = r#"<!doctype html><title>evil</title><body><iframe name="frame"></iframe>
<form method="post" target="frame" enctype="text/plain" action="URL"><input name='BODY' value=''></form><script>
const send = (more) => fetch("URL", { method: "POST", ...more }).then(() => "sent", (error) => "kept back: " + error);
document.forms[0].submit();
Promise.all([
  send({ mode: "no-cors", body: new Blob(['BODY']) }),
  send({ mode: "no-cors", body: 'BODY' }),
  send({ mode: "cors", headers: { "content-type": "application/json" }, body: 'BODY' }),
]).then((told) => { document.title = "over"; document.body.append(told.join("; ")); });
</script>"#;

/// Serves a page to whoever asks, at a port of its own.
fn serve_page(page: String) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n", page.len());
            let _ = stream.write_all(format!("{head}connection: close\r\n\r\n{page}").as_bytes());
        }
    });
    address
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium; cargo test -p hotslot-tests --test stories door:: -- --ignored"]
async fn a_browser_on_the_host_attaches_nothing_for_a_web_page() {
    let service = Hotslot::on("small").await;
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } }).to_string();
    let page = PAGE.replace("URL", &format!("{}{}", service.url(), attachments(Q35))).replace("BODY", &body);
    let evil = format!("http://evil.example:{}", serve_page(page).port());
    let profile = tempfile::tempdir().unwrap();
    let browse = |url: &str| {
        let mut browser = Command::new("chromium");
        browser.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=10000",
            "--dump-dom",
        ]);
        browser.arg("--host-resolver-rules=MAP evil.example 127.0.0.1");
        browser.arg(format!("--user-data-dir={}", profile.path().display())).arg(url);
        String::from_utf8_lossy(&browser.output().expect("chromium").stdout).into_owned()
    };
    let seen = browse(&evil);
    assert!(seen.contains("<title>over</title>"), "{seen}");
    let log = service.log();
    let asked = log.matches(&format!("path=\"{}\"", attachments(Q35))).count();
    assert!(asked >= 3 && log.contains("status=403"), "{seen}\n{log}");
    service.expect_clean().await;

    // The name was made to lead here: the page is of the service's own origin then.
    let rebound = service.url().replace("127.0.0.1", "evil.example");
    let seen = browse(&format!("{rebound}/v2/t/servers"));
    assert!(seen.contains("misdirectedRequest") && !seen.contains(Q35), "{seen}");
}

#[tokio::test]
async fn a_body_says_that_it_is_json_and_a_name_can_be_configured() {
    let service = Hotslot::with(&host("small"), "").await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for method in
        [reqwest::Method::POST, reqwest::Method::PUT, reqwest::Method::DELETE, reqwest::Method::PATCH]
    {
        let url = format!("{}/accelerator/v2/accelerator_requests", service.url());
        let status = client.request(method.clone(), url).body("{}").send().await.unwrap().status();
        assert_eq!(status, 415, "{method}");
    }
    // None is no body.
    let url = format!("{}/v2.1/drift", service.url());
    assert_eq!(client.post(url).send().await.unwrap().status(), 200);

    let mut service = service;
    let named = page(&[("host", "hotslot.example")]);
    service.send_with(reqwest::Method::GET, "/healthz", named.clone(), None).await.expect(421);
    service.kill();
    service.reconfigure("[api]\n", "[api]\nhosts = [\"hotslot.example\"]\n");
    service.start_again().await;
    service.send_with(reqwest::Method::GET, "/healthz", named, None).await.expect(200);
}

/// The same service at a unix socket of a directory that is not there yet, started under this umask.
async fn at_socket(umask: &str, config: &str) -> (Hotslot, std::path::PathBuf, tempfile::TempDir) {
    let mut service = Hotslot::on("small").await;
    service.kill();
    let dir = tempfile::tempdir().unwrap();
    chmod(dir.path(), 0o755);
    let socket = dir.path().join("run/hotslot/api.sock");
    let listen = format!("listen = \"unix:{}\"\n{config}", socket.display());
    service.reconfigure("listen = \"127.0.0.1:0\"\n", &listen);
    service.start_again_after(&format!("umask {umask}")).await;
    (service, socket, dir)
}

#[tokio::test]
async fn the_socket_has_the_mode_and_group_that_are_configured_whatever_the_umask() {
    for umask in ["0", "077", "0777"] {
        let (service, socket, _dir) = at_socket(umask, "socket_group = \"1\"\n").await;
        let found = fs::metadata(&socket).unwrap();
        assert_eq!((found.mode() & 0o7777, found.gid()), (0o660, 1), "umask {umask}");
        assert_eq!(mode(socket.parent().unwrap()), 0o755);
        service.attach(Q35, "vf:1").await.expect(200);
    }
    // Who is not in the group is told what to do. The program is where everybody may run it.
    let (mut service, socket, dir) = at_socket("022", "socket_group = \"1\"\n").await;
    let program = dir.path().join("hotslot");
    fs::copy(binary(), &program).unwrap();
    let said = as_nobody(&format!("{} host list --url unix:{}", program.display(), socket.display()));
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(5), "{error}");
    assert!(error.contains("usermod -aG daemon"), "{error}");
    let run = socket.parent().unwrap();
    chmod(run, 0o700);
    let said = as_nobody(&format!("{} host list --url unix:{}", program.display(), socket.display()));
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(error.contains(&format!("{} does not let this user in", run.display())), "{error}");
    service.kill();
    let log = service.log_length();
    service.start_again().await;
    let log = service.log_from(log);
    assert!(log.contains(&format!("cannot get through {}", run.display())), "{log}");

    let (service, socket, _dir) = at_socket("022", "socket_mode = \"0666\"\n").await;
    assert_eq!(mode(&socket), 0o666);
    assert!(service.log().contains("lets every user of this machine connect"), "{}", service.log());
}

#[tokio::test]
async fn a_proxy_in_front_of_the_socket_does_not_let_web_pages_in() {
    let (service, _, _dir) = at_socket("022", "").await;
    for (headers, status) in [
        (page(&[]), 200),
        (page(&[("host", "anything.example")]), 200),
        (page(&[("host", "localhost"), ("origin", "http://evil.example")]), 403),
        (page(&[("host", "evil.example"), ("origin", "http://evil.example")]), 421),
        (page(&[("host", "evil.example"), ("sec-fetch-site", "same-origin")]), 421),
    ] {
        let answer = service.send_with(reqwest::Method::GET, "/v2/t/servers", headers.clone(), None).await;
        assert_eq!(answer.status, status, "{headers:?}");
    }
}

#[tokio::test]
async fn the_command_line_finds_the_service_by_its_configuration() {
    // A service of this machine's own is found before the configuration is asked.
    if std::os::unix::net::UnixStream::connect("/run/hotslot/api.sock").is_ok() {
        println!("a service answers at the default socket: not tested");
        return;
    }
    let (service, socket, dir) = at_socket("022", "").await;
    let config = dir.path().join("found.toml");
    fs::write(&config, format!("[api]\nlisten = \"unix:{}\"\n", socket.display())).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(arguments).env_remove("HOTSLOT_URL").env("HOTSLOT_CONFIG", &config);
        command.output().unwrap()
    };
    let said = run(&["host", "list"]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("node1"), "{said:?}");
    drop(service);
    let said = run(&["host", "list"]);
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(5), "{error}");
    assert!(error.contains("is `hotslot serve` running?"), "{error}");
}

#[tokio::test]
async fn a_tcp_port_is_warned_of() {
    let service = Hotslot::on("small").await;
    assert!(service.log().contains("listen is a TCP port"), "{}", service.log());
    let said =
        Command::new(binary()).args(["doctor", "--url", service.url(), "-o", "json"]).output().unwrap();
    let findings: Value = serde_json::from_slice(&said.stdout).unwrap();
    let finding = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "service").unwrap();
    assert_eq!(finding["level"], "warn");
    assert!(finding["fix"].as_str().unwrap().contains("unix:/run/hotslot/api.sock"), "{finding}");
}

const GET: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn address(service: &Api) -> SocketAddr {
    service.url().trim_start_matches("http://").parse().expect("an address")
}

fn connect(service: &Api) -> TcpStream {
    let stream = TcpStream::connect(address(service)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    stream
}

/// What comes next; empty when the service has closed the connection.
fn next(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 4096];
    let length = match stream.read(&mut bytes) {
        Ok(length) => length,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
        Err(error) => panic!("{error}"),
    };
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// A connection that was used once, and is kept.
fn kept(service: &Api) -> TcpStream {
    let mut stream = connect(service);
    stream.write_all(GET).expect("a request");
    assert!(next(&mut stream).starts_with("HTTP/1.1 200"));
    stream
}

#[tokio::test]
async fn a_connection_that_does_nothing_is_closed() {
    let limits = "listen = \"127.0.0.1:0\"\nheader_timeout = 1\nbody_timeout = 2\nidle_timeout = 4\n";
    let mut service = Hotslot::on("small").await;
    service.kill();
    service.reconfigure("listen = \"127.0.0.1:0\"\n", limits);
    service.start_again().await;
    let start = Instant::now();
    let mut silent = connect(&service);
    let mut idle = kept(&service);
    let mut header = connect(&service);
    header.write_all(b"GET /healthz HTTP/1.1\r\nHost: local").unwrap();
    let mut body = connect(&service);
    let post = b"POST /v2.1/drift HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    body.write_all(post).unwrap();
    assert_eq!(next(&mut header), "");
    assert!((1..4).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    let told = next(&mut body);
    assert!(told.starts_with("HTTP/1.1 408"), "{told}");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert_eq!((next(&mut silent), next(&mut idle)), (String::new(), String::new()));
    assert!((3..12).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

/// A client that follows the events, and what it was answered first.
fn follow(service: &Api) -> (TcpStream, String) {
    let mut stream = connect(service);
    stream.write_all(b"GET /v2.1/events?follow&last=0 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let answer = next(&mut stream);
    (stream, answer)
}

#[tokio::test]
async fn followers_and_connections_are_limited_and_an_idle_one_makes_room() {
    let mut service = Hotslot::on("small").await;
    service.kill();
    service.reconfigure(
        "listen = \"127.0.0.1:0\"\n",
        "listen = \"127.0.0.1:0\"\nconnections = 8\nfollowers = 4\n",
    );
    service.start_again().await;
    let mut following = Vec::new();
    for _ in 0..4 {
        let (stream, answer) = follow(&service);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        following.push(stream);
    }
    let (_, answer) = follow(&service);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("retry-after: 5") && answer.contains("[api] followers"), "{answer}");

    // Idle ones give their places to new ones, for ever.
    for _ in 0..12 {
        following.push(kept(&service));
    }
    // Requests that are under way do not.
    let mut busy = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(&service);
        let post = b"POST /v2.1/drift HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n";
        stream.write_all(post).unwrap();
        busy.push(stream);
        std::thread::sleep(Duration::from_millis(400));
    }
    let mut refused = connect(&service);
    refused.write_all(GET).unwrap();
    let answer = next(&mut refused);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("retry-after: 5") && answer.contains("[api] connections"), "{answer}");
    drop(busy);
    service
        .until("there is room again", async || {
            service.try_get("/healthz").await.is_some_and(|it| it.status == 200)
        })
        .await;
}

#[tokio::test]
async fn a_new_client_is_served_when_idle_ones_have_taken_every_descriptor() {
    let service = Hotslot::on("small").await;
    let open = fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().count();
    let limit = format!("--nofile={0}:{0}", open + 30);
    let limited =
        Command::new("prlimit").args(["--pid", &service.pid().to_string(), &limit]).status().unwrap();
    assert!(limited.success());
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(connect(&service));
    }
    let start = Instant::now();
    kept(&service);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // The client that the test has kept notices here that it was closed, too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    service.attach(Q35, "vf:1").await.expect(200);
    assert!(service.log().contains("no connection can be accepted"), "{}", service.log());
}

#[tokio::test]
async fn all_followers_hear_everything_once() {
    let service = Hotslot::on("small").await;
    let mut all = Vec::new();
    for _ in 0..50 {
        all.push(follow(&service));
    }
    for _ in 0..3 {
        let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
        service.delete(&hotslot_tests::path(&vf)).await.expect(200);
    }
    let events = service.get("/v2.1/events?kind=attachment.state").await.expect(200).body["events"].clone();
    let events: Vec<_> = events.as_array().unwrap().iter().map(|event| event["id"].to_string()).collect();
    for (mut stream, mut text) in all {
        while !events.last().is_some_and(|last| text.contains(&format!("id: {last}\n"))) {
            let more = next(&mut stream);
            assert!(!more.is_empty(), "{text}");
            text += &more;
        }
        let heard: Vec<_> = text.split("id: ").skip(1).map(|rest| rest.split('\n').next().unwrap()).collect();
        for id in &events {
            assert_eq!(heard.iter().filter(|heard| **heard == id.as_str()).count(), 1, "{id}: {text}");
        }
    }
}

#[tokio::test]
async fn a_service_that_stops_leaves_the_socket_of_its_successor() {
    let (mut service, socket, dir) = at_socket("022", "").await;
    // A request that is under way keeps the service for its grace.
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    stream
        .write_all(
            format!(
                "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: 100\r\n\r\n{{",
                attachments(Q35)
            )
            .as_bytes(),
        )
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    service.signal("TERM");
    let mut waited = 0;
    while std::os::unix::net::UnixStream::connect(&socket).is_ok() && waited < 50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        waited += 1;
    }
    assert!(!socket.exists(), "it is removed when stopping begins");
    let successor = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(!service.has_ended(), "the grace period is not over");
    assert!(service.ended(Duration::from_secs(30)).await);
    assert!(socket.exists(), "the successor's socket is left alone");

    // Nor does a service take it: it says that somebody answers there, or that the file is no socket.
    let start = || {
        let config = dir.path().join("second.toml");
        let text = format!(
            "[api]\nlisten = \"unix:{}\"\n[database]\nurl = \"sqlite:///proc/none/hotslot.db\"\n",
            socket.display()
        );
        fs::write(&config, text).unwrap();
        let said = Command::new(binary()).arg("serve").arg("--config").arg(&config).output().unwrap();
        String::from_utf8_lossy(&said.stderr).into_owned()
    };
    let said = start();
    assert!(said.contains("another service answers there"), "{said}");
    assert!(socket.exists());
    drop(successor);
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "").unwrap();
    let said = start();
    assert!(said.contains("a file that is no socket is there"), "{said}");
    // A start that fails later takes its socket with it.
    fs::remove_file(&socket).unwrap();
    let said = start();
    assert!(said.contains("/proc/none"), "{said}");
    assert!(!socket.exists(), "{said}");
}
