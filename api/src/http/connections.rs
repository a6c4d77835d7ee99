//! Accepts and serves connections, with limits on their number and with time-outs.
//!
//! `axum::serve` has no such limits and time-outs, and builds the routes again for each connection.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use hotslot_model::identity::{Origin, Peer};
use hotslot_service::config::Api;
use hotslot_service::metrics::CONNECTIONS;
use hotslot_service::rate::is_exempt;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::connection::Connection;
use super::requests::{Client, Requests, refuse};
use super::tls::{self, Tls};

/// How long an idle connection is protected from being closed to make room: a client that has just connected is about
/// to send a request.
const FRESH: Duration = Duration::from_millis(300);

/// How many connections root and hotslot's own user have when all others are taken.
const RESERVED: usize = 16;

/// How many idle connections are closed at once when the process has no file descriptors left; other parts of the
/// service need descriptors too.
const MAKE_ROOM: usize = 64;

/// How often connections are checked for time-outs.
const LOOK: Duration = Duration::from_secs(1);

/// The pause before accepting is tried again, and between two looks for room.
const AGAIN: Duration = Duration::from_millis(50);

/// The minimum time between two warnings about connections in the log.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// How many clients wait for room, or are sent a 503, at a time. Further connections are closed without a response.
const WAITING: usize = 32;
/// How long sending such a 503 may take.
const REFUSAL: Duration = Duration::from_secs(1);

/// The socket on which clients connect.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A TCP port with TLS.
    Tls(TcpListener, Tls),
    /// A unix socket.
    Unix(UnixListener),
}

/// Serves the routes on all connections until `stop` completes, and then until the running requests are answered.
/// Errors of accepting, such as a lack of file descriptors, do not end it.
pub async fn serve(listener: Listener, router: Router, api: &Api, stop: impl Future<Output = ()>) {
    let router = match &listener {
        Listener::Tls(..) => tls::with_https_links(router),
        Listener::Tcp(_) | Listener::Unix(_) => router,
    };
    // All connections share these routes.
    let router = router.with_state(());
    let open = Arc::new(Open::new(api));
    let stopping = watch::Sender::new(false);
    let times = tokio::spawn(Arc::clone(&open).watch_times());
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = open.next(&listener) => accepted,
        };
        let (stream, place) = accepted;
        let (open, router, stopping) = (Arc::clone(&open), router.clone(), stopping.subscribe());
        tokio::spawn(async move {
            let (stream, place) = match place {
                Ok(place) => (stream, place),
                Err(turn) => match open.wait_for_room(stream, turn).await {
                    Some(placed) => placed,
                    None => return,
                },
            };
            let connection = Arc::clone(&place.connection);
            let requests = Requests { connection, router, stopping };
            match stream {
                Stream::Tcp(stream, peer) => {
                    let client = Client::at_tcp(&stream, peer);
                    requests.serve(stream, client).await;
                }
                Stream::Tls(stream, peer, acceptor) => requests.serve_tls(stream, peer, acceptor).await,
                Stream::Unix(stream) => {
                    let client = Client::at(by_kernel(&stream));
                    requests.serve(stream, client).await;
                }
            }
            drop(place);
        });
    }
    drop(listener);
    stopping.send_replace(true);
    open.all_ended().await;
    times.abort();
}

enum Stream {
    Tcp(TcpStream, Peer),
    Tls(TcpStream, Peer, TlsAcceptor),
    Unix(UnixStream),
}

impl Stream {
    /// Returns whose connections count together; `None` when they are not limited.
    fn origin(&self) -> Option<Origin> {
        let peer = match self {
            Self::Tcp(_, peer) | Self::Tls(_, peer, _) => Some(*peer),
            Self::Unix(stream) => by_kernel(stream),
        };
        Some(peer?.origin()).filter(|origin| !is_exempt(*origin))
    }
}

/// Returns the process that connected to a unix socket.
fn by_kernel(stream: &UnixStream) -> Option<Peer> {
    let found = stream
        .peer_cred()
        .inspect_err(|error| tracing::warn!(%error, "the kernel does not tell who connected"));
    let found = found.ok()?;
    Some(Peer::Unix { uid: found.uid(), gid: found.gid(), pid: found.pid() })
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        // Small messages, such as single events, must not be delayed by Nagle's algorithm.
        let at_once = |(stream, address): (TcpStream, SocketAddr)| {
            stream.set_nodelay(true).map(|()| (stream, Peer::Tcp(address)))
        };
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await.and_then(at_once)?;
                Ok(Stream::Tcp(stream, peer))
            }
            Self::Tls(listener, tls) => {
                let (stream, peer) = listener.accept().await.and_then(at_once)?;
                Ok(Stream::Tls(stream, peer, tls.acceptor()))
            }
            Self::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

/// All open connections.
struct Open {
    connections: Mutex<(u64, HashMap<u64, Arc<Connection>>)>,
    most: usize,
    header: Duration,
    idle: Duration,
    /// Notified when a connection has been opened.
    begun: Notify,
    /// Notified when a connection has been closed.
    ended: Notify,
    waiting: Arc<Semaphore>,
    last_warning: Mutex<Option<Instant>>,
}

impl Open {
    fn new(api: &Api) -> Self {
        Self {
            connections: Mutex::default(),
            most: usize::try_from(api.connections.get()).unwrap_or(usize::MAX),
            header: api.header_timeout.0,
            idle: api.idle_timeout.0,
            begun: Notify::new(),
            ended: Notify::new(),
            waiting: Arc::new(Semaphore::new(WAITING)),
            last_warning: Mutex::default(),
        }
    }

    fn connections(&self) -> MutexGuard<'_, (u64, HashMap<u64, Arc<Connection>>)> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts a connection, and returns it with its place, or with the turn to wait for one.
    async fn next(self: &Arc<Self>, listener: &Listener) -> (Stream, Result<Place, OwnedSemaphorePermit>) {
        loop {
            match listener.accept().await {
                Ok(stream) => match self.room(stream.origin()) {
                    Some(place) => return (stream, Ok(place)),
                    None => match Arc::clone(&self.waiting).try_acquire_owned() {
                        Ok(turn) => return (stream, Err(turn)),
                        Err(_) => self.busy(stream.origin()),
                    },
                },
                // The client closed the connection before it was accepted.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    self.say(&format_args!(
                        "no connection can be accepted: {error}; closing idle connections"
                    ));
                    self.close_idlest(MAKE_ROOM, None);
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Waits until the longest idle connection is not fresh any more, and returns the stream with its place. When there is
    /// no room then, the client is sent a 503.
    async fn wait_for_room(
        self: &Arc<Self>,
        stream: Stream,
        _turn: OwnedSemaphorePermit,
    ) -> Option<(Stream, Place)> {
        let until = Instant::now() + 2 * FRESH;
        while Instant::now() < until {
            sleep(AGAIN).await;
            if let Some(place) = self.room(stream.origin()) {
                return Some((stream, place));
            }
        }
        self.busy(stream.origin());
        send_refusal(stream).await;
        None
    }

    /// Logs that a connection is refused.
    fn busy(&self, origin: Option<Origin>) {
        let whose = origin.map_or_else(String::new, |origin| format!(" of {origin}"));
        self.say(&format_args!(
            "all connections{whose} are busy; refusing new connections ([api] connections = {})",
            self.most
        ));
    }

    /// Logs a warning, at most once per [`WARN_INTERVAL`].
    fn say(&self, what: &dyn std::fmt::Display) {
        let mut last_warning = self.last_warning.lock().unwrap_or_else(PoisonError::into_inner);
        if last_warning.is_none_or(|last_warning| last_warning.elapsed() > WARN_INTERVAL) {
            *last_warning = Some(Instant::now());
            tracing::warn!("{what}");
        }
    }

    /// Returns a place for another connection, closing the longest idle connection if necessary. Returns `None` when no
    /// connection can be closed. It never waits, because connections of others are to be accepted.
    fn room(self: &Arc<Self>, origin: Option<Origin>) -> Option<Place> {
        loop {
            match self.place(origin) {
                Ok(place) => return Some(place),
                Err(whose) if self.close_idlest(1, whose) => {}
                Err(_) => return None,
            }
        }
    }

    /// Opens a connection. One user or address has at most three quarters of all connections, so that it cannot take
    /// them from everybody else; root and hotslot's own user have some more than all together. Connections that are
    /// being closed to make room do not count.
    ///
    /// # Errors
    /// When there is no room: whose connections are too many, or `None` when all together are.
    fn place(self: &Arc<Self>, origin: Option<Origin>) -> Result<Place, Option<Origin>> {
        let mut connections = self.connections();
        let counted = || connections.1.values().filter(|one| !one.unwanted.load(Ordering::Relaxed));
        if origin.is_some()
            && counted().filter(|one| one.origin == origin).count() >= self.most - self.most / 4
        {
            return Err(origin);
        }
        let most = if origin.is_some() { self.most } else { self.most + RESERVED };
        // Counting is only needed when there may be no room.
        if connections.1.len() >= most && counted().count() >= most {
            return Err(None);
        }
        let connection = Arc::new(Connection::new(origin, self.header, self.idle));
        connections.0 += 1;
        let number = connections.0;
        connections.1.insert(number, Arc::clone(&connection));
        CONNECTIONS.inc();
        self.begun.notify_one();
        Ok(Place { open: Arc::clone(self), number, connection })
    }

    /// Closes up to `count` of the longest idle connections, of all or of one user or address, except those idle for
    /// less than [`FRESH`]. Returns whether there was one.
    fn close_idlest(&self, count: usize, of: Option<Origin>) -> bool {
        let connections = self.connections();
        let those = connections.1.values().filter(|one| of.is_none() || one.origin == of);
        let those = those.filter(|one| !one.unwanted.load(Ordering::Relaxed));
        let idle = those.filter_map(|one| Some((one.idle_since()?, one)));
        let mut idle: Vec<_> = idle.filter(|(since, _)| since.elapsed() >= FRESH).collect();
        idle.sort_by_key(|(since, _)| *since);
        for (_, one) in idle.iter().take(count) {
            one.unwanted.store(true, Ordering::Relaxed);
            one.check.notify_one();
        }
        !idle.is_empty()
    }

    /// Wakes the connections whose time limit has passed, so that they close.
    async fn watch_times(self: Arc<Self>) {
        loop {
            if self.connections().1.is_empty() {
                self.begun.notified().await;
            }
            sleep(LOOK).await;
            for connection in self.connections().1.values().filter(|one| one.is_overdue()) {
                connection.check.notify_one();
            }
        }
    }

    async fn all_ended(&self) {
        loop {
            let ended = self.ended.notified();
            if self.connections().1.is_empty() {
                return;
            }
            ended.await;
        }
    }
}

/// Sends a 503 when the request begins to arrive, and closes the connection.
async fn send_refusal(stream: Stream) {
    async fn tell(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        // Many clients treat a response that arrives before their request as an error of the connection.
        stream.read_u8().await?;
        let message =
            "all connections of this service are busy; try again later ([api] connections sets the limit)";
        refuse(stream, "503 Service Unavailable\r\nretry-after: 5", "serviceUnavailable", message).await
    }
    let _ = match stream {
        Stream::Tcp(stream, _) => timeout(REFUSAL, tell(stream)).await,
        Stream::Tls(stream, _, acceptor) => {
            timeout(REFUSAL, async { tell(acceptor.accept(stream).await?).await }).await
        }
        Stream::Unix(stream) => timeout(REFUSAL, tell(stream)).await,
    };
}

/// Registers a connection among the open ones; dropping it removes the connection.
struct Place {
    open: Arc<Open>,
    number: u64,
    connection: Arc<Connection>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.connections().1.remove(&self.number);
        CONNECTIONS.dec();
        self.open.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;

    use super::*;
    use hotslot_service::config::Seconds;

    /// More bytes than the buffers of a connection hold.
    const LENGTH: usize = 16 << 20;

    fn router() -> Router {
        Router::new()
            .route("/", axum::routing::get(async || Bytes::from(vec![0; LENGTH])))
            .route("/short", axum::routing::get(async || "short"))
            .route("/unread", axum::routing::post(async || "unread"))
    }

    const SHORT: &[u8] = b"GET /short HTTP/1.1\r\nhost: localhost\r\n\r\n";

    /// Whoever keeps all its connections busy, or idle for a moment only, is refused more, and nobody else waits for that.
    #[tokio::test]
    async fn who_has_too_many_busy_connections_does_not_keep_others_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let api = Api { connections: 8.try_into().unwrap(), ..Api::default() };
        tokio::spawn(
            async move { serve(Listener::Tcp(listener), router(), &api, std::future::pending()).await },
        );
        let connect = async |from: &str| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
            socket.connect(format!("127.0.0.1:{port}").parse().unwrap()).await.unwrap()
        };
        let mut busy = Vec::new();
        for _ in 0..5 {
            let mut client = connect("127.0.0.1").await;
            client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
            busy.push(client);
        }
        let mut fresh = connect("127.0.0.1").await;
        let fresh = tokio::spawn(async move {
            let mut bytes = [0; 4096];
            loop {
                fresh.write_all(SHORT).await.unwrap();
                assert_ne!(
                    fresh.read(&mut bytes).await.unwrap(),
                    0,
                    "it is not closed, because it is never idle for long"
                );
                sleep(Duration::from_millis(50)).await;
            }
        });
        sleep(Duration::from_millis(200)).await;
        let answer = async |from: &str| {
            let mut client = connect(from).await;
            let _ = client.write_all(SHORT).await;
            let mut bytes = [0; 4096];
            let length =
                timeout(Duration::from_secs(5), client.read(&mut bytes)).await.unwrap().unwrap_or_default();
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        };
        for _ in 0..3 {
            assert!(answer("127.0.0.1").await.starts_with("HTTP/1.1 503"));
            assert!(answer("127.0.0.2").await.starts_with("HTTP/1.1 200"));
        }
        assert!(!fresh.is_finished());
        fresh.abort();
    }

    /// Returns a client of a service with an idle time-out of one second.
    async fn connected() -> (UnixStream, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = Listener::Unix(UnixListener::bind(&path).unwrap());
        let api = Api { idle_timeout: Seconds(Duration::from_secs(1)), ..Api::default() };
        tokio::spawn(async move { serve(listener, router(), &api, std::future::pending()).await });
        (UnixStream::connect(&path).await.unwrap(), dir)
    }

    /// Returns a client that has requested a long response.
    async fn with_long_response() -> (UnixStream, tempfile::TempDir) {
        let (mut client, dir) = connected().await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
        (client, dir)
    }

    /// Sends the pieces with a pause after each, and returns how many responses arrive.
    async fn responses(pieces: &[&[u8]]) -> usize {
        let (mut client, _dir) = connected().await;
        for piece in pieces {
            // The service closes the connection when it does not read the rest of a request.
            let _ = client.write_all(piece).await;
            sleep(Duration::from_millis(20)).await;
        }
        let mut all = Vec::new();
        // An idle connection is closed after a second.
        let _ = client.read_to_end(&mut all).await;
        String::from_utf8_lossy(&all).matches("HTTP/1.1 200 OK").count()
    }

    #[tokio::test]
    async fn requests_that_arrive_together_or_in_pieces_are_all_answered() {
        let three = SHORT.repeat(3);
        assert_eq!(responses(&[&three]).await, 3);
        assert_eq!(responses(&[SHORT, SHORT, SHORT]).await, 3);
        for cut in [1, 2, SHORT.len() - 1, SHORT.len() + 1, 2 * SHORT.len() - 1, 2 * SHORT.len() + 20] {
            let (first, second) = three.split_at(cut);
            assert_eq!(responses(&[first, second]).await, 3, "cut at {cut}");
        }
        // More requests than hyper answers before it lets other tasks run, and more than its buffer holds.
        for many in [100, 1000] {
            assert_eq!(responses(&[&SHORT.repeat(many)]).await, many);
        }
    }

    #[tokio::test]
    async fn the_unread_body_of_a_request_is_not_taken_for_the_next_request() {
        let header =
            format!("POST /unread HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", SHORT.len());
        assert!(responses(&[header.as_bytes(), SHORT]).await < 2);
        let chunked = b"POST /unread HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(responses(&[chunked, SHORT]).await < 2);
    }

    #[tokio::test]
    async fn a_client_that_reads_slowly_is_served_for_as_long_as_it_reads() {
        let (mut client, _dir) = with_long_response().await;
        let start = Instant::now();
        let mut bytes = [0; 4096];
        let mut taken = 0;
        while start.elapsed() < Duration::from_secs(8) {
            // Too little to make the socket writable again within a second.
            let read = client.read(&mut bytes).await.unwrap();
            assert!(read > 0, "cut after {taken} bytes and {:?}", start.elapsed());
            taken += read;
            sleep(Duration::from_millis(50)).await;
        }
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert!(taken + rest.len() > LENGTH, "cut after {} bytes", taken + rest.len());
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_disconnected() {
        let (mut client, _dir) = with_long_response().await;
        sleep(Duration::from_secs(4)).await;
        let mut all = Vec::new();
        let _ = client.read_to_end(&mut all).await;
        assert!(!all.is_empty() && all.len() < LENGTH, "{} bytes", all.len());
    }
}
