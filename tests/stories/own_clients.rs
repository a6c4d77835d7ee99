//! hotslot's own clients of `clients/`, with users of a real Keystone.

use std::path::Path;
use std::process::Command;

use hotslot_tests::keystone::{User, python};
use hotslot_tests::oracle::VGPU;
use hotslot_tests::{Hotslot, host, without_mdevs};
use reqwest::Method;
use serde_json::json;

use super::clients;
use super::clouds::Cloud;
use super::socket::at_socket;
use super::vf_settings;

const PCI: &str = r#"
[pci]
device_spec = ['{"address": "*:*:*.*"}']
alias = ['{"name": "qat", "vendor_id": "8086", "product_id": "37c9", "device_type": "type-VF"}']
"#;

const G1: &str = "20000000-0000-4000-8000-000000000001";

/// Makes g1 a server that Nova has not created, with an agent that shows a QAT function behind its first root port.
fn with_agent(host: &Path) {
    without_mdevs(host);
    let file = host.join("domains/g1.xml");
    let document = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = document.split_once("<metadata>").unwrap();
    let document = format!("{before}{}", rest.split_once("</metadata>").unwrap().1);
    let channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>";
    std::fs::write(file, document.replace("<memballoon", &format!("{channel}<memballoon"))).unwrap();
    let file = host.join("host.toml");
    let behaviour = std::fs::read_to_string(&file).unwrap();
    let files = r#"agent_files = { "/sys/bus/pci/devices/0000:00:01.0/secondary_bus_number" = "1\n", "/sys/bus/pci/devices/0000:01:00.0/uevent" = "PCI_ID=8086:37C9\n" }"#;
    std::fs::write(file, format!("{behaviour}\n[guest.g1]\n{files}\n")).unwrap();
}

/// Makes a project the owner of g1; the headers show an administrator.
async fn own(service: &Hotslot, project: &str, headers: &[(&str, &str)]) {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let body = json!({ "pci_owner": { "project_id": project } }).to_string();
    let path = format!("/v2.1/servers/{G1}/pci_owner");
    service.send_with(Method::PUT, &path, headers, Some(body)).await.expect(200);
}

/// Starts a service with an administrator and a member of the project that owns g1.
async fn cloud(region: &str) -> Cloud {
    let mut cloud = Cloud::serving(region, PCI, with_agent).await;
    let (admin, member) = (cloud.keystone.user("admin").await, cloud.keystone.user("member").await);
    cloud.add_user("admin", &admin);
    cloud.add_user("member", &member);
    let token = cloud.keystone.login(&admin).await;
    own(&cloud.service, &member.project, &[("x-auth-token", &token)]).await;
    cloud.add_user("hooked", &member);
    cloud.add_key("vendor_hook: hotslotclient.sdk:register");
    cloud.add_user("elsewhere", &admin);
    cloud.add_key("interface: internal");
    cloud.add_user("wrong", &User { name: "nobody".to_owned(), ..admin });
    cloud
}

fn tests() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a program of the Python environment with the users of a cloud. It must succeed.
async fn run(cloud: &Cloud, program: &str, line: &str, variables: &[(&str, &str)]) {
    let (code, out, err) = cloud.run(&python().with_file_name(program), line, variables).await;
    assert_eq!(code, 0, "{program} {line}:\n{out}{err}");
}

#[tokio::test]
async fn the_commands_of_openstackclient() {
    let cloud = cloud("plugin").await;
    cloud.service.sim("guest g2 unplug=refuse");
    let (script, list) = ("clients/commands.py", "data/plugin-commands.json");
    let line = format!("{} {}", tests().join(script).display(), tests().join(list).display());
    run(&cloud, "python", &line, &[]).await;
}

#[tokio::test]
async fn the_commands_of_openstackclient_for_vfs() {
    let service = Hotslot::bare(&host("small"), vf_settings::CONFIG, |_| ()).await;
    let list = tests().join("data/plugin-vf-commands.json");
    clients::run(&service, "commands.py", &[list.to_str().unwrap()]).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn the_python_api() {
    let script = tests().join("clients/pci_sdk.py");
    run(&cloud("python").await, "python", &script.display().to_string(), &[]).await;
}

/// A proxy in the environment is not asked.
#[tokio::test]
async fn the_python_api_at_the_unix_socket() {
    let (_service, socket, _dir) = at_socket("022", "").await;
    let mut command = Command::new(python());
    command.arg(tests().join("clients/pci_sdk.py")).arg(&socket).env("http_proxy", "http://127.0.0.1:1");
    let ran = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// hotslot's own Tempest plugin.
#[tokio::test]
async fn the_tests_of_the_tempest_plugin() {
    let mut service = Hotslot::bare(&host("accelerators"), PCI, with_agent).await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    let admin = [("x-identity-status", "Confirmed"), ("x-user-id", "admin"), ("x-roles", "admin")];
    own(&service, "demo", &[&admin[..], &[("x-project-id", "demo")]].concat()).await;
    clients::tempest(&service, "hotslot_tempest_plugin").await;
}

/// The collection is installed from its package.
#[tokio::test]
async fn the_module_of_ansible() {
    let cloud = cloud("ansible").await;
    cloud.service.sim("guest g2 unplug=refuse");
    let clouds = cloud.file();
    let variables = [
        ("OS_CLIENT_CONFIG_FILE", clouds.to_str().unwrap()),
        ("LC_ALL", "C.UTF-8"),
        ("ANSIBLE_COLLECTIONS_PATH", "collections"),
        ("ANSIBLE_INVENTORY_UNPARSED_WARNING", "false"),
        ("ANSIBLE_LOCALHOST_WARNING", "false"),
        ("ANSIBLE_PIPELINING", "true"),
    ];
    let collection = tests().join("../clients/ansible");
    let version = env!("CARGO_PKG_VERSION");
    for (program, line) in [
        ("ansible-galaxy", format!("collection build {} --output-path .", collection.display())),
        (
            "ansible-galaxy",
            format!("collection install hotslot-pci-{version}.tar.gz --offline -p collections"),
        ),
        ("ansible-doc", "--type module hotslot.pci.pci_attachment".to_owned()),
        ("ansible-playbook", tests().join("data/playbook.yml").display().to_string()),
    ] {
        run(&cloud, program, &line, &variables).await;
    }
    for (name, config, playbook) in
        [("small", vf_settings::CONFIG, "playbook-vf.yml"), ("vgpu", VGPU, "playbook-vgpu.yml")]
    {
        let vfs = Hotslot::bare(&host(name), config, |_| ()).await;
        let playbook = tests().join("data").join(playbook);
        let line = format!("{} --extra-vars endpoint={}", playbook.display(), vfs.url());
        run(&cloud, "ansible-playbook", &line, &variables).await;
        vfs.expect_clean().await;
    }
    cloud.service.sim("guest g2 unplug=ignore");
    let unresponsive = tests().join("data/playbook-unresponsive.yml").display().to_string();
    run(&cloud, "ansible-playbook", &unresponsive, &variables).await;
}

#[test]
fn the_clients_have_the_version_of_the_service() {
    for (file, key) in [
        ("python/pyproject.toml", "version = \"{}\""),
        ("tempest/pyproject.toml", "version = \"{}\""),
        ("ansible/galaxy.yml", "version: {}"),
    ] {
        let text = std::fs::read_to_string(tests().join("../clients").join(file)).unwrap();
        let line = key.replace("{}", env!("CARGO_PKG_VERSION"));
        assert!(text.lines().any(|other| other == line), "{file} has no line {line}");
    }
}
