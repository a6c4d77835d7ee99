//! `hotslot host-helper`, started as systemd starts it: with its socket as standard input.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use hotslot_tests::binary;
use serde_json::{Value, json};

use crate::users::{as_nobody, chmod};

const VF: &str = "0000:41:00.4";

/// The helper with a made-up sysfs, for root and the user nobody.
struct Helper {
    dir: tempfile::TempDir,
    process: Child,
}

impl Helper {
    fn start(user: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        chmod(dir.path(), 0o755);
        let nvidia = dir.path().join(format!("sys/bus/pci/devices/{VF}/nvidia"));
        fs::create_dir_all(&nvidia).unwrap();
        fs::write(nvidia.join("current_vgpu_type"), "0\n").unwrap();
        fs::write(nvidia.join("creatable_vgpu_types"), "ID : vGPU Name\n7 : NVIDIA X-1Q\n").unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        chmod(&socket, 0o666);
        let arguments = ["host-helper", "--user", user, "--root"];
        let mut command = Command::new(binary());
        command.args(arguments).arg(dir.path()).stdin(Stdio::from(OwnedFd::from(listener)));
        let process = command.stderr(Stdio::piped()).spawn().unwrap();
        Self { dir, process }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Sends some bytes and returns the answer; null when there is none.
    fn send(&self, bytes: &[u8]) -> Value {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_default()
    }

    /// As `send`, for what the helper may hang up on.
    fn send_all(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn ask(&self, request: &Value) -> Value {
        self.send(format!("{request}\n").as_bytes())
    }

    fn current(&self) -> String {
        let file = format!("sys/bus/pci/devices/{VF}/nvidia/current_vgpu_type");
        fs::read_to_string(self.dir.path().join(file)).unwrap()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn set(from: Value, to: Value) -> Value {
    json!({ "verb": "set-vgpu-type", "address": VF, "from": from, "to": to })
}

#[test]
fn the_helper_makes_the_changes_that_it_knows_and_no_other() {
    let helper = Helper::start("nobody");
    assert_eq!(helper.ask(&set(Value::Null, json!("nvidia-7"))), json!("done"));
    assert_eq!(helper.current(), "7\n");
    // What somebody else has set stays.
    let refused = helper.ask(&set(json!("nvidia-8"), Value::Null));
    assert!(
        refused["refused"]["message"].as_str().unwrap().contains("which somebody else has set"),
        "{refused}"
    );
    assert_eq!(helper.current(), "7\n");
    let long = vec![b'x'; 100_000];
    for wrong in [
        &b"\n"[..],
        b"{}\n",
        b"\xff\xfe\n",
        br#"{"verb":"set-vgpu-type","address":"../../../../etc","from":null,"to":"nvidia-7"}"#,
        br#"{"verb":"remove","address":"0000:41:00.4"}"#,
        &long,
    ] {
        let answer = helper.send_all(wrong);
        assert!(!answer.contains("done"), "{answer}");
    }
    assert_eq!(helper.ask(&set(json!("nvidia-7"), Value::Null)), json!("done"));
    assert_eq!(helper.current(), "0\n");
}

/// Sends a request as user nobody.
fn as_other(helper: &Helper, request: &Value) -> String {
    let (socket, script) = (helper.socket(), helper.dir.path().join("ask.py"));
    let program = format!(
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({:?})\n\
         try:\n  s.sendall(b'{request}\\n')\nexcept BrokenPipeError:\n  pass # it was refused before it was read\n\
         print(s.recv(4096).decode())\n",
        socket.display().to_string()
    );
    fs::write(&script, program).unwrap();
    chmod(&script, 0o644);
    let output = as_nobody(&format!("python3 {}", script.display()));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_helper_serves_its_user_and_root_alone() {
    let request = set(Value::Null, json!("nvidia-7"));
    let own = Helper::start("nobody");
    assert_eq!(as_other(&own, &request).trim(), "\"done\"");
    let others = Helper::start("daemon");
    let refused = as_other(&others, &request);
    assert!(refused.contains("may not use the helper"), "{refused}");
    assert_eq!(others.current(), "0\n");
}

#[test]
fn the_helper_says_how_it_is_started() {
    for (user, says) in [("root", "systemctl enable --now hotslot-helper.socket"), ("no-such-user", "--user")]
    {
        let mut command = Command::new(binary());
        let output = command.args(["host-helper", "--user", user]).stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(says), "{error}");
    }
}
