//! The version of the tables: the number of the last migration.

use std::str::FromStr as _;

use sqlx::migrate::Migrate as _;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, PgConnection, SqliteConnection};

use crate::error::Error;
use crate::password;
use crate::url::{is_postgres, sqlite_file};

/// The table in which sqlx notes the migrations.
const TABLE: &str = "_sqlx_migrations";

/// The version of the tables that this build uses.
pub fn schema() -> i64 {
    sqlx::migrate!("./migrations").iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Returns the version of the tables of a database; `None` when it has none yet. Nothing is changed, so this is possible
/// while a service uses the database.
///
/// # Errors
/// Returns [`Error::NotFound`] when a SQLite file does not exist, [`Error::Invalid`] when a server requests the password in
/// clear text, and the error of the database.
pub async fn schema_of(url: &str) -> Result<Option<i64>, Error> {
    let applied = if is_postgres(url) {
        let mut database =
            PgConnection::connect_with(&password::keep(PgConnectOptions::from_str(url)?).await?).await?;
        let found = sqlx::query("SELECT 1 FROM pg_tables WHERE tablename = $1").bind(TABLE);
        match found.fetch_optional(&mut database).await? {
            Some(_) => database.list_applied_migrations(TABLE).await.map_err(sqlx::Error::from)?,
            None => Vec::new(),
        }
    } else {
        let file = sqlite_file(url)?;
        if !file.exists() {
            return Err(Error::NotFound(format!("database {}", file.display())));
        }
        let options = SqliteConnectOptions::new().filename(file).read_only(true);
        let mut database = SqliteConnection::connect_with(&options).await?;
        let found = sqlx::query("SELECT 1 FROM sqlite_master WHERE name = $1").bind(TABLE);
        match found.fetch_optional(&mut database).await? {
            Some(_) => database.list_applied_migrations(TABLE).await.map_err(sqlx::Error::from)?,
            None => Vec::new(),
        }
    };
    Ok(applied.iter().map(|migration| migration.version).max())
}
