//! Requests through the real router on a simulated host: `METHOD PATH`, headers, an empty line and a body; several
//! of them separated by lines of `%%`. The service stays up from input to input.
//!
//! Whatever is asked, an error is in Nova's fault form, and none is the service's own fault; and guests have only
//! devices that the service has put there, each under its alias.

#![no_main]

use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use hotslot_driver::domain::UserAlias;
use hotslot_model::identity::Peer;
use hotslot_service::config::Config;
use hotslot_service::service::Service;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt as _;

const CONFIG: &str = r#"
[pci]
device_spec = ['{"vendor_id": "8086", "physical_network": "p1"}', '{"vendor_id": "1234"}']
alias = [
  '{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}',
  '{"name": "e1000e", "vendor_id": "8086", "product_id": "10d3"}',
  '{"name": "edu", "vendor_id": "1234", "product_id": "11e8"}',
]
[[flavor]]
name = "gzm"
extra_specs = { "pci_passthrough:alias" = "vf:1" }
[detach]
attempts = 1
timeout = 0.05
"#;

struct Served {
    runtime: Runtime,
    service: Arc<Service>,
    router: Router,
    /// Gone with the process.
    _dir: TempDir,
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        // What a test run may have left there is not the host's.
        match (entry.file_type()?.is_dir(), entry.file_name()) {
            (true, name) if name == "state" => {}
            (true, name) => copy(&entry.path(), &to.join(name))?,
            (false, name) => drop(fs::copy(entry.path(), to.join(name))?),
        }
    }
    Ok(())
}

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let host = dir.path().join("host");
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/hosts/small");
    copy(&small, &host).expect("a simulated host");
    let (host, database) = (host.display(), dir.path().join("hotslot.db"));
    let config = format!(
        "[database]\nurl = \"sqlite://{}\"\n{CONFIG}\n[[hypervisor]]\nname = \"node1\"\nuri = \"sim://{host}\"\n",
        database.display()
    );
    let config = Config::parse(&config).expect("a configuration");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let service = runtime.block_on(Service::start(config)).expect("a service");
    let router = hotslot_api::http::router(Arc::clone(&service));
    let served = Served { runtime, service, router, _dir: dir };
    served.runtime.block_on(async {
        while !served.service.hosts.iter().all(|host| host.is_synced()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    served
});

fn request(text: &str) -> Option<Request<Body>> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let (method, path) = lines.next()?.split_once(' ')?;
    let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).ok()?).uri(path);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
    }
    // A body of another type goes no further than that.
    let typed = request.headers_ref()?.contains_key(header::CONTENT_TYPE);
    if !body.is_empty() && !typed {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    request = request.extension(Peer::Unix { uid: 0, gid: 0, pid: None });
    request.body(Body::from(body.to_owned())).ok()
}

async fn check(router: &Router, request: Request<Body>) {
    let described = format!("{} {}", request.method(), request.uri());
    let head = request.method() == Method::HEAD;
    let Ok(response) = router.clone().oneshot(request).await;
    let (status, kind) = (response.status(), response.headers().get(header::CONTENT_TYPE).cloned());
    assert!(
        !status.is_server_error()
            || matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::NOT_IMPLEMENTED),
        "{described}: {status}"
    );
    // Events are followed for as long as one likes.
    if head || kind.is_some_and(|kind| kind == "text/event-stream") {
        return;
    }
    let body = to_bytes(response.into_body(), 64 << 20).await.expect("a body");
    if status.is_client_error() || status.is_server_error() {
        let fault: Value = serde_json::from_slice(&body).expect("a fault in JSON");
        let fault = fault.as_object().and_then(|fault| fault.values().next()).expect("a fault");
        // Cyborg's v2 has a text, which is JSON again; Nova's form has the code.
        if !fault.is_string() {
            assert_eq!(fault["code"], status.as_u16(), "{described}");
            assert!(fault["message"].as_str().is_some_and(|message| !message.is_empty()), "{described}");
        }
    } else if !body.is_empty() {
        serde_json::from_slice::<Value>(&body).expect("JSON");
    }
}

/// Every host device of every guest has an alias of the service, and is a device that it knows.
async fn look(service: &Service) {
    for host in service.hosts.iter() {
        for info in host.hypervisor.domains().await.expect("the domains") {
            let view = host.hypervisor.domain(info.uuid).await.expect("a document that can be read");
            for hostdev in view.live.iter().chain(&view.persistent).flat_map(|domain| &domain.hostdevs) {
                let ours = hostdev.alias.as_deref().and_then(UserAlias::parse);
                assert!(ours.is_some(), "{hostdev:?} is nobody's");
                let known =
                    service.records.devices().iter().any(|device| device.facts.address == hostdev.source);
                assert!(known, "{hostdev:?} is not offered");
            }
        }
    }
}

fuzz_target!(|text: &str| {
    let served = &*SERVED;
    for request in text.split("\n%%\n").take(8).filter_map(request) {
        served.runtime.block_on(check(&served.router, request));
    }
    served.runtime.block_on(look(&served.service));
});
