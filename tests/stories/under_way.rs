//! What operators see of attaches and detaches while they are under way: in answers, on the command line, and in
//! `hotslot top`.

use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use hotslot_tests::{Hotslot, Q35, binary, host};
use serde_json::Value;

/// A command that runs in a terminal of 80 columns and 24 lines, which `script` makes.
struct InTerminal {
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl InTerminal {
    fn run(service: &Hotslot, arguments: &str) -> Self {
        let line = format!("stty rows 24 cols 80; exec {} {arguments}", binary().display());
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"])
            .env("HOTSLOT_URL", service.url())
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run script");
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let (mut output, copy) = (child.stdout.take().expect("the output"), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                copy.lock().unwrap().extend_from_slice(&bytes[..length]);
            }
        });
        Self { child, shown }
    }

    /// Everything that was written to the terminal.
    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// What the terminal shows now.
    fn screen(&self) -> String {
        let [rows, columns] = [24, 80].map(|size| NonZeroU16::new(size).expect("a size"));
        let mut terminal = vt100::Parser::new(rows, columns, 0);
        terminal.process(&self.shown.lock().unwrap());
        terminal.screen().contents()
    }

    fn press(&mut self, key: &str) {
        self.child.stdin.as_mut().expect("the input").write_all(key.as_bytes()).expect("press");
    }

    /// Waits for the end, and returns the exit code.
    async fn end(mut self) -> Option<i32> {
        tokio::task::spawn_blocking(move || self.child.wait().expect("wait").code()).await.expect("an end")
    }
}

fn run(service: &Hotslot, arguments: &str) -> (Option<i32>, String) {
    let output = Command::new(binary())
        .args(arguments.split(' '))
        .env("HOTSLOT_URL", service.url())
        .output()
        .expect("run hotslot");
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

async fn operation(service: &Hotslot) -> Value {
    service.attachments(Q35).await.first().map_or(Value::Null, |row| row["operation"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attach_shows_its_step_and_its_limit() {
    let service = Hotslot::with(&host("small"), "[libvirt]\nattach_timeout = 90\n").await;
    service.sim("fault attach hang");
    let attach = InTerminal::run(&service, "attach q35 vf --trace");
    service.until("libvirt is called", async || operation(&service).await["step"] == "plug").await;
    let shown = operation(&service).await;
    assert_eq!(shown["name"], "attach", "{shown}");
    assert!(shown["ends_by"].is_string() && shown["began_at"].is_string(), "{shown}");
    let step = "libvirt is plugging the device, up to ";
    service.until("the step is shown", async || attach.shown().contains(step)).await;
    let top = run(&service, "top --once").1;
    assert!(top.contains("0000:04:10.0   attach") && top.contains(step), "{top}");
    service.sim("fault clear");
    service.until("the trace is shown", async || attach.shown().contains("libvirt's own attach took")).await;
    let shown = attach.shown();
    assert!(shown.contains("libvirt attach") && shown.contains("choose"), "{shown}");
    assert_eq!(attach.end().await, Some(0));
    assert!(operation(&service).await.is_null());
    // Without an agent the address is not verified, which is no failure.
    service.sim("agent i440fx gone");
    let (code, out) = run(&service, "attach i440fx e1000e --trace");
    assert!(code == Some(0) && out.contains("   not verified: no guest agent answers\n"), "{out}");
    assert!(out.contains(" ms without verify; of these, libvirt's own attach took"), "{out}");
    run(&service, "detach i440fx e1000e");
    let (code, out) = run(&service, "detach q35 vf --trace -o json");
    let detached: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(code, Some(0));
    assert_eq!(detached[0]["trace"]["parts"][0]["name"], "detach", "{detached}");
    service.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detach_shows_its_attempt_and_its_limit() {
    let mut service = Hotslot::on("small").await;
    service.reconfigure("attempts = 2\ntimeout = 0.4", "attempts = 3\ntimeout = 2");
    service.kill();
    service.start_again().await;
    service.attach(Q35, "vf:1").await.expect(200);
    service.sim("guest q35 unplug=ignore");
    let detach = InTerminal::run(&service, "detach q35 vf");
    let attempt = "asked the guest to release the device, attempt 2 of 3, up to 2 s each";
    service.until("the attempt is shown", async || detach.shown().contains(attempt)).await;
    assert_eq!(operation(&service).await["name"], "detach");
    assert_eq!(detach.end().await, Some(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_follows_the_service_until_a_key_ends_it() {
    let service = Hotslot::on("small").await;
    let (code, once) = run(&service, "top");
    assert_eq!(code, Some(0));
    for part in [
        "Hosts:\n",
        "node1   up",
        "Under way: nothing is being attached or detached",
        "Events, the latest first",
    ] {
        assert!(once.contains(part), "{part}: {once}");
    }
    let (_, json) = run(&service, "top -o json");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["hosts"][0]["host"], "node1", "{json}");

    let mut top = InTerminal::run(&service, "top");
    service.until("the hosts are shown", async || top.screen().contains("node1")).await;
    service.attach(Q35, "vf:1").await.expect(200);
    service.until("an event is shown", async || top.screen().contains("attachment.state")).await;
    top.press("q");
    assert_eq!(top.end().await, Some(0));
}

#[tokio::test]
async fn status_is_one_screen_with_an_exit_code() {
    let service = Hotslot::on("small").await;
    let (code, screen) = run(&service, "status");
    assert_eq!(code, Some(0), "{screen}");
    assert!(screen.lines().count() <= 24 && screen.contains("host node1"), "{screen}");
    service.attach(Q35, "vf:1").await.expect(200);
    service.sim("guest q35 unplug=ignore");
    run(&service, "detach q35 vf");
    let (code, screen) = run(&service, "status");
    assert_eq!(code, Some(1), "{screen}");
    assert!(
        screen.lines().any(|line| line.starts_with('!') && line.contains("q35 vf 0000:04:10.0   detaching")),
        "{screen}"
    );
}
