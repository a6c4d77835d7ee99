//! A PostgreSQL for the tests: one server for all tests of a process, and one database per test.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{Connection as _, PgConnection};

/// A server. It runs until its standard input is closed, which happens when this process ends.
pub struct Server {
    url: String,
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Server {
    /// Starts a server.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts a server that also listens on loopback with TLS, with the PEM files of its certificate and key.
    pub fn with_tls(certificate: &Path, key: &Path) -> Self {
        Self::with(&[certificate, key])
    }

    fn with(arguments: &[&Path]) -> Self {
        // Crates at different depths of the repository include this file.
        let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
        let tool =
            folders.find_map(|folder| Some(folder.join("tools/postgres")).filter(|tool| tool.exists()));
        let tool = tool.expect("tools/postgres in the repository");
        let mut child = Command::new(tool)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tools/postgres does not start");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let mut server = Self { url: String::new(), child, output };
        server.url = server.line();
        assert!(server.url.starts_with("postgres://"), "tools/postgres gave no URL; the reason is above");
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("its output");
        line.trim().to_owned()
    }

    /// Sends a command and waits for its completion: `stop`, `start`, `freeze`, `thaw`, `standby` or `failover`.
    pub fn tell(&mut self, what: &str) {
        let input = self.child.stdin.as_mut().expect("its input");
        writeln!(input, "{what}").expect("tell tools/postgres");
        assert_eq!(self.line(), "ok", "{what}");
    }

    /// Creates an empty database, and returns its URL.
    pub async fn database(&self) -> String {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("test{}", MADE.fetch_add(1, Ordering::Relaxed));
        let mut server = PgConnection::connect(&self.url).await.expect("connect to PostgreSQL");
        let statement = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::query(statement).execute(&mut server).await.expect("make a database");
        server.close().await.expect("close the connection");
        self.url.replace("/postgres?", &format!("/{name}?"))
    }
}

/// Creates an empty database on the server that all tests of this process share, and returns its URL.
pub async fn database() -> String {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::start).database().await
}
