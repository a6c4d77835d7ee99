//! A real Keystone for the tests: `tests/clients/run_keystone.py`, and what an administrator does with it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// The password of every user that the tests create, and of hotslot's own user.
pub const PASSWORD: &str = "s3cret-of-a-test";

/// Returns the Python of the environment with the stock clients and Keystone.
pub fn python() -> PathBuf {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/clients");
    let python = Command::new(tool).output().expect("run tools/clients");
    assert!(python.status.success(), "tools/clients: {}", String::from_utf8_lossy(&python.stderr));
    String::from_utf8(python.stdout).expect("a path").trim().into()
}

/// A Keystone. It runs until its standard input is closed, which happens when this process ends.
pub struct Keystone {
    url: String,
    http: reqwest::Client,
    child: Child,
    output: BufReader<ChildStdout>,
}

/// A user of a test, with a role in a project of its own.
#[derive(Debug, Clone)]
pub struct User {
    /// The id of the user.
    pub id: String,
    /// The name of the user, in the domain `Default`.
    pub name: String,
    /// The id of the project.
    pub project: String,
}

/// Returns a name that no other test uses.
fn unique(kind: &str) -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    format!("{kind}{}", MADE.fetch_add(1, Ordering::Relaxed))
}

impl Keystone {
    /// Starts a Keystone with hotslot's own user: `hotslot` with [`PASSWORD`] and the role `service` in the project
    /// `service`.
    pub async fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/run_keystone.py");
        let mut child = Command::new(python())
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start Keystone");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        crate::api::use_ring();
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client");
        let mut keystone = Self { url: String::new(), http, child, output };
        keystone.url = keystone.line();
        assert!(keystone.url.starts_with("http://"), "Keystone gave no URL; the reason is above");
        let admin = keystone.admin().await;
        let project = keystone.create(&admin, "project", json!({ "name": "service" })).await;
        let user = keystone.create(&admin, "user", json!({ "name": "hotslot", "password": PASSWORD })).await;
        keystone.grant(&admin, &format!("/projects/{project}/users/{user}"), "service").await;
        keystone
    }

    /// Returns the Keystone that all tests of this process share. They must not stop it.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceLock<Keystone> = OnceLock::new();
        static STARTING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _starting = STARTING.lock().await;
        match SHARED.get() {
            Some(keystone) => keystone,
            None => {
                let keystone = Self::start().await;
                SHARED.get_or_init(|| keystone)
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("its output");
        line.trim().to_owned()
    }

    /// Sends a command of `tests/clients/run_keystone.py`, and waits for its completion.
    pub fn command(&mut self, command: &str) {
        let input = self.child.stdin.as_mut().expect("its input");
        writeln!(input, "{command}").expect("a command for Keystone");
        assert_eq!(self.line(), "ok", "{command}");
    }

    /// How many tokens Keystone was asked to validate.
    pub fn validations(&mut self) -> u32 {
        let input = self.child.stdin.as_mut().expect("its input");
        writeln!(input, "validations").expect("a command for Keystone");
        self.line().parse().expect("a number")
    }

    /// The URL of the v3 API.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends a request, and returns the status and the body.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let request = self.http.request(method, format!("{}{path}", self.url)).header("x-auth-token", token);
        let request = body.into_iter().fold(request, |request, body| request.json(&body));
        let response = request.send().await.expect("an answer of Keystone");
        let status = response.status();
        (status, response.json().await.unwrap_or_default())
    }

    /// Sends a request that must succeed, and returns the body.
    pub async fn ask(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.send(method, path, token, body).await;
        assert!(status.is_success(), "{path}: {status}: {answer}");
        answer
    }

    /// Creates a thing of a kind such as `user`, and returns its id.
    pub async fn create(&self, token: &str, kind: &str, of: Value) -> String {
        let answer = self.ask(Method::POST, &format!("/{kind}s"), token, Some(json!({ kind: of }))).await;
        answer[kind]["id"].as_str().expect("an id").to_owned()
    }

    /// Gives a role; `place` is a path such as `/projects/ID/users/ID`.
    pub async fn grant(&self, token: &str, place: &str, role: &str) {
        let roles = self.ask(Method::GET, &format!("/roles?name={role}"), token, None).await;
        let id = match roles["roles"][0]["id"].as_str() {
            Some(id) => id.to_owned(),
            None => self.create(token, "role", json!({ "name": role })).await,
        };
        self.ask(Method::PUT, &format!("{place}/roles/{id}"), token, None).await;
    }

    /// Returns the token for the body of `auth`.
    pub async fn token(&self, auth: Value) -> String {
        let request = self.http.post(format!("{}/auth/tokens", self.url)).json(&json!({ "auth": auth }));
        let response = request.send().await.expect("an answer of Keystone");
        assert_eq!(response.status(), StatusCode::CREATED, "{auth}");
        response.headers()["x-subject-token"].to_str().expect("a token").to_owned()
    }

    /// Returns a token of a user by name and password, with this scope; null for no scope.
    pub async fn token_of(&self, name: &str, password: &str, scope: Value) -> String {
        let user = json!({ "name": name, "domain": { "id": "default" }, "password": password });
        let identity = json!({ "methods": ["password"], "password": { "user": user } });
        let scope = if scope.is_null() { json!("unscoped") } else { scope };
        self.token(json!({ "identity": identity, "scope": scope })).await
    }

    /// Returns a token of the administrator in the project `admin`.
    pub async fn admin(&self) -> String {
        let project = json!({ "project": { "name": "admin", "domain": { "id": "default" } } });
        self.token_of("admin", "admin-secret", project).await
    }

    /// Returns a token of a user in the user's project.
    pub async fn login(&self, user: &User) -> String {
        self.token_of(&user.name, PASSWORD, json!({ "project": { "id": user.project } })).await
    }

    /// Creates a user with a role in a new project.
    pub async fn user(&self, role: &str) -> User {
        let admin = self.admin().await;
        let project = self.create(&admin, "project", json!({ "name": unique("project") })).await;
        let name = unique("user");
        let id = self.create(&admin, "user", json!({ "name": name, "password": PASSWORD })).await;
        self.grant(&admin, &format!("/projects/{project}/users/{id}"), role).await;
        User { id, name, project }
    }
}

impl Drop for Keystone {
    fn drop(&mut self) {
        // The script ends its server when its input is closed.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
