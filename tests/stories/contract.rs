//! The description of the API, as other programs read it: schemathesis sends generated requests, and a generated client
//! attaches and detaches a device.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hotslot_tests::keystone::python;
use hotslot_tests::{Hotslot, Q35, host};

const CONFIG: &str = r#"
[attach]
verify = "off"
[[flavor]]
name = "fast"
extra_specs = { "pci_passthrough:alias" = "vf:1" }
[[webhook]]
name = "billing"
url = "http://127.0.0.1:9/"
secret = "a secret that is long enough for a test"
[pci]
device_spec = ['{"vendor_id": "8086"}', '{"vendor_id": "1234"}']
alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}']
"#;

/// Starts a service whose only server is q35, so that every list of servers begins with one that has free ports.
async fn service() -> Hotslot {
    let others = |host: &Path| {
        for name in ["full", "i440fx", "switch"] {
            std::fs::remove_file(host.join("domains").join(name).with_extension("xml")).expect("a domain");
        }
    };
    Hotslot::bare(&host("small"), CONFIG, others).await
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the command of a program of the Python environment.
fn program(name: &str) -> Command {
    let bin = python().parent().expect("the directory of the programs").to_owned();
    let others = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(bin.join(name));
    command.env("PATH", format!("{}:{others}", bin.display())).current_dir(root());
    command
}

/// Whether the long tests run.
fn is_long() -> bool {
    std::env::var_os("HOTSLOT_LONG_WALK").is_some()
}

/// Runs a command in a thread of its own, so that it does not block the runtime of the test. It must succeed.
async fn run(mut command: Command) -> Output {
    let ran = tokio::task::spawn_blocking(move || command.output()).await.expect("a thread");
    let ran = ran.expect("run the program");
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}{err}");
    ran
}

/// Every operation gets requests that are as the description says and requests that are not, one by one and in the order
/// of its links. With `HOTSLOT_LONG_WALK` there are more of them.
#[tokio::test]
async fn generated_requests_get_the_answers_that_are_described() {
    let service = service().await;
    let mut st = program("st");
    st.args(["--config-file", "tests/contract/schemathesis.toml", "--no-color", "run"])
        .arg(format!("{}/openapi.json", service.url()));
    if is_long() {
        st.args(["--max-examples", "100"]);
    }
    run(st).await;
}

/// Returns the directory of the generated package.
async fn generated(dir: &Path) -> PathBuf {
    let package = dir.join("hotslot_api");
    let mut generator = program("openapi-python-client");
    generator
        .args([
            "generate",
            "--fail-on-warning",
            "--meta",
            "none",
            "--config",
            "tests/contract/python-client.yaml",
        ])
        .args(["--path", "docs/openapi.json", "--output-path"])
        .arg(&package);
    run(generator).await;
    package
}

#[tokio::test]
async fn a_generated_python_client_attaches_and_detaches() {
    let service = service().await;
    let dir = tempfile::tempdir().expect("a directory");
    generated(dir.path()).await;
    let mut script = program("python");
    script
        .arg("tests/contract/attach.py")
        .arg(service.url())
        .args([Q35, "vf:1"])
        .env("PYTHONPATH", dir.path());
    run(script).await;
    service.expect_clean().await;
}

/// The client is a workspace of its own, whose first build takes a minute. Only the long tests build it.
#[tokio::test]
async fn a_generated_rust_client_attaches_and_detaches() {
    if !is_long() {
        return;
    }
    let service = service().await;
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["run", "--quiet", "--locked", "--manifest-path"])
        .arg(root().join("tests/generated/Cargo.toml"))
        .arg("--target-dir")
        .arg(root().join("target/generated"))
        .args(["--", service.url(), Q35, "vf:1"]);
    run(cargo).await;
    service.expect_clean().await;
}
