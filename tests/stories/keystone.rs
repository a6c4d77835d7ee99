//! Callers with tokens of a real Keystone: which are let in, and as whom; what happens when Keystone is slow, away or
//! refuses hotslot's own user.

use std::time::{Duration, Instant};

use hotslot_tests::keystone::{Keystone, PASSWORD, User};
use hotslot_tests::{Answer, Hotslot, host};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// A route that every role of a project may read.
const OWN: &str = "/v1/accelerators";

/// A route of the administrator.
const ALL: &str = "/v2.1/os-hypervisors";

/// A service that validates tokens with a Keystone, and the file with the password of its own user.
pub(crate) struct Door {
    pub(crate) service: Hotslot,
    password: tempfile::NamedTempFile,
}

impl std::ops::Deref for Door {
    type Target = Hotslot;

    fn deref(&self) -> &Hotslot {
        &self.service
    }
}

impl Door {
    /// Starts a service. `more` has further keys of `[identity.keystone]`.
    pub(crate) async fn to(keystone: &Keystone, more: &str) -> Self {
        // A test must not depend on how busy this machine is.
        let timeout = if more.contains("timeout") { "" } else { "timeout = 60\n" };
        let password = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(password.path(), format!("{PASSWORD}\n")).unwrap();
        let config = format!(
            "[identity.keystone]\nurl = \"{}\"\nusername = \"hotslot\"\npassword_file = \"{}\"\n{timeout}{more}\n",
            keystone.url(),
            password.path().display()
        );
        Self { service: Hotslot::with(&host("small"), &config).await, password }
    }

    /// Gets a path with headers.
    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.service.send_with(Method::GET, path, headers, None).await
    }

    /// Gets a path with a token.
    pub(crate) async fn by(&self, token: &str, path: &str) -> Answer {
        self.get(path, &[("x-auth-token", token)]).await
    }

    /// Waits until the response to a token has a status.
    async fn until_status(&self, token: &str, status: u16) {
        let patient = self.patient(Duration::from_secs(120));
        patient
            .until(&format!("the token gets {status}"), async || self.by(token, OWN).await.status == status)
            .await;
    }

    /// Fails the test when the log has one of these texts.
    pub(crate) fn log_has_none_of(&self, secrets: &[&str]) {
        let log = self.log();
        for secret in secrets {
            assert!(!log.contains(secret), "the log has a secret");
        }
    }
}

fn project(user: &User) -> Value {
    json!({ "project": { "id": user.project } })
}

#[tokio::test]
async fn a_token_says_who_calls() {
    let keystone = Keystone::shared().await;
    let door = Door::to(keystone, "").await;
    let (admin, member, reader) =
        (keystone.admin().await, keystone.user("member").await, keystone.user("reader").await);
    door.by(&admin, ALL).await.expect(200);
    let (member, reader) = (keystone.login(&member).await, keystone.login(&reader).await);
    for token in [&member, &reader] {
        door.by(token, OWN).await.expect(200);
        door.by(token, ALL).await.expect(403);
    }
    let auditor = keystone.user("auditor").await;
    let auditor = keystone.login(&auditor).await;
    door.by(&auditor, OWN).await.expect(403);

    // Without a token, the response says where to get one.
    let answer = door.get(OWN, &[]).await.expect(401);
    let challenge = answer.headers["www-authenticate"].to_str().unwrap();
    assert_eq!(challenge, format!("Keystone uri=\"{}\"", keystone.url()));
    for open in ["/healthz", "/", "/v2.1"] {
        let status = door.get(open, &[]).await.status;
        assert!([200, 300].contains(&status), "{open}: {status}");
    }
    door.log_has_none_of(&[&admin, &member, &reader, &auditor, PASSWORD]);
}

#[tokio::test]
async fn a_token_that_keystone_does_not_know_is_refused() {
    let mut keystone = Keystone::start().await;
    let door = Door::to(&keystone, "").await;
    let token = keystone.admin().await;
    door.by(&token, ALL).await.expect(200);
    let before = keystone.validations();
    let (large, body) = ("a".repeat(8 * 1024 + 1), &token[1..]);
    for malformed in ["", " ", large.as_str(), "tok\u{e9}n", "tok en", "tok\ten"] {
        door.by(malformed, ALL).await.expect(401);
    }
    door.get(ALL, &[("x-auth-token", &token), ("x-auth-token", &token)]).await.expect(401);
    assert_eq!(keystone.validations(), before, "Keystone was asked about a token that cannot be one");
    let mut forged = token.clone().into_bytes();
    let last = forged.len() - 5;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    for unknown in
        [forged.as_str(), body, "x", "gAAAAABforged", &"a".repeat(8 * 1024), "../../v3/users", "a%0d%0ab"]
    {
        let answer = door.by(unknown, ALL).await.expect(401);
        assert!(answer.headers.contains_key("www-authenticate"), "{unknown}");
    }
    // The refusal is remembered for some seconds.
    let before = keystone.validations();
    door.by(&forged, ALL).await.expect(401);
    assert_eq!(keystone.validations(), before);

    // Tokens of a Keystone with other keys, and those that hotslot itself got before, are not valid any more.
    keystone.command("rekey");
    let new = keystone.admin().await;
    door.by(&new, ALL).await.expect(200);
    let foreign = token.clone();
    let other = Door::to(&keystone, "").await;
    other.by(&foreign, ALL).await.expect(401);
    door.log_has_none_of(&[&token, &forged, &new, PASSWORD]);
}

#[tokio::test]
async fn a_token_that_is_revoked_is_refused_within_the_bound() {
    let keystone = Keystone::shared().await;
    let door = Door::to(keystone, "cache = 1").await;
    let admin = keystone.admin().await;
    let revoke = async |token: &str| {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.delete(format!("{}/auth/tokens", keystone.url()));
        let sent =
            request.header("x-auth-token", token).header("x-subject-token", token).send().await.unwrap();
        assert_eq!(sent.status(), StatusCode::NO_CONTENT);
    };
    let disable = async |kind: &str, id: &str| {
        let path = format!("/{kind}s/{id}");
        keystone.ask(Method::PATCH, &path, &admin, Some(json!({ kind: { "enabled": false } }))).await;
    };
    let users = [keystone.user("member").await, keystone.user("member").await, keystone.user("member").await];
    let mut tokens = Vec::new();
    for user in &users {
        let token = keystone.login(user).await;
        door.by(&token, OWN).await.expect(200);
        tokens.push(token);
    }
    revoke(&tokens[0]).await;
    disable("user", &users[1].id).await;
    disable("project", &users[2].project).await;
    for token in &tokens {
        door.until_status(token, 401).await;
    }
}

#[tokio::test]
async fn an_expired_token_is_refused_unless_a_service_sends_it() {
    let mut keystone = Keystone::start().await;
    let door = Door::to(&keystone, "").await;
    let user = keystone.user("member").await;
    let service = keystone.user("service").await;
    keystone.command("lifetime 10");
    let token = keystone.login(&user).await;
    let start = Instant::now();
    let status = door.by(&token, OWN).await.status;
    assert!(status == 200 || start.elapsed() > Duration::from_secs(5), "{status}");
    // The answer of Keystone could be used for a minute, but the token has a shorter lifetime.
    door.until_status(&token, 401).await;
    keystone.command("lifetime 3600");
    door.by(&token, OWN).await.expect(401);
    let service = keystone.login(&service).await;
    door.get(OWN, &[("x-auth-token", &token), ("x-service-token", &service)]).await.expect(200);
    door.by(&token, OWN).await.expect(401);
}

#[tokio::test]
async fn a_token_needs_a_scope() {
    let keystone = Keystone::shared().await;
    let door = Door::to(keystone, "").await;
    let admin = keystone.admin().await;
    let user = keystone.user("admin").await;
    keystone.grant(&admin, &format!("/domains/default/users/{}", user.id), "admin").await;
    keystone.grant(&admin, &format!("/system/users/{}", user.id), "reader").await;
    let nothing = keystone.token_of(&user.name, PASSWORD, Value::Null).await;
    let domain = keystone.token_of(&user.name, PASSWORD, json!({ "domain": { "id": "default" } })).await;
    let system = keystone.token_of(&user.name, PASSWORD, json!({ "system": { "all": true } })).await;
    for token in [&nothing, &domain] {
        for path in [OWN, ALL] {
            let answer = door.by(token, path).await.expect(403);
            let message = answer.message();
            assert!(message.contains("use a token that is scoped to a project"), "{message}");
        }
    }
    door.by(&system, ALL).await.expect(200);
    door.by(&keystone.token_of(&user.name, PASSWORD, project(&user)).await, ALL).await.expect(200);
}

#[tokio::test]
async fn a_service_acts_for_a_user() {
    let keystone = Keystone::shared().await;
    let door = Door::to(keystone, "").await;
    let (user, nova) = (keystone.user("member").await, keystone.user("service").await);
    let (member, service) = (keystone.login(&user).await, keystone.login(&nova).await);
    let delete = async |service: Option<&str>| {
        let headers =
            [Some(("x-auth-token", member.as_str())), service.map(|token| ("x-service-token", token))];
        let headers = headers.into_iter().flatten().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let path = "/accelerator/v2/accelerator_requests?instance=10000000-0000-4000-8000-000000000001";
        door.send_with(Method::DELETE, path, headers, None).await.status
    };
    assert_eq!(delete(None).await, 403);
    assert_eq!(delete(Some(&service)).await, 204);
    // A service token needs the role, and must be valid.
    assert_eq!(delete(Some(&member)).await, 403);
    assert_eq!(delete(Some("forged")).await, 401);
    door.get(OWN, &[("x-service-token", &service)]).await.expect(401);
}

#[tokio::test]
async fn an_application_credential_has_the_rights_of_its_roles_and_rules() {
    let keystone = Keystone::shared().await;
    let door = Door::to(keystone, "").await;
    let user = keystone.user("admin").await;
    let token = keystone.login(&user).await;
    let credential = async |name: &str, rules: Value| {
        let path = format!("/users/{}/application_credentials", user.id);
        let mut body = json!({ "name": name, "secret": PASSWORD });
        if !rules.is_null() {
            body["access_rules"] = rules;
        }
        let body = json!({ "application_credential": body });
        let made = keystone.ask(Method::POST, &path, &token, Some(body)).await;
        let id = made["application_credential"]["id"].as_str().unwrap();
        let method = json!({ "id": id, "secret": PASSWORD });
        let identity = json!({ "methods": ["application_credential"], "application_credential": method });
        keystone.token(json!({ "identity": identity })).await
    };
    let free = credential("free", Value::Null).await;
    door.by(&free, ALL).await.expect(200);
    let rules = json!([
        { "service": "compute", "method": "GET", "path": "/v2.1/os-hypervisors" },
        { "service": "compute", "method": "GET", "path": "/v2.1/servers/*" },
        { "service": "accelerator", "method": "GET", "path": "/accelerator/v2/**" },
    ]);
    let bound = credential("bound", rules).await;
    door.by(&bound, ALL).await.expect(200);
    door.by(&bound, "/v2.1/servers/10000000-0000-4000-8000-000000000001").await.expect(200);
    door.by(&bound, "/accelerator/v2/devices").await.expect(200);
    for path in ["/v2.1/servers", "/v3/os-hypervisors", "/v2.1/os-hypervisors/detail", OWN] {
        let answer = door.by(&bound, path).await.expect(403);
        assert!(answer.message().contains("access rules"), "{path}: {}", answer.message());
    }
    let headers = [("x-auth-token".to_owned(), bound)];
    let attach = "/v2.1/servers/10000000-0000-4000-8000-000000000001/os-pci_attachments";
    door.send_with(Method::POST, attach, headers, Some("{}".to_owned())).await.expect(403);
}

#[tokio::test]
async fn nobody_is_let_in_while_keystone_does_not_answer() {
    let mut keystone = Keystone::start().await;
    let door = Door::to(&keystone, "timeout = 8\ncache = 3").await;
    let (known, unknown) = (keystone.admin().await, keystone.admin().await);
    door.until_status(&known, 200).await;
    keystone.command("freeze");
    let answer = door.by(&unknown, ALL).await.expect(503);
    assert!(answer.retry_after.is_some());
    // The answer about a known token is used until it is too old, and no longer.
    door.until_status(&known, 503).await;
    door.until("readyz shows it", async || {
        let answer = door.get("/readyz", &[]).await;
        answer.status == 503 && answer.body["identity"].as_str().is_some_and(|text| text != "ok")
    })
    .await;
    // Local paths and other requests go on.
    door.get("/healthz", &[]).await.expect(200);
    keystone.command("thaw");
    door.until_status(&known, 200).await;
    door.patient(Duration::from_secs(120)).ready().await;

    keystone.command("stop");
    let answer = door.by("another", ALL).await.expect(503);
    assert!(answer.retry_after.is_some());
    door.until_status(&known, 503).await;
    keystone.command("start");
    door.until_status(&known, 200).await;
    let log = door.log();
    assert!(log.contains("so nobody is let in by one: it cannot be reached"), "{log}");
    assert!(log.contains("Keystone validates tokens again"), "{log}");
    door.log_has_none_of(&[&known, &unknown, PASSWORD]);
}

#[tokio::test]
async fn a_wrong_password_of_hotslots_own_user_is_not_the_callers_mistake() {
    let keystone = Keystone::shared().await;
    let mut door = Door::to(keystone, "").await;
    door.service.kill();
    std::fs::write(door.password.path(), "wr0ng-s3cret").unwrap();
    let (admin, own) = (keystone.admin().await, door.password.path().to_owned());
    door.service.start_again_unready();
    for _ in 0..3 {
        let answer = door.by(&admin, ALL).await.expect(503);
        assert!(answer.retry_after.is_some());
    }
    let ready = door.get("/readyz", &[]).await.expect(503);
    let text = ready.body["identity"].as_str().unwrap();
    assert!(text.contains("the log of the service has the reason"), "{text}");
    let refusals = door.log().matches("does not accept the credential of hotslot's own user").count();
    assert_eq!(refusals, 1, "{}", door.log());
    // A corrected file is used at once.
    std::fs::write(&own, PASSWORD).unwrap();
    door.by(&admin, ALL).await.expect(200);
    door.log_has_none_of(&["wr0ng-s3cret", PASSWORD, &admin]);
    // A user without the role `service` may not validate the tokens of others.
    let admin_token = keystone.admin().await;
    let weak = keystone.user("member").await;
    let name = keystone.ask(Method::GET, &format!("/projects/{}", weak.project), &admin_token, None).await;
    let name = name["project"]["name"].as_str().unwrap().to_owned();
    let more = format!("project = \"{name}\"\ntimeout = 60\n");
    let config = format!(
        "[identity.keystone]\nurl = \"{}\"\nusername = \"{}\"\npassword_file = \"{}\"\n{more}",
        keystone.url(),
        weak.name,
        own.display()
    );
    let weak = Hotslot::with(&host("small"), &config).await;
    let answer =
        weak.send_with(Method::GET, ALL, [("x-auth-token".to_owned(), admin_token)], None).await.expect(503);
    assert!(answer.retry_after.is_some());
    assert!(weak.log().contains("give it the role `service`"), "{}", weak.log());
}

#[tokio::test]
async fn requests_with_the_same_token_ask_keystone_once() {
    let mut keystone = Keystone::start().await;
    let door = Door::to(&keystone, "").await;
    let token = keystone.admin().await;
    let before = keystone.validations();
    let answers = futures_util::future::join_all((0..50).map(|_| door.by(&token, ALL))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    for _ in 0..20 {
        door.by(&token, ALL).await.expect(200);
    }
    let asked = keystone.validations() - before;
    assert_eq!(asked, 1);
}
