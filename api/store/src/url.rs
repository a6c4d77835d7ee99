//! The URL of a database.

/// Whether a URL names a PostgreSQL database.
pub fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// The file that a `sqlite://` URL names.
pub fn sqlite_file(url: &str) -> &str {
    url.trim_start_matches("sqlite://").split('?').next().unwrap_or_default()
}
