//! The unix socket: its mode and group, and which service removes its file.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hotslot_tests::{Hotslot, Q35, attachments, binary};

use crate::users::{as_nobody, chmod, mode, program_for_all};

/// Returns the service on a unix socket in a directory that does not exist yet, started with this umask.
pub(crate) async fn at_socket(umask: &str, config: &str) -> (Hotslot, PathBuf, tempfile::TempDir) {
    let mut service = Hotslot::on("small").await;
    service.kill();
    let dir = tempfile::tempdir().unwrap();
    chmod(dir.path(), 0o755);
    let socket = dir.path().join("run/hotslot/api.sock");
    let listen = format!("listen = \"unix:{}\"\n{config}", socket.display());
    service.reconfigure("listen = \"127.0.0.1:0\"\ninsecure_tcp = true\n", &listen);
    service.start_again_after(&format!("umask {umask}")).await;
    (service, socket, dir)
}

#[tokio::test]
async fn the_socket_has_the_configured_mode_and_group_with_any_umask() {
    for umask in ["0", "077", "0777"] {
        let (service, socket, _dir) = at_socket(umask, "socket_group = \"1\"\n").await;
        let found = fs::metadata(&socket).unwrap();
        assert_eq!((found.mode() & 0o7777, found.gid()), (0o660, 1), "umask {umask}");
        assert_eq!(mode(socket.parent().unwrap()), 0o755);
        service.attach(Q35, "vf:1").await.expect(200);
    }
    // A user outside of the group learns how to join it. The program is copied to a place where every user may run it.
    let (mut service, socket, dir) = at_socket("022", "socket_group = \"1\"\n").await;
    let program = program_for_all(dir.path());
    let output = as_nobody(&format!("{} host list --url unix:{}", program.display(), socket.display()));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{error}");
    assert!(error.contains("usermod -aG daemon"), "{error}");
    let run = socket.parent().unwrap();
    chmod(run, 0o700);
    let output = as_nobody(&format!("{} host list --url unix:{}", program.display(), socket.display()));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains(&format!("{} does not let this user in", run.display())), "{error}");
    service.kill();
    let log = service.log_length();
    service.start_again().await;
    let log = service.log_from(log);
    assert!(log.contains(&format!("cannot get through {}", run.display())), "{log}");

    let (service, socket, _dir) = at_socket("022", "socket_mode = \"0666\"\n").await;
    assert_eq!(mode(&socket), 0o666);
    assert!(service.log().contains("lets every user of this machine connect"), "{}", service.log());
}

#[tokio::test]
async fn a_stopping_service_does_not_remove_its_successors_socket() {
    let (mut service, socket, dir) = at_socket("022", "").await;
    // A running request keeps the service alive for the grace period.
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream
        .write_all(
            format!(
                "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: 100\r\n\r\n{{",
                attachments(Q35)
            )
            .as_bytes(),
        )
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    service.signal("TERM");
    let mut waited = 0;
    while UnixStream::connect(&socket).is_ok() && waited < 50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        waited += 1;
    }
    assert!(!socket.exists(), "it is removed when stopping begins");
    let successor = UnixListener::bind(&socket).unwrap();
    assert!(!service.has_ended(), "the grace period is not over");
    assert!(service.ended(Duration::from_secs(30)).await);
    assert!(socket.exists(), "the successor's socket is left alone");

    // Nor does a new service replace the socket of a running one, or a file that is not a socket.
    let start = || {
        let config = dir.path().join("second.toml");
        let text = format!(
            "[api]\nlisten = \"unix:{}\"\n[database]\nurl = \"sqlite:///proc/none/hotslot.db\"\n",
            socket.display()
        );
        fs::write(&config, text).unwrap();
        let output = Command::new(binary()).arg("serve").arg("--config").arg(&config).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let output = start();
    assert!(output.contains("another service answers there"), "{output}");
    assert!(socket.exists());
    drop(successor);
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "").unwrap();
    let output = start();
    assert!(output.contains("a file that is no socket is there"), "{output}");
    // A start that fails after creating the socket removes it.
    fs::remove_file(&socket).unwrap();
    let output = start();
    assert!(output.contains("/proc/none"), "{output}");
    assert!(!socket.exists(), "{output}");
}
