//! TLS of the API and of the command line. The certificates are made by the tests.

mod outgoing;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hotslot_service::tls;
use hotslot_tests::{Api, Hotslot, Q35, binary};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use reqwest::Method;
use rustls::ClientConfig;

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
        self.sign_for_years(name, names, usage, (1975, 4096))
    }

    /// Signs a certificate that is valid from the beginning of one year to that of another.
    fn sign_for_years(
        &self,
        name: &str,
        names: &[&str],
        usage: Usage,
        (from, to): (i32, i32),
    ) -> (PathBuf, PathBuf) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
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
    let output = Command::new(binary()).args(["--url", url]).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
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
    let (code, output) = hotslot(url, &["attachment", "list", "--ca-file", text(&ca)]);
    assert!(code == Some(0) && output.contains("attached"), "{output}");
    let output = Command::new(binary())
        .args(["host", "list"])
        .env("HOTSLOT_URL", url.replace("127.0.0.1", "localhost"))
        .env("HOTSLOT_CA_FILE", &ca)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");

    let other = Authority::new();
    for trusted in [&[][..], &["--ca-file", text(&other.file())]] {
        let (code, output) = hotslot(url, &[&["host", "list"], trusted].concat());
        assert!(code == Some(5) && output.contains("no trusted authority has signed"), "{output}");
        assert!(output.contains("--ca-file"), "{output}");
    }
    let named = url.replace("127.0.0.1", "127.0.0.2");
    assert_eq!(hotslot(&named, &["host", "list"]).0, Some(5));
    let (code, output) = hotslot(url, &["host", "list", "--ca-file", "/proc/none.pem"]);
    assert!(code != Some(0) && output.contains("--ca-file: cannot read /proc/none.pem"), "{output}");

    // Without TLS, a client is told to use it, and the other way round.
    let (code, output) = hotslot(&url.replace("https:", "http:"), &["host", "list"]);
    assert!(code != Some(0) && output.contains("this port uses TLS; write https://"), "{output}");
    let plain = Hotslot::on("small").await;
    let (code, output) = hotslot(&plain.url().replace("http:", "https:"), &["host", "list"]);
    assert!(code == Some(5) && output.contains("does not use TLS; write http://"), "{output}");
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
    let (_, output) = list();
    assert!(output.contains("is for node1.example, and not for 127.0.0.1"), "{output}");
    assert!(output.contains("use a name of the certificate"), "{output}");
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
    // A byte now and then does not help.
    let mut slow = connect(&service);
    for byte in &hello_of_tls_1_1()[..40] {
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for mut stream in [silent, partial, slow] {
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    }
    let many: Vec<_> = (0..12).map(|_| connect(&service)).collect();
    // The first attempt may be behind these 12, and then it is told to try again (503).
    let is_served = async || fresh().get("/healthz").await.status == 200;
    service.until("there is room for another client", is_served).await;
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
    fs::set_permissions(&key, fs::Permissions::from_mode(0o604)).unwrap();
    place(&key, "key");
    service.until("the new pair is in use", is_renewed).await;
    assert!(fresh().try_get("/healthz").await.is_none());
    // A connection that is open stays open.
    assert!(ask(&mut open).starts_with("HTTP/1.1 200"));

    let key = authority.dir.path().join("server.key");
    fs::write(&key, "-----BEGIN PRIVATE KEY-----\ns3cret\n").unwrap();
    let fresh = || Api::with_tls(service.url().to_owned(), Some(next.client()));
    service
        .until("it has noticed", async || {
            fresh().get("/healthz").await.expect(200);
            service.log().contains("has no private key")
        })
        .await;
    let log = service.log();
    assert!(log.contains("every user of this machine can read") && !log.contains("s3cret"), "{log}");
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
    let (code, output) = list(&url, Some(&good));
    assert_eq!(code, Some(0), "{output}");
    let (code, output) = list(&url, None);
    assert!(
        code == Some(5) && output.contains("demands a client certificate; give one with --cert"),
        "{output}"
    );
    let expired = authority.sign_for_years("old", &["compute1.example"], Usage::ClientAuth, (2001, 2002));
    for bad in [&foreign, &of_server, &expired] {
        let (code, output) = list(&url, Some(bad));
        assert!(code == Some(5) && output.contains("does not accept the client certificate"), "{output}");
    }
    let (code, output) = list(&url, Some(&(good.0.clone(), foreign.1.clone())));
    assert!(code != Some(0) && output.contains("--cert and --key: "), "{output}");
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
        let (code, output) = list(&url, files);
        assert_eq!(code, Some(0), "{output}");
    }
    let (code, output) = list(&url, Some(&foreign));
    assert!(code == Some(5) && output.contains("does not accept the client certificate"), "{output}");
}

/// Returns the error of a service that does not start with this `[api]`.
fn refused(api: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("hotslot.toml");
    let database = format!("[database]\nurl = \"sqlite://{}/hotslot.db\"\n", dir.path().display());
    fs::write(&config, format!("[api]\n{api}\n{database}")).unwrap();
    let output = Command::new(binary()).arg("serve").arg("--config").arg(&config).output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_service_without_usable_tls_does_not_start() {
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9774"] {
        let output = refused(&format!("listen = \"{listen}\""));
        assert!(
            output.contains("can be reached from other machines") && output.contains("[api.tls]"),
            "{output}"
        );
    }
    let files = "[api.tls]\ncertificate = \"/c.pem\"\nkey = \"/c.key\"";
    let output = refused(&format!("listen = \"0.0.0.0:0\"\n{files}"));
    assert!(
        output.contains("every machine on the network can connect") && !output.contains("insecure_tcp"),
        "{output}"
    );
    let output = refused(&format!("listen = \"0.0.0.0:0\"\ninsecure_tcp = true\n{files}"));
    assert!(output.contains("every client would be the administrator"), "{output}");
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
    let output = tls(none, &key, "");
    assert!(output.contains("[api.tls]: cannot read /proc/none.pem: No such file"), "{output}");
    let broken = authority.dir.path().join("broken.pem");
    fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let output = tls(&broken, &key, "");
    assert!(output.contains("broken.pem has no certificate that can be read"), "{output}");
    let output = tls(&certificate, &certificate, "");
    assert!(output.contains("server.pem has no private key"), "{output}");
    let output = tls(&certificate, &other, "");
    assert!(output.contains("do not fit together"), "{output}");
    let output = tls(&certificate, &key, &format!("client_ca = \"{}\"", key.display()));
    assert!(output.contains("server.key has no certificate"), "{output}");
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
async fn an_expired_certificate_is_named_by_all_who_see_it() {
    let authority = Authority::new();
    let mut service = over_tls(&authority, "", "", authority.client()).await;
    let config = service.database().with_file_name("hotslot.toml");
    let doctor = |url: &str| hotslot(url, &["doctor", "--config", text(&config)]).1;
    assert!(doctor(service.url()).contains("is valid now and fits its key"), "{}", doctor(service.url()));
    service.kill();
    authority.sign_for_years("server", &["localhost", "127.0.0.1"], Usage::ServerAuth, (2001, 2002));
    service.start_again_unready();
    let (url, ca) = (service.url().to_owned(), authority.file());
    assert!(service.log().contains("server.pem, because it expired at Jan  1"), "{}", service.log());
    let (code, output) = hotslot(&url, &["host", "list", "--ca-file", text(&ca)]);
    assert!(
        code == Some(5) && output.contains("its certificate has expired; have the certificate"),
        "{output}"
    );
    assert!(doctor(&url).contains("because it expired at Jan  1"), "{}", doctor(&url));
    authority.sign_for_years("server", &["localhost", "127.0.0.1"], Usage::ServerAuth, (3001, 3002));
    let list = || hotslot(&url, &["host", "list", "--ca-file", text(&ca)]).1;
    service
        .until("the next certificate is in use", async || {
            list().contains("is not valid yet; have the certificate")
        })
        .await;
    assert!(service.log().contains("because it is not valid before Jan  1"), "{}", service.log());
}

#[tokio::test]
async fn the_key_can_be_a_credential_of_systemd() {
    let authority = Authority::new();
    let mut service = over_tls(&authority, "", "", authority.client()).await;
    service.kill();
    let key = format!("key = \"{}\"", authority.dir.path().join("server.key").display());
    service.reconfigure(&key, "key = \"server.key\"");
    service
        .start_again_after(&format!("export CREDENTIALS_DIRECTORY={}", authority.dir.path().display()))
        .await;
    service.get("/healthz").await.expect(200);
    let output = refused(
        "listen = \"127.0.0.1:0\"\ninsecure_tcp = true\n[api.tls]\ncertificate = \"/c.pem\"\nkey = \"server.key\"",
    );
    assert!(output.contains("LoadCredential=server.key:/path"), "{output}");
}
