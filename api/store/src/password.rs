//! Keeps the password of the database from a server that asks for it in clear text.
//!
//! sqlx answers every way of authentication that a server requests. So the server is asked how it authenticates before
//! sqlx connects for the first time. This refuses a server that is configured so, and a program that waits at the port of a
//! PostgreSQL that does not run. It does not bind later connections: only `sslmode=verify-full`, or a unix socket without
//! a password, protects from a program that answers differently then.

use std::io;
use std::path::Path;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::error::Error;

/// How long the question may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The version of the protocol, 3.0 (PostgreSQL, "Message Formats", StartupMessage).
const PROTOCOL: i32 = 3 << 16;

/// The type of the messages by which a server requests authentication, and the number of AuthenticationCleartextPassword
/// among them (PostgreSQL, "Message Formats").
const AUTHENTICATION: u8 = b'R';
const CLEAR_TEXT: i32 = 3;

/// Refuses a server that requests the password in clear text. With `verify-full` the server has shown who it is, and is
/// not asked. Without it, the server is on this machine ([`check_url`](crate::url::check_url)), and the returned options
/// use no TLS: sqlx would not verify the server, and by TLS it could request another way of authentication than it
/// answered here.
///
/// # Errors
/// [`Error::Invalid`] when the server requests it in clear text; [`Error::Database`] when it cannot be reached.
pub(crate) async fn keep(options: PgConnectOptions) -> Result<PgConnectOptions, Error> {
    if matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
        return Ok(options);
    }
    let options = options.ssl_mode(PgSslMode::Disable);
    let requested = timeout(PATIENCE, request(&options)).await;
    let requested = requested.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match requested.map_err(sqlx::Error::Io)? {
        Some(CLEAR_TEXT) => Err(Error::Invalid(
            "[database] url: the server requests the password in clear text (`password` in its pg_hba.conf), and \
             hotslot does not send it; let the server use scram-sha-256, or peer on its unix socket, or add \
             ?sslmode=verify-full to the URL when the server has a certificate"
                .into(),
        )),
        Some(_) | None => Ok(options),
    }
}

/// Returns the way of authentication that the server requests; `None` when it reports an error, as it will to sqlx.
async fn request(options: &PgConnectOptions) -> io::Result<Option<i32>> {
    let (host, port) = (options.get_host(), options.get_port());
    let directory = host.starts_with('/').then(|| Path::new(host));
    match options.get_socket().map(AsRef::as_ref).or(directory) {
        Some(directory) => {
            let socket = directory.join(format!(".s.PGSQL.{port}"));
            ask(UnixStream::connect(socket).await?, options).await
        }
        None => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            ask(TcpStream::connect((host, port)).await?, options).await
        }
    }
}

async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    options: &PgConnectOptions,
) -> io::Result<Option<i32>> {
    let user = options.get_username();
    let mut message = PROTOCOL.to_be_bytes().to_vec();
    for text in ["user", user, "database", options.get_database().unwrap_or(user), ""] {
        message.extend(text.as_bytes());
        message.push(0);
    }
    // The length counts itself.
    let length = i32::try_from(message.len() + 4).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &message].concat()).await?;
    let kind = stream.read_u8().await?;
    let _length = stream.read_i32().await?;
    if kind == AUTHENTICATION { stream.read_i32().await.map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use tokio::net::TcpListener;

    use super::*;
    use crate::{Store, schema_of};

    /// A program at the port of PostgreSQL that requests the password in clear text. Returns what it is sent.
    async fn impostor(listener: TcpListener) -> Vec<u8> {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut header = [0; 8];
        stream.read_exact(&mut header).await.unwrap();
        stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await.unwrap();
        let mut sent = header.to_vec();
        stream.read_to_end(&mut sent).await.unwrap();
        sent
    }

    #[tokio::test]
    async fn a_server_that_requests_the_password_in_clear_text_does_not_get_it() {
        for mode in ["", "?sslmode=disable", "?sslmode=prefer"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let sent = tokio::spawn(impostor(listener));
            let url = format!("postgres://hotslot:s3cret@127.0.0.1:{port}/hotslot{mode}");
            let error = Store::open(&url, None).await.unwrap_err().to_string();
            assert!(error.contains("in clear text") && error.contains("scram-sha-256"), "{error}");
            let sent = String::from_utf8_lossy(&sent.await.unwrap()).into_owned();
            assert!(sent.contains("hotslot") && !sent.contains("s3cret"), "{sent:?}");
        }
    }

    #[tokio::test]
    async fn reading_the_version_of_the_tables_does_not_send_it_either() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = tokio::spawn(impostor(listener));
        let url = format!("postgres://hotslot:s3cret@127.0.0.1:{port}/hotslot");
        let error = schema_of(&url).await.unwrap_err().to_string();
        assert!(error.contains("in clear text"), "{error}");
        let sent = String::from_utf8_lossy(&sent.await.unwrap()).into_owned();
        assert!(!sent.contains("s3cret"), "{sent:?}");
    }

    #[tokio::test]
    async fn a_server_with_a_verified_certificate_is_not_asked() {
        let options =
            PgConnectOptions::from_str("postgres://localhost:1/hotslot?sslmode=verify-full").unwrap();
        assert!(matches!(keep(options).await.unwrap().get_ssl_mode(), PgSslMode::VerifyFull));
    }
}
