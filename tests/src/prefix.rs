//! A proxy on this machine that serves another service under a prefix, as a web server in front of it does.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// The maximum size of the head of a request, in bytes.
const HEAD: usize = 64 * 1024;

/// Opens a port of loopback that serves the service at `target` under a prefix such as `/prefix`. Returns its address.
pub async fn under(prefix: &'static str, target: u16) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(pass_on(near, prefix, target));
        }
    });
    format!("http://127.0.0.1:{port}")
}

/// Passes on one request. The connection is closed after it, so that no second one arrives with the prefix.
async fn pass_on(mut near: TcpStream, prefix: &str, target: u16) -> io::Result<()> {
    let mut request = Vec::new();
    let end = loop {
        if let Some(at) = request.windows(4).position(|end| end == b"\r\n\r\n") {
            break at;
        }
        if request.len() > HEAD || near.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&request[..end]).into_owned();
    let Some(head) = without_prefix(&head, prefix) else {
        return near
            .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .await;
    };
    let mut far = TcpStream::connect(("127.0.0.1", target)).await?;
    far.write_all(head.as_bytes()).await?;
    far.write_all(&request[end..]).await?;
    copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}

/// Returns the head of a request as the service behind the proxy gets it; `None` for a path without the prefix.
fn without_prefix(head: &str, prefix: &str) -> Option<String> {
    let (line, headers) = head.split_once("\r\n")?;
    let (method, rest) = line.split_once(' ')?;
    let path = rest.strip_prefix(prefix)?;
    let is_kept = |header: &&str| !header.to_ascii_lowercase().starts_with("connection:");
    let headers: Vec<_> = headers.split("\r\n").filter(is_kept).collect();
    Some(format!("{method} {path}\r\n{}\r\nconnection: close", headers.join("\r\n")))
}
