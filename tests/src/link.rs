//! A TCP proxy on this machine that can be frozen and cut.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The state of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Data is forwarded.
    Up,
    /// No data is forwarded, and connections stay open.
    Frozen,
    /// All connections are closed, including new ones.
    Cut,
}

/// A port of loopback that is forwarded to another one.
#[derive(Debug)]
pub struct Link {
    port: u16,
    state: watch::Sender<State>,
}

impl Link {
    /// Opens a link to a port.
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (state, seen) = watch::channel(State::Up);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, target, seen.clone()));
            }
        });
        Self { port, state }
    }

    /// The port of the link.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets the state of the link.
    pub fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

async fn carry(near: TcpStream, target: u16, mut seen: watch::Receiver<State>) {
    if *seen.borrow() == State::Cut {
        return;
    }
    let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        _ = pump(near_in, far_out, seen.clone()) => {}
        _ = pump(far_in, near_out, seen.clone()) => {}
        _ = seen.wait_for(|state| *state == State::Cut) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut seen: watch::Receiver<State>,
) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let thawed = seen.wait_for(|state| *state != State::Frozen).await;
        thawed.map_err(io::Error::other)?;
        to.write_all(&buffer[..length]).await?;
    }
}
