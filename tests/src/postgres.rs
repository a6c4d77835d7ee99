//! A PostgreSQL of the tests' own: one server for all tests of a process, a database for each.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{Connection as _, PgConnection};

/// Its URL; it serves until its input is closed, which the system does when this process has ended.
static SERVER: OnceLock<(String, Child)> = OnceLock::new();

fn server() -> &'static str {
    let start = || {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/postgres");
        let mut child = Command::new(tool)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tools/postgres does not start");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut url).expect("its URL");
        assert!(url.starts_with("postgres://"), "tools/postgres gave no URL; it has said why");
        (url.trim().to_owned(), child)
    };
    &SERVER.get_or_init(start).0
}

/// Makes an empty database, and answers its URL.
pub async fn database() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let name = format!("test{}", MADE.fetch_add(1, Ordering::Relaxed));
    let mut server = PgConnection::connect(server()).await.expect("connect to PostgreSQL");
    let statement = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::query(statement).execute(&mut server).await.expect("make a database");
    server.close().await.expect("close the connection");
    self::server().replace("/postgres?", &format!("/{name}?"))
}
