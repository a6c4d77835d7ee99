//! What the service tells the service manager (sd_notify(3)).

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use hotslot_tests::{Hotslot, postgres};

/// The socket of a service manager that starts the service with a watchdog.
struct Manager {
    socket: UnixDatagram,
    /// The shell command that tells the service of it.
    environment: String,
    _dir: tempfile::TempDir,
}

impl Manager {
    fn with_watchdog(limit: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let environment =
            format!("export NOTIFY_SOCKET={} WATCHDOG_USEC={}", path.display(), limit.as_micros());
        Self { socket, environment, _dir: dir }
    }

    /// Returns the messages of a time.
    fn heard(&self, time: Duration) -> Vec<String> {
        let mut messages = Vec::new();
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            messages.extend(self.next(left));
        }
        messages
    }

    /// Returns the messages up to the first one that contains a text.
    fn until(&self, text: &str) -> Vec<String> {
        let mut messages = Vec::new();
        let end = Instant::now() + Duration::from_secs(30);
        while messages.last().is_none_or(|last: &String| !last.contains(text)) {
            assert!(Instant::now() < end, "no `{text}` among {messages:?}");
            messages.extend(self.next(Duration::from_secs(1)));
        }
        messages
    }

    fn next(&self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut buffer = [0; 1024];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                None
            }
        }
    }
}

const SIGN_OF_LIFE: &str = "WATCHDOG=1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_is_told_of_the_start_of_life_and_of_the_stop() {
    let manager = Manager::with_watchdog(Duration::from_millis(600));
    let mut service = Hotslot::on("small").await;
    service.kill();
    service.start_again_after(&manager.environment).await;
    let first = manager.next(Duration::from_secs(10)).unwrap();
    assert!(first.starts_with("READY=1\nSTATUS=answers at http://127.0.0.1:"), "{first}");
    manager.until(SIGN_OF_LIFE);
    let status = manager.until("STATUS=").pop().unwrap();
    assert!(status.contains("1 of 1 hosts are connected"), "{status}");

    // A process that does not run shows no sign of life, and systemd would start it again.
    service.signal("STOP");
    manager.heard(Duration::from_millis(100));
    assert_eq!(manager.heard(Duration::from_secs(1)), Vec::<String>::new());
    service.signal("CONT");
    manager.until(SIGN_OF_LIFE);

    service.signal("TERM");
    let stop = manager.until("STOPPING=1").pop().unwrap();
    assert!(stop.starts_with("STOPPING=1\nSTATUS="), "{stop}");
    assert!(service.ended(Duration::from_secs(15)).await);
}

/// A new process could not start without its PostgreSQL server, so that the service is not started again for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_postgresql_server_the_service_lives_and_says_so() {
    let mut server = postgres::Server::start();
    let url = server.database().await;
    let mut service = Hotslot::on("small").await.moved_to(&url).await;
    service.kill();
    let manager = Manager::with_watchdog(Duration::from_millis(1500));
    service.start_again_after(&manager.environment).await;
    manager.until(SIGN_OF_LIFE);
    server.tell("freeze");
    manager.until("STATUS=the database has not answered for 500ms");
    manager.until(SIGN_OF_LIFE);
    server.tell("thaw");
    manager.until("STATUS=answers at");
}
