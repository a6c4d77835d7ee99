//! TLS of connections that hotslot opens: to webhooks, to Keystone, to PostgreSQL, and of the command line with tokens and
//! passwords.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hotslot_service::tls;
use hotslot_tests::{Hotslot, Q35, binary, host, postgres};
use rcgen::ExtendedKeyUsagePurpose as Usage;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsAcceptor;

use super::{Authority, over_tls, text};
use crate::users::refused_to_serve;

/// Serves HTTP over TLS with this certificate, and returns its port. `answer` makes the response to a request from its
/// head.
async fn receiver((certificate, key): &(PathBuf, PathBuf), answer: fn(&str) -> String) -> u16 {
    let (chain, key) = tls::identity(certificate, key).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            tokio::spawn(async move {
                if let Some((head, _)) = crate::webhooks::request(&mut stream).await {
                    let _ = stream.write_all(answer(&head).as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn webhooks_use_https() {
    let (authority, other) = (Authority::new(), Authority::new());
    let answer = |_: &str| "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_owned();
    let port = receiver(&authority.server(), answer).await;
    let hook = |name: &str, host: &str, more: &str| {
        format!(
            "[[webhook]]\nname = \"{name}\"\nurl = \"https://{host}:{port}/t0ken\"\nsecret = \"0123456789abcdef\"\n{more}\n"
        )
    };
    let ca = |authority: &Authority| format!("ca = \"{}\"", authority.file().display());
    let config = [
        hook("trusted", "localhost", &ca(&authority)),
        hook("untrusted", "localhost", &ca(&other)),
        hook("named", "localhost.localdomain", &ca(&authority)),
        hook("system", "localhost", ""),
    ];
    let mut service = Hotslot::with(&host("small"), &config.concat()).await;
    service.attach(Q35, "vf:1").await.expect(200);
    let shown = async |service: &Hotslot, name: &str| {
        let all = service.get("/v2.1/webhooks").await.expect(200).body["webhooks"].clone();
        all.as_array().unwrap().iter().find(|hook| hook["name"] == name).unwrap().clone()
    };
    service.until("it is delivered", async || shown(&service, "trusted").await["behind"] == 0).await;
    for name in ["untrusted", "system"] {
        service.until("it was tried", async || shown(&service, name).await["reason"].is_string()).await;
        let reason = shown(&service, name).await["reason"].to_string();
        assert!(reason.contains("no trusted authority has signed its certificate"), "{name}: {reason}");
        assert!(reason.contains("`ca`"), "{reason}");
    }
    // The authorities of the system are trusted by default.
    service.kill();
    service.start_again_after(&format!("export SSL_CERT_FILE={}", authority.file().display())).await;
    service.until("it is delivered", async || shown(&service, "system").await["behind"] == 0).await;
    assert!(!service.log().contains("t0ken"), "{}", service.log());
}

/// Answers as a Keystone does whose only user is an administrator.
fn keystone(head: &str) -> String {
    let token = json!({ "token": {
        "user": { "id": "u1", "name": "alice" }, "roles": [{ "name": "admin" }],
        "project": { "id": "p1", "name": "demo" }, "expires_at": "2099-01-01T00:00:00.000000Z",
    }});
    let status = if head.starts_with("POST /v3/auth/tokens") { "201 Created" } else { "200 OK" };
    let body = token.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nx-subject-token: t0ken\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

// Keystone is served by a task of this test while the command line runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keystone_is_asked_over_https_by_the_service_and_by_the_command_line() {
    let (authority, other) = (Authority::new(), Authority::new());
    let port = receiver(&authority.server(), keystone).await;
    let password = authority.dir.path().join("password");
    fs::write(&password, "s3cret\n").unwrap();
    let ca = |authority: &Authority| format!("ca = \"{}\"\n", authority.file().display());
    let identity = format!(
        "[identity.keystone]\nurl = \"https://localhost:{port}\"\nusername = \"hotslot\"\npassword_file = \"{}\"\n",
        password.display()
    );
    let more = format!("{identity}{}", ca(&authority));
    let mut service = over_tls(&authority, "", &more, authority.client()).await;
    let list = |service: &Hotslot, cacert: &Authority| {
        let output = Command::new(binary())
            .args(["host", "list", "--url", service.url()])
            .env("OS_AUTH_URL", format!("https://localhost:{port}"))
            .envs([("OS_USERNAME", "alice"), ("OS_USER_DOMAIN_NAME", "Default"), ("OS_PASSWORD", "s3cret")])
            .env("OS_CACERT", cacert.file())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    // The authorities of the cloud are those of the service too.
    let (code, output) = list(&service, &authority);
    assert_eq!(code, Some(0), "{output}");
    let (code, output) = list(&service, &other);
    assert!(code == Some(5) && output.contains("no TLS connection to Keystone"), "{output}");
    assert!(output.contains("cacert (OS_CACERT)"), "{output}");

    // The authorities of the system are trusted by default.
    service.kill();
    service.reconfigure(&ca(&authority), "");
    service.start_again_after(&format!("export SSL_CERT_FILE={}", authority.file().display())).await;
    assert_eq!(service.get("/readyz").await.expect(200).body["identity"], "ok");
    service.kill();
    service.reconfigure(&identity, &format!("{identity}{}", ca(&other)));
    service.start_again_unready();
    let why = "no trusted authority has signed its certificate; name the PEM file of its authority in `ca`";
    service
        .until("it says what is wrong", async || {
            service.get("/readyz").await.expect(503);
            service.log().contains(why)
        })
        .await;
    assert!(!service.log().contains("t0ken"), "{}", service.log());
}

#[test]
fn no_password_and_no_token_are_sent_to_keystone_over_http() {
    let by_password =
        [("OS_USERNAME", "alice"), ("OS_USER_DOMAIN_NAME", "Default"), ("OS_PASSWORD", "s3cret")];
    for (url, identity) in [
        ("http://192.0.2.1:5000/v3", &by_password[..]),
        ("http://keystone.example:5000", &by_password[..]),
        ("http://localhost.example:5000", &by_password[..]),
        // A token goes along when the service is looked for in the catalog.
        ("http://192.0.2.1:5000/v3", &[("OS_TOKEN", "s3cret")][..]),
    ] {
        let mut command = Command::new(binary());
        command.args(["host", "list"]).env("OS_AUTH_URL", url).envs(identity.iter().copied());
        let output = command.output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && message.contains("auth_url (OS_AUTH_URL): over http"),
            "{message}"
        );
        assert!(message.contains("write https://") && message.contains("cacert (OS_CACERT)"), "{message}");
        assert!(!message.contains("s3cret"), "{message}");
    }
}

#[tokio::test]
async fn a_token_is_sent_over_tls_and_on_this_machine_only() {
    for url in ["http://192.0.2.1:9774", "http://node1.example:9774"] {
        let mut command = Command::new(binary());
        let output =
            command.args(["host", "list", "--url", url]).env("HOTSLOT_TOKEN", "hst_t0ken").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            text.contains("the token is not sent to http://") && text.contains("write https://"),
            "{text}"
        );
        assert!(!output.status.success(), "{output:?}");
    }
    let authority = Authority::new();
    let tokens = authority.dir.path().join("tokens");
    let more = format!("[identity]\ntokens = \"{}\"\n", tokens.display());
    let service = over_tls(&authority, "", &more, authority.client()).await;
    let config = service.database().with_file_name("hotslot.toml");
    let mut command = Command::new(binary());
    let made = command
        .args(["token", "create", "ops", "--role", "admin", "--config", text(&config)])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let ca = authority.file();
    let list = |arguments: &[&str], token: Option<&str>| {
        let mut command = Command::new(binary());
        command.args(["--url", service.url(), "--ca-file", text(&ca)]).args(arguments);
        let output = command.envs(token.map(|token| ("HOTSLOT_TOKEN", token))).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    assert_eq!(list(&["host", "list"], Some(&token)).0, Some(0));
    assert_eq!(list(&["host", "list"], None).0, Some(7));
    let (_, output) = list(&["doctor"], Some(&token));
    assert!(output.contains(&format!("ready at {}", service.url())), "{output}");
}

#[tokio::test]
async fn postgresql_of_another_machine_is_refused_without_a_verified_certificate() {
    let dir = tempfile::tempdir().unwrap();
    for url in [
        "postgres://hotslot:s3cret@192.0.2.1/hotslot",
        "postgres://hotslot:s3cret@db.example/hotslot?sslmode=require",
        "postgres://hotslot:s3cret@localhost/hotslot?host=db.example&sslmode=verify-ca",
    ] {
        let output = refused_to_serve(dir.path(), url);
        assert!(output.contains("add ?sslmode=verify-full") && !output.contains("s3cret"), "{url}: {output}");
    }

    let (authority, other) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.sign("postgres", &["localhost"], Usage::ServerAuth);
    let server = postgres::Server::with_tls(&certificate, &key);
    let socket = server.database().await;
    let tcp = socket.split_once('?').unwrap().0;
    let verified = |tcp: &str, ca: &Path| format!("{tcp}?sslmode=verify-full&sslrootcert={}", ca.display());
    let service = Hotslot::on("small").await.moved_to(&verified(tcp, &authority.file())).await;
    service.attach(Q35, "vf:1").await.expect(200);

    for (url, why) in [
        (verified(tcp, &other.file()), "invalid peer certificate"),
        (verified(&tcp.replace("localhost", "127.0.0.1"), &authority.file()), "not valid for name"),
        // A server that has no TLS.
        (format!("{}&sslmode=verify-full", postgres::database().await), "does not support TLS"),
    ] {
        let output = refused_to_serve(dir.path(), &url);
        assert!(
            output.contains(why) && output.contains("sslrootcert in the URL must name"),
            "{url}: {output}"
        );
    }
}
