//! A proxy in front of PostgreSQL that loses answers and breaks connections.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// A proxy to PostgreSQL that can lose the response to a commit together with its connection.
pub(crate) struct Lossy {
    pub(crate) url: String,
    /// The number of commits that are answered before one is lost; `None` when none is lost.
    pub(crate) commits: Arc<Mutex<Option<usize>>>,
    /// Breaks all connections on the client's side only, so that PostgreSQL does not notice.
    pub(crate) broken: watch::Sender<()>,
    _dir: tempfile::TempDir,
}

impl Lossy {
    pub(crate) fn to(url: &str) -> Self {
        const SOCKET: &str = ".s.PGSQL.5432";
        let (server, directory) = url.split_once("host=").unwrap();
        let far = Path::new(directory).join(SOCKET);
        let dir = tempfile::tempdir().unwrap();
        let near = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let commits: Arc<Mutex<Option<usize>>> = Arc::default();
        let (counted, (broken, breaks)) = (Arc::clone(&commits), watch::channel(()));
        tokio::spawn(async move {
            while let Ok((client, _)) = near.accept().await {
                let server = UnixStream::connect(&far).await.unwrap();
                tokio::spawn(carry(client, server, Arc::clone(&counted), breaks.clone()));
            }
        });
        Self { url: format!("{server}host={}", dir.path().display()), commits, broken, _dir: dir }
    }
}

async fn carry(
    mut client: UnixStream,
    mut server: UnixStream,
    commits: Arc<Mutex<Option<usize>>>,
    mut breaks: watch::Receiver<()>,
) {
    let (mut asked, mut answered) = ([0; 1 << 14], [0; 1 << 14]);
    breaks.mark_unchanged();
    loop {
        tokio::select! {
            _ = breaks.changed() => {
                drop(client);
                return tokio::time::sleep(Duration::from_secs(60)).await;
            }
            length = client.read(&mut asked) => {
                let Ok(length @ 1..) = length else { return };
                let asked = &asked[..length];
                let loses = asked.windows(7).any(|text| text == b"COMMIT\0") && {
                    let mut commits = commits.lock().unwrap();
                    let last = *commits == Some(0);
                    *commits = commits.and_then(|left| left.checked_sub(1));
                    last
                };
                if server.write_all(asked).await.is_err() {
                    return;
                }
                if loses {
                    // The commit is executed, but its response is lost.
                    let _ = server.read(&mut answered).await;
                    return;
                }
            }
            length = server.read(&mut answered) => {
                let Ok(length @ 1..) = length else { return };
                if client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
