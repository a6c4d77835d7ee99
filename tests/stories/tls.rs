//! TLS: of the API, of the command line, of webhooks, and of the connection to PostgreSQL. The certificates are made by
//! the tests.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hotslot_service::tls;
use hotslot_tests::{Api, Hotslot, Q35, binary, host, postgres};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyPair,
};
use reqwest::Method;
use rustls::ClientConfig;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsAcceptor;

use crate::users::refused_to_serve;

/// An authority that signs certificates, with a directory for its files.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "an authority of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Signs a certificate for these names, and returns the files of the certificate and of its key.
    fn sign(&self, name: &str, names: &[&str], usage: Usage) -> (PathBuf, PathBuf) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = ["pem", "key"].map(|ending| self.dir.path().join(format!("{name}.{ending}")));
        fs::write(&files[0], certificate.pem()).unwrap();
        fs::write(&files[1], key.serialize_pem()).unwrap();
        fs::set_permissions(&files[1], fs::Permissions::from_mode(0o600)).unwrap();
        files.into()
    }

    fn server(&self) -> (PathBuf, PathBuf) {
        self.sign("server", &["localhost", "127.0.0.1"], Usage::ServerAuth)
    }

    /// Returns the settings of a client that trusts this authority only.
    fn client(&self) -> ClientConfig {
        tls::client(tls::authorities(&self.file()).unwrap(), None).unwrap()
    }
}

/// Returns the service on a port with TLS, with further keys of `[api]` and `[api.tls]`. Every client is the
/// administrator, unless these have another way to identify callers.
async fn over_tls(authority: &Authority, api: &str, more: &str, client: ClientConfig) -> Hotslot {
    let (certificate, key) = authority.server();
    let mut service = Hotslot::on("small").await;
    service.kill();
    let insecure = !api.contains("identity = ") && !more.contains("[identity");
    let tls = format!(
        "listen = \"127.0.0.1:0\"\ninsecure_tcp = {insecure}\n{api}\n[api.tls]\ncertificate = \"{}\"\nkey = \"{}\"\n{more}\n",
        certificate.display(),
        key.display()
    );
    service.reconfigure("listen = \"127.0.0.1:0\"\ninsecure_tcp = true\n", &tls);
    service.connect_with(client);
    service.take_log();
    service.start_again().await;
    assert!(service.url().starts_with("https://127.0.0.1:"), "{}", service.url());
    service
}

fn connect(service: &Api) -> TcpStream {
    let stream = TcpStream::connect(service.url().trim_start_matches("https://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends a request on an open connection, and returns the beginning of the response.
fn ask(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut bytes = [0; 1024];
    let length = stream.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// Runs a command, and returns its exit code and what it printed.
fn hotslot(url: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let said = Command::new(binary()).args(["--url", url]).args(arguments).output().unwrap();
    let text = [said.stdout, said.stderr].concat();
    (said.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn the_api_and_the_command_line_use_tls() {
    let authority = Authority::new();
    let service = over_tls(&authority, "", "", authority.client()).await;
    service.attach(Q35, "vf:1").await.expect(200);
    let versions = service.get("/").await.body.to_string();
    assert!(versions.contains("\"https://127.0.0.1:") && !versions.contains("http://"), "{versions}");
    let (url, ca) = (service.url(), authority.file());
    let (code, said) = hotslot(url, &["attachment", "list", "--ca-file", text(&ca)]);
    assert!(code == Some(0) && said.contains("attached"), "{said}");
    let said = Command::new(binary())
        .args(["host", "list"])
        .env("HOTSLOT_URL", url.replace("127.0.0.1", "localhost"))
        .env("HOTSLOT_CA_FILE", &ca)
        .output()
        .unwrap();
    assert!(said.status.success(), "{said:?}");

    let other = Authority::new();
    for trusted in [&[][..], &["--ca-file", text(&other.file())]] {
        let (code, said) = hotslot(url, &[&["host", "list"], trusted].concat());
        assert!(code == Some(5) && said.contains("no trusted authority has signed"), "{said}");
        assert!(said.contains("--ca-file"), "{said}");
    }
    let named = url.replace("127.0.0.1", "127.0.0.2");
    assert_eq!(hotslot(&named, &["host", "list"]).0, Some(5));
    let (code, said) = hotslot(url, &["host", "list", "--ca-file", "/proc/none.pem"]);
    assert!(code != Some(0) && said.contains("--ca-file: cannot read /proc/none.pem"), "{said}");

    // Without TLS, a client is told to use it, and the other way round.
    let (code, said) = hotslot(&url.replace("https:", "http:"), &["host", "list"]);
    assert!(code != Some(0) && said.contains("this port uses TLS; write https://"), "{said}");
    let plain = Hotslot::on("small").await;
    let (code, said) = hotslot(&plain.url().replace("http:", "https:"), &["host", "list"]);
    assert!(code == Some(5) && said.contains("does not use TLS; write http://"), "{said}");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let service = over_tls(&authority, "", "", authority.client()).await;
    let (certificate, key) = authority.sign("other", &["node1.example"], Usage::ServerAuth);
    fs::copy(certificate, authority.dir.path().join("server.pem")).unwrap();
    fs::copy(key, authority.dir.path().join("server.key")).unwrap();
    let ca = authority.file();
    let list = || hotslot(service.url(), &["host", "list", "--ca-file", text(&ca)]);
    service.until("the new certificate is in use", async || list().0 == Some(5)).await;
    let (_, said) = list();
    assert!(said.contains("is for node1.example, and not for 127.0.0.1"), "{said}");
    assert!(said.contains("use a name of the certificate"), "{said}");
}

/// The ClientHello of a client that offers TLS 1.1 at most (RFC 4346, 7.4.1.2).
fn hello_of_tls_1_1() -> Vec<u8> {
    let suites = [0xc0, 0x13, 0xc0, 0x09, 0x00, 0x2f];
    let mut hello = vec![3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, suites.len() as u8]);
    hello.extend(suites);
    hello.extend([1, 0]);
    // rustls demands the extension signature_algorithms before it looks at the version.
    hello.extend([0, 8, 0, 13, 0, 4, 0, 2, 4, 3]);
    let mut record = vec![22, 3, 1, 0, hello.len() as u8 + 4, 1, 0, 0, hello.len() as u8];
    record.extend(hello);
    record
}

#[tokio::test]
async fn only_tls_1_2_and_1_3_are_used() {
    let authority = Authority::new();
    let service = over_tls(&authority, "", "", authority.client()).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = ClientConfig::builder_with_provider(tls::provider()).with_protocol_versions(&[version]);
        let authorities = tls::authorities(&authority.file()).unwrap();
        let client = client.unwrap().with_root_certificates(authorities).with_no_client_auth();
        Api::with_tls(service.url().to_owned(), Some(client)).get("/healthz").await.expect(200);
    }
    let mut old = connect(&service);
    old.write_all(&hello_of_tls_1_1()).unwrap();
    let mut answer = Vec::new();
    let _ = old.read_to_end(&mut answer);
    // A fatal alert: protocol_version (RFC 8446, 6.2).
    assert_eq!((answer.first(), answer.get(5..)), (Some(&21), Some(&[2, 70][..])), "{answer:?}");
}

#[tokio::test]
async fn an_incomplete_handshake_is_ended_and_makes_room() {
    let authority = Authority::new();
    let limits = "header_timeout = 1\nidle_timeout = 60\nconnections = 4\n";
    let service = over_tls(&authority, limits, "", authority.client()).await;
    // This client has no open connection that the service may close.
    let fresh = || Api::with_tls(service.url().to_owned(), Some(authority.client()));
    let start = Instant::now();
    let silent = connect(&service);
    let mut partial = connect(&service);
    partial.write_all(&hello_of_tls_1_1()[..20]).unwrap();
    for mut stream in [silent, partial] {
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
    let many: Vec<_> = (0..12).map(|_| connect(&service)).collect();
    fresh().get("/healthz").await.expect(200);
    drop(many);
    // A client without TLS is answered, whatever its request.
    let mut plain = connect(&service);
    plain.write_all(b"POST /v2.1/drift HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    let mut bytes = [0; 1024];
    let length = plain.read(&mut bytes).unwrap();
    let answer = String::from_utf8_lossy(&bytes[..length]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("this port uses TLS"), "{answer}");
}

#[tokio::test]
async fn changed_files_are_used_without_a_restart() {
    let (authority, next) = (Authority::new(), Authority::new());
    let service = over_tls(&authority, "", "", authority.client()).await;
    let name = "localhost".try_into().unwrap();
    let session = rustls::ClientConnection::new(Arc::new(authority.client()), name).unwrap();
    let mut open = rustls::StreamOwned::new(session, connect(&service));
    assert!(ask(&mut open).starts_with("HTTP/1.1 200"));
    let place = |from: &Path, ending: &str| {
        // As programs do that renew certificates: the new file takes the place of the old one.
        let (new, file) = (authority.dir.path().join("new"), authority.dir.path().join("server"));
        fs::copy(from, &new).unwrap();
        fs::rename(new, file.with_extension(ending)).unwrap();
    };
    let (certificate, key) = next.server();
    let renewed = Api::with_tls(service.url().to_owned(), Some(next.client()));
    let is_renewed = async || renewed.try_get("/healthz").await.is_some_and(|answer| answer.status == 200);
    assert!(!is_renewed().await);
    // Between the two, the certificate and the key do not fit together, and the old pair stays in use.
    place(&certificate, "pem");
    let fresh = || Api::with_tls(service.url().to_owned(), Some(authority.client()));
    service
        .until("it has noticed", async || {
            fresh().get("/healthz").await.expect(200);
            service.log().contains("cannot be used")
        })
        .await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        fresh().get("/healthz").await.expect(200);
    }
    assert_eq!(service.log().matches("cannot be used").count(), 2, "one line: {}", service.log());
    assert!(service.log().contains("do not fit together"), "{}", service.log());
    place(&key, "key");
    service.until("the new pair is in use", is_renewed).await;
    assert!(fresh().try_get("/healthz").await.is_none());
    // A connection that is open stays open.
    assert!(ask(&mut open).starts_with("HTTP/1.1 200"));

    let key = authority.dir.path().join("server.key");
    fs::write(&key, "-----BEGIN PRIVATE KEY-----\ns3cret\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o604)).unwrap();
    let fresh = || Api::with_tls(service.url().to_owned(), Some(next.client()));
    service
        .until("it has noticed", async || {
            fresh().get("/healthz").await.expect(200);
            service.log().contains("has no private key")
        })
        .await;
    let log = service.log();
    assert!(log.contains("every user of this machine can use") && !log.contains("s3cret"), "{log}");
}

#[tokio::test]
async fn client_certificates_are_verified() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.sign("nova", &["compute1.example"], Usage::ClientAuth);
    let ca = format!("client_ca = \"{}\"\n", authority.file().display());
    let identity = tls::identity(&certificate, &key).unwrap();
    let client = tls::client(tls::authorities(&authority.file()).unwrap(), Some(identity)).unwrap();
    let mut service = over_tls(&authority, "", &ca, client).await;
    service.attach(Q35, "vf:1").await.expect(200);
    let names = "CN=nova, DNS:compute1.example";
    service.until("the names are in the log", async || service.log().contains(names)).await;
    assert!(service.log().contains("every owner of a client certificate can connect"), "{}", service.log());

    let foreign = other.sign("nova", &["compute1.example"], Usage::ClientAuth);
    let of_server = authority.sign("web", &["compute1.example"], Usage::ServerAuth);
    let (ca, url) = (authority.file(), service.url().to_owned());
    let list = |url: &str, files: Option<&(PathBuf, PathBuf)>| {
        let mut arguments = vec!["host", "list", "--ca-file", text(&ca)];
        if let Some((certificate, key)) = files {
            arguments.extend(["--cert", text(certificate), "--key", text(key)]);
        }
        hotslot(url, &arguments)
    };
    let good = (certificate, key);
    let (code, said) = list(&url, Some(&good));
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = list(&url, None);
    assert!(code == Some(5) && said.contains("demands a client certificate; give one with --cert"), "{said}");
    for bad in [&foreign, &of_server] {
        let (code, said) = list(&url, Some(bad));
        assert!(code == Some(5) && said.contains("does not accept the client certificate"), "{said}");
    }
    let (code, said) = list(&url, Some(&(good.0.clone(), foreign.1.clone())));
    assert!(code != Some(0) && said.contains("--cert and --key: "), "{said}");
    assert_eq!(hotslot(&url, &["host", "list", "--cert", text(&good.0)]).0, Some(2));

    service.kill();
    service.reconfigure("client_ca", "client_certificates = \"optional\"\nclient_ca");
    service.start_again().await;
    let url = service.url().to_owned();
    assert!(
        service.log().contains("every user and program of this machine can connect"),
        "{}",
        service.log()
    );
    for files in [None, Some(&good)] {
        let (code, said) = list(&url, files);
        assert_eq!(code, Some(0), "{said}");
    }
    let (code, said) = list(&url, Some(&foreign));
    assert!(code == Some(5) && said.contains("does not accept the client certificate"), "{said}");
}

/// Returns the error of a service that does not start with this `[api]`.
fn refused(api: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("hotslot.toml");
    let database = format!("[database]\nurl = \"sqlite://{}/hotslot.db\"\n", dir.path().display());
    fs::write(&config, format!("[api]\n{api}\n{database}")).unwrap();
    let said = Command::new(binary()).arg("serve").arg("--config").arg(&config).output().unwrap();
    assert!(!said.status.success(), "{said:?}");
    String::from_utf8_lossy(&said.stderr).into_owned()
}

#[test]
fn a_service_without_usable_tls_does_not_start() {
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9774"] {
        let said = refused(&format!("listen = \"{listen}\""));
        assert!(said.contains("can be reached from other machines") && said.contains("[api.tls]"), "{said}");
    }
    let files = "[api.tls]\ncertificate = \"/c.pem\"\nkey = \"/c.key\"";
    let said = refused(&format!("listen = \"0.0.0.0:0\"\n{files}"));
    assert!(
        said.contains("every machine on the network can connect") && !said.contains("insecure_tcp"),
        "{said}"
    );
    let said = refused(&format!("listen = \"0.0.0.0:0\"\ninsecure_tcp = true\n{files}"));
    assert!(said.contains("every client would be the administrator"), "{said}");
    let authority = Authority::new();
    let (certificate, key) = authority.server();
    let (_, other) = authority.sign("other", &["localhost"], Usage::ServerAuth);
    let tls = |certificate: &Path, key: &Path, more: &str| {
        refused(&format!(
            "listen = \"127.0.0.1:0\"\ninsecure_tcp = true\n[api.tls]\ncertificate = \"{}\"\nkey = \"{}\"\n{more}",
            certificate.display(),
            key.display()
        ))
    };
    let none = Path::new("/proc/none.pem");
    let said = tls(none, &key, "");
    assert!(said.contains("[api.tls]: cannot read /proc/none.pem: No such file"), "{said}");
    let said = tls(&certificate, &certificate, "");
    assert!(said.contains("server.pem has no private key"), "{said}");
    let said = tls(&certificate, &other, "");
    assert!(said.contains("do not fit together"), "{said}");
    let said = tls(&certificate, &key, &format!("client_ca = \"{}\"", key.display()));
    assert!(said.contains("server.key has no certificate"), "{said}");
}

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

#[tokio::test]
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
        let said = Command::new(binary())
            .args(["host", "list", "--url", service.url()])
            .env("OS_AUTH_URL", format!("https://localhost:{port}"))
            .envs([("OS_USERNAME", "alice"), ("OS_USER_DOMAIN_NAME", "Default"), ("OS_PASSWORD", "s3cret")])
            .env("OS_CACERT", cacert.file())
            .output()
            .unwrap();
        let text = [said.stdout, said.stderr].concat();
        (said.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    // The authorities of the cloud are those of the service too.
    let (code, said) = list(&service, &authority);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = list(&service, &other);
    assert!(code == Some(5) && said.contains("no TLS connection to Keystone"), "{said}");
    assert!(said.contains("cacert (OS_CACERT)"), "{said}");

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

#[tokio::test]
async fn a_proxy_shows_itself_by_its_client_certificate() {
    let authority = Authority::new();
    let (certificate, key) = authority.sign("proxy", &["proxy.example"], Usage::ClientAuth);
    let identity = tls::identity(&certificate, &key).unwrap();
    let client = tls::client(tls::authorities(&authority.file()).unwrap(), Some(identity)).unwrap();
    let ca = format!("client_ca = \"{}\"\n", authority.file().display());
    let service = over_tls(&authority, "identity = \"headers\"\n", &ca, client).await;
    let path = "/v2.1/os-pci";
    let of = |role: &str| {
        [("x-user-id", "u1"), ("x-project-id", "p1"), ("x-roles", role)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    service.send_with(Method::GET, path, of("admin"), None).await.expect(200);
    service.send_with(Method::GET, path, of("member"), None).await.expect(403);
    service.get(path).await.expect(401);
    let without = Api::with_tls(service.url().to_owned(), Some(authority.client()));
    assert!(without.try_get("/healthz").await.is_none());
}

#[tokio::test]
async fn a_token_is_sent_over_tls_and_on_this_machine_only() {
    for url in ["http://192.0.2.1:9774", "http://node1.example:9774"] {
        let mut command = Command::new(binary());
        let said =
            command.args(["host", "list", "--url", url]).env("HOTSLOT_TOKEN", "hst_t0ken").output().unwrap();
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(
            text.contains("the token is not sent to http://") && text.contains("write https://"),
            "{text}"
        );
        assert!(!said.status.success(), "{said:?}");
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
        let said = command.envs(token.map(|token| ("HOTSLOT_TOKEN", token))).output().unwrap();
        (said.status.code(), String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned())
    };
    assert_eq!(list(&["host", "list"], Some(&token)).0, Some(0));
    assert_eq!(list(&["host", "list"], None).0, Some(7));
    let (_, said) = list(&["doctor"], Some(&token));
    assert!(said.contains(&format!("ready at {}", service.url())), "{said}");
}

#[tokio::test]
async fn postgresql_of_another_machine_is_refused_without_a_verified_certificate() {
    let dir = tempfile::tempdir().unwrap();
    for url in [
        "postgres://hotslot:s3cret@192.0.2.1/hotslot",
        "postgres://hotslot:s3cret@db.example/hotslot?sslmode=require",
        "postgres://hotslot:s3cret@localhost/hotslot?host=db.example&sslmode=verify-ca",
    ] {
        let said = refused_to_serve(dir.path(), url);
        assert!(said.contains("add ?sslmode=verify-full") && !said.contains("s3cret"), "{url}: {said}");
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
        let said = refused_to_serve(dir.path(), &url);
        assert!(said.contains(why) && said.contains("sslrootcert in the URL must name"), "{url}: {said}");
    }
}
