//! A PostgreSQL of the tests' own: one server for all tests of a process, a database for each.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{Connection as _, PgConnection};

/// A server; it serves until its input is closed, which the system does when this process has ended.
pub struct Server {
    url: String,
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Server {
    /// Starts one.
    pub fn start() -> Self {
        // Crates at several depths of the repository use this file.
        let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
        let tool =
            folders.find_map(|folder| Some(folder.join("tools/postgres")).filter(|tool| tool.exists()));
        let tool = tool.expect("tools/postgres in the repository");
        let mut child = Command::new(tool)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tools/postgres does not start");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let mut server = Self { url: String::new(), child, output };
        server.url = server.line();
        assert!(server.url.starts_with("postgres://"), "tools/postgres gave no URL; it has said why");
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("its output");
        line.trim().to_owned()
    }

    /// Tells it to `stop`, `start`, `freeze`, `thaw`, make a `standby` or `failover`, and waits until that is done.
    pub fn tell(&mut self, what: &str) {
        let input = self.child.stdin.as_mut().expect("its input");
        writeln!(input, "{what}").expect("tell tools/postgres");
        assert_eq!(self.line(), "ok", "{what}");
    }

    /// Makes an empty database, and answers its URL.
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

/// Makes an empty database on the server that all tests of this process share, and answers its URL.
pub async fn database() -> String {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::start).database().await
}
