//! The command lines of OpenStack and of hotslot, which find the service in the catalog of a real Keystone.

use std::path::{Path, PathBuf};
use std::process::Command;

use hotslot_tests::keystone::{Keystone, PASSWORD, User, python};
use hotslot_tests::{Hotslot, binary, host, without_mdevs};
use reqwest::Method;
use serde_json::{Value, json};

const PCI: &str = "[pci]\ndevice_spec = ['{\"address\": \"*:*:*.*\"}']\n";

/// A service in the catalog of a Keystone, in a region of its own, and the clouds of its users.
pub(super) struct Cloud {
    pub(super) service: Hotslot,
    region: String,
    pub(super) keystone: &'static Keystone,
    dir: tempfile::TempDir,
    clouds: String,
}

impl Cloud {
    async fn new(region: &str) -> Self {
        Self::serving(region, PCI, without_mdevs).await
    }

    /// Serves the host `accelerators`, which `change` has modified, with this `[pci]`.
    pub(super) async fn serving(region: &str, pci: &str, change: impl FnOnce(&Path)) -> Self {
        let keystone = Keystone::shared().await;
        let dir = tempfile::tempdir().unwrap();
        let password = dir.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        let config = format!(
            "{pci}[identity.keystone]\nurl = \"{}\"\nusername = \"hotslot\"\npassword_file = \"{}\"\ntimeout = 60\n",
            keystone.url(),
            password.display()
        );
        let service = Hotslot::bare(&host("accelerators"), &config, change).await;
        let admin = keystone.admin().await;
        keystone.ask(Method::POST, "/regions", &admin, Some(json!({ "region": { "id": region } }))).await;
        let at = |path: &str| format!("{}{path}", service.url());
        // The stock client looks for Keystone in the catalog too.
        let endpoints = [
            ("compute", at("/v2.1")),
            ("accelerator", at("/accelerator/v2")),
            ("hotslot", at("")),
            ("identity", keystone.url().to_owned()),
        ];
        for (kind, url) in endpoints {
            let id = keystone.create(&admin, "service", json!({ "type": kind, "name": kind })).await;
            let endpoint =
                json!({ "service_id": id, "interface": "public", "region_id": region, "url": url });
            keystone.create(&admin, "endpoint", endpoint).await;
        }
        let clouds = "clouds:\n".to_owned();
        Self { service, region: region.to_owned(), keystone, dir, clouds }
    }

    /// Adds a cloud to `clouds.yaml`.
    fn add(&mut self, name: &str, kind: &str, auth: &[(&str, &str)]) {
        self.clouds += &format!(
            "  {name}:\n    region_name: {}\n    auth_type: {kind}\n    auth:\n      auth_url: {}\n",
            self.region,
            self.keystone.url()
        );
        for (key, value) in auth {
            self.clouds += &format!("      {key}: {value}\n");
        }
        self.write();
    }

    /// The path of `clouds.yaml`.
    pub(super) fn file(&self) -> PathBuf {
        self.dir.path().join("clouds.yaml")
    }

    fn write(&self) {
        std::fs::write(self.file(), &self.clouds).unwrap();
    }

    /// Adds a key to the cloud that was added last.
    pub(super) fn add_key(&mut self, line: &str) {
        self.clouds += &format!("    {line}\n");
        self.write();
    }

    pub(super) fn add_user(&mut self, name: &str, user: &User) {
        let auth = [
            ("username", user.name.as_str()),
            ("password", PASSWORD),
            ("user_domain_id", "default"),
            ("project_id", &user.project),
        ];
        self.add(name, "password", &auth);
    }

    /// Runs a program with only these clouds in its environment. Returns its exit code, output and errors.
    pub(super) async fn run(
        &self,
        program: &Path,
        arguments: &str,
        variables: &[(&str, &str)],
    ) -> (i32, String, String) {
        let mut command = Command::new(program);
        command
            .args(arguments.split(' '))
            .env_clear()
            .envs(variables.iter().copied())
            .env("HOME", self.dir.path())
            .env("NO_PROXY", "127.0.0.1")
            .current_dir(self.dir.path());
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        assert!(!out.contains(PASSWORD) && !err.contains(PASSWORD), "{arguments}: {out}{err}");
        (output.status.code().unwrap(), out, err)
    }

    async fn openstack(&self, arguments: &str) -> (i32, String, String) {
        self.run(&python().with_file_name("openstack"), arguments, &[]).await
    }

    async fn hotslot(&self, arguments: &str) -> (i32, String, String) {
        self.run(&binary(), arguments, &[]).await
    }
}

#[tokio::test]
async fn openstack_finds_hotslot_in_the_catalog() {
    let mut cloud = Cloud::new("stock").await;
    let (admin, member) = (cloud.keystone.user("admin").await, cloud.keystone.user("member").await);
    cloud.add_user("admin", &admin);
    cloud.add_user("member", &member);
    for (command, rows) in [
        ("server list", 3),
        ("hypervisor list", 1),
        ("accelerator device list", 4),
        ("accelerator arq list", 0),
    ] {
        let (code, out, err) = cloud.openstack(&format!("--os-cloud admin {command} -f json")).await;
        assert_eq!(code, 0, "{command}: {out}{err}");
        let list: Value =
            serde_json::from_str(&out).unwrap_or_else(|error| panic!("{command}: {error}: {out}{err}"));
        assert_eq!(list.as_array().map(Vec::len), Some(rows), "{command}: {out}");
    }
    let (code, _, err) = cloud.openstack("--os-cloud member accelerator device list").await;
    assert!(code != 0 && err.contains("403"), "{err}");
    let (code, out, err) = cloud.openstack("--os-cloud member accelerator arq list -f json").await;
    assert_eq!(code, 0, "{out}{err}");
}

#[tokio::test]
async fn the_own_command_line_authenticates_like_the_stock_clients() {
    let mut cloud = Cloud::new("own").await;
    let user = cloud.keystone.user("admin").await;
    cloud.add_user("admin", &user);
    let token = cloud.keystone.login(&user).await;
    cloud.add("token", "token", &[("token", &token)]);
    let path = format!("/users/{}/application_credentials", user.id);
    let body = json!({ "application_credential": { "name": "ci", "secret": PASSWORD } });
    let made = cloud.keystone.ask(Method::POST, &path, &token, Some(body)).await;
    let id = made["application_credential"]["id"].as_str().unwrap();
    let secret = ("application_credential_secret", PASSWORD);
    cloud.add("credential", "v3applicationcredential", &[("application_credential_id", id), secret]);
    cloud.add(
        "wrong",
        "password",
        &[("username", &user.name), ("password", "wrong"), ("user_domain_id", "default")],
    );
    for name in ["admin", "token", "credential"] {
        let (code, out, err) = cloud.hotslot(&format!("--os-cloud {name} host list")).await;
        assert!(code == 0 && out.contains("node1"), "{name}: {code} {out}{err}");
    }
    let (_, _, err) = cloud.hotslot("--os-cloud wrong host list").await;
    assert!(err.contains("401") && err.contains("check the user"), "{err}");
    let (_, _, err) = cloud.hotslot("--os-cloud none host list").await;
    assert!(err.contains("no cloud `none`") && err.contains("credential"), "{err}");

    let url = cloud.keystone.url();
    let variables = [
        ("OS_AUTH_URL", url),
        ("OS_USERNAME", user.name.as_str()),
        ("OS_PASSWORD", PASSWORD),
        ("OS_USER_DOMAIN_NAME", "Default"),
        ("OS_PROJECT_ID", user.project.as_str()),
        ("OS_REGION_NAME", "own"),
    ];
    let (code, out, err) = cloud.run(&binary(), "host list", &variables).await;
    assert!(code == 0 && out.contains("node1"), "{out}{err}");
    // The address may be given instead of the catalog's.
    let elsewhere = [&variables[..5], &[("OS_REGION_NAME", "none")]].concat();
    let (_, _, err) = cloud.run(&binary(), "host list", &elsewhere).await;
    assert!(err.contains("no public endpoint") && err.contains("--url"), "{err}");
    let (code, out, err) =
        cloud.run(&binary(), &format!("host list --url {}", cloud.service.url()), &elsewhere).await;
    assert!(code == 0 && out.contains("node1"), "{out}{err}");
    let (code, _, err) = cloud.run(&binary(), &format!("host list --url {}", cloud.service.url()), &[]).await;
    assert!(code != 0 && !err.is_empty(), "{err}");
}
