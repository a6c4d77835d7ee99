//! Accepts and serves connections, with limits on their number and with time-outs.
//!
//! `axum::serve` has no such limits and time-outs, and builds the routes again for each connection.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use hotslot_model::identity::Peer;
use hotslot_service::config::Api;
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

/// How long an idle connection is protected from being closed to make room: a client that has just connected is about
/// to send a request.
const FRESH: Duration = Duration::from_millis(300);

/// How many idle connections are closed at once when the process has no file descriptors left; other parts of the
/// service need descriptors too.
const MAKE_ROOM: usize = 64;

/// How often connections are checked for time-outs.
const LOOK: Duration = Duration::from_secs(1);

/// The pause before accepting is tried again, or before the connections are searched again for one to close.
const AGAIN: Duration = Duration::from_millis(50);

/// The minimum time between two warnings about connections in the log.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// How many clients are sent a 503 at a time. Further connections are closed without a response.
const REFUSALS: usize = 32;
/// How long sending such a 503 may take.
const REFUSAL: Duration = Duration::from_secs(1);

/// The socket on which clients connect.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

/// Serves the routes on all connections until `stop` completes, and then until the running requests are answered.
/// Errors of accepting, such as a lack of file descriptors, do not end it.
pub async fn serve(listener: Listener, router: Router, api: &Api, stop: impl Future<Output = ()>) {
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
        let (router, stopped) = (router.clone(), stopping.subscribe());
        match accepted {
            (Stream::Tcp(stream, peer), place) => {
                drop(tokio::spawn(place.serve(stream, Some(peer), router, stopped)));
            }
            (Stream::Unix(stream), place) => {
                let peer = by_kernel(&stream);
                drop(tokio::spawn(place.serve(stream, peer, router, stopped)));
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    open.all_ended().await;
    times.abort();
}

enum Stream {
    Tcp(tokio::net::TcpStream, Peer),
    Unix(tokio::net::UnixStream),
}

/// Returns the process that connected to a unix socket.
fn by_kernel(stream: &tokio::net::UnixStream) -> Option<Peer> {
    let found = stream
        .peer_cred()
        .inspect_err(|error| tracing::warn!(%error, "the kernel does not tell who connected"));
    let found = found.ok()?;
    Some(Peer::Unix { uid: found.uid(), gid: found.gid(), pid: found.pid() })
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Small messages, such as single events, must not be delayed by Nagle's algorithm.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream, Peer::Tcp(address)))
            }
            Self::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

/// The activity of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// No request is being received or answered.
    Idle,
    /// The header of a request is being received.
    Asking,
    /// A request is being answered; this includes reading its body.
    Answering,
}

#[derive(Debug)]
struct Now {
    doing: Doing,
    since: Instant,
    /// Since when writes to the client have been blocked; `None` while they are not.
    blocked: Option<Instant>,
}

#[derive(Debug)]
struct Connection {
    now: Mutex<Now>,
    /// Wakes the connection's task to check whether the connection must be closed.
    check: Notify,
    /// Whether the connection is to be closed to make room for another one.
    unwanted: AtomicBool,
    /// The time limit for receiving the header of a request.
    header: Duration,
    /// The time limit for an idle connection and for a blocked write.
    idle: Duration,
}

impl Connection {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, doing: Doing) {
        let mut now = self.now();
        (now.doing, now.since) = (doing, Instant::now());
    }

    /// Since when no complete request has been received; `None` while a request is answered.
    fn idle_since(&self) -> Option<Instant> {
        let now = self.now();
        (now.doing != Doing::Answering && now.blocked.is_none()).then_some(now.since)
    }

    fn is_overdue(&self) -> bool {
        let now = self.now();
        let limit = match (now.blocked, now.doing) {
            (Some(since), _) => Some(since + self.idle),
            (None, Doing::Idle) => Some(now.since + self.idle),
            (None, Doing::Asking) => Some(now.since + self.header),
            (None, Doing::Answering) => None,
        };
        limit.is_some_and(|limit| limit <= Instant::now())
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
    refusals: Arc<Semaphore>,
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
            refusals: Arc::new(Semaphore::new(REFUSALS)),
            last_warning: Mutex::default(),
        }
    }

    fn connections(&self) -> MutexGuard<'_, (u64, HashMap<u64, Arc<Connection>>)> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts connections until there is room for one, and returns it. Others are refused.
    async fn next(self: &Arc<Self>, listener: &Listener) -> (Stream, Place) {
        loop {
            match listener.accept().await {
                Ok(stream) => match self.room().await {
                    Some(place) => return (stream, place),
                    None => {
                        let most = self.most;
                        self.say(&format_args!("all {most} connections are busy; refusing new connections"));
                        self.refuse(stream);
                    }
                },
                // The client closed the connection before it was accepted.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    self.say(&format_args!(
                        "no connection can be accepted: {error}; closing idle connections"
                    ));
                    self.close_idlest(MAKE_ROOM);
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Logs a warning, at most once per [`WARN_INTERVAL`].
    fn say(&self, what: &dyn std::fmt::Display) {
        let mut last_warning = self.last_warning.lock().unwrap_or_else(PoisonError::into_inner);
        if last_warning.is_none_or(|last_warning| last_warning.elapsed() > WARN_INTERVAL) {
            *last_warning = Some(Instant::now());
            tracing::warn!("{what}");
        }
    }

    /// Returns a place for another connection, closing the longest idle connection if necessary. Returns `None` when
    /// all connections are busy.
    async fn room(self: &Arc<Self>) -> Option<Place> {
        loop {
            let ended = self.ended.notified();
            if let Some(place) = self.place() {
                return Some(place);
            }
            let wait = self.close_idlest(1)?;
            tokio::select! {
                () = ended => {}
                () = sleep(wait) => {}
            }
        }
    }

    fn place(self: &Arc<Self>) -> Option<Place> {
        let mut connections = self.connections();
        if connections.1.len() >= self.most {
            return None;
        }
        let (header, idle) = (self.header, self.idle);
        let now = Mutex::new(Now { doing: Doing::Idle, since: Instant::now(), blocked: None });
        let connection = Arc::new(Connection {
            now,
            check: Notify::new(),
            unwanted: AtomicBool::new(false),
            header,
            idle,
        });
        connections.0 += 1;
        let number = connections.0;
        connections.1.insert(number, Arc::clone(&connection));
        self.begun.notify_one();
        Some(Place { open: Arc::clone(self), number, connection })
    }

    /// Closes up to `count` of the longest idle connections, except those idle for less than [`FRESH`]. Returns the
    /// time after which the caller should try again, or `None` when no connection is idle.
    fn close_idlest(&self, count: usize) -> Option<Duration> {
        let connections = self.connections();
        let idle = connections.1.values().filter_map(|one| Some((one.idle_since()?, one)));
        let mut idle: Vec<_> = idle.collect();
        idle.sort_by_key(|(since, _)| *since);
        let left = FRESH.saturating_sub(idle.first()?.0.elapsed());
        for (_, one) in idle.iter().take(count).filter(|(since, _)| since.elapsed() >= FRESH) {
            one.unwanted.store(true, Ordering::Relaxed);
            one.check.notify_one();
        }
        Some(left.max(AGAIN))
    }

    /// Sends a 503 and closes the connection.
    fn refuse(&self, stream: Stream) {
        async fn tell(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
            let message = "all connections of this service are busy; try again later ([api] connections sets the \
                           limit)";
            let body = format!("{{\"serviceUnavailable\": {{\"code\": 503, \"message\": \"{message}\"}}}}");
            let answer = format!(
                "HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-type: application/json\r\n\
                 cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await?;
            // Closing a socket with unread data resets the connection, and the client may lose the response.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
        }
        let Ok(turn) = Arc::clone(&self.refusals).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let _ = match stream {
                Stream::Tcp(stream, _) => timeout(REFUSAL, tell(stream)).await,
                Stream::Unix(stream) => timeout(REFUSAL, tell(stream)).await,
            };
            drop(turn);
        });
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

/// Registers a connection among the open ones; dropping it removes the connection.
struct Place {
    open: Arc<Open>,
    number: u64,
    connection: Arc<Connection>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.connections().1.remove(&self.number);
        self.open.ended.notify_waiters();
    }
}

impl Place {
    /// Serves a connection. Its requests have the [`Peer`], where it is known, among their extensions.
    async fn serve<S>(
        self,
        stream: S,
        peer: Option<Peer>,
        router: Router,
        mut stopping: watch::Receiver<bool>,
    ) where
        S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
    {
        let connection = &self.connection;
        let routes = TowerToHyperService::new(router);
        let answer = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            let working = Working::on(Arc::clone(connection));
            let answer = routes.call(request);
            async move {
                Ok::<_, std::convert::Infallible>(
                    answer.await?.map(|body| Answer { body, _working: working }),
                )
            }
        });
        let io = TokioIo::new(Watched { stream, connection: Arc::clone(connection) });
        let mut http = pin!(http1::Builder::new().header_read_timeout(None).serve_connection(io, answer));
        let mut stopped = false;
        loop {
            tokio::select! {
                biased;
                ended = http.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended");
                    }
                    return;
                }
                _ = stopping.wait_for(|stop| *stop), if !stopped => {
                    stopped = true;
                    http.as_mut().graceful_shutdown();
                }
                // The check below runs in this task, where no request can begin at the same time.
                () = connection.check.notified() => {}
            }
            let unwanted = connection.unwanted.swap(false, Ordering::Relaxed);
            if connection.is_overdue() || ((stopped || unwanted) && connection.idle_since().is_some()) {
                return;
            }
        }
    }
}

/// Marks a connection as answering a request, until the whole body of the response has been passed on.
struct Working(Arc<Connection>);

impl Working {
    fn on(connection: Arc<Connection>) -> Self {
        connection.set(Doing::Answering);
        Self(connection)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.set(Doing::Idle);
    }
}

/// The body of a response.
struct Answer {
    body: Body,
    _working: Working,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that records when a request begins and when writes are blocked.
struct Watched<S> {
    stream: S,
    connection: Arc<Connection>,
}

impl<S: Unpin> Watched<S> {
    /// Records whether a write is blocked.
    fn wrote<T>(&self, written: Poll<T>) -> Poll<T> {
        let mut now = self.connection.now();
        now.blocked = written.is_pending().then(|| now.blocked.unwrap_or_else(Instant::now));
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let mut now = self.connection.now();
        if now.doing == Doing::Idle && buf.filled().len() > before {
            (now.doing, now.since) = (Doing::Asking, Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

/// Retries a write that was blocked. The kernel reports a socket as writable only when a large part of its buffer is
/// free. A client that reads slowly may not free that much within its time limit, so progress is detected by writing.
fn try_again(stream: &impl AsFd, written: Poll<io::Result<usize>>, buf: &[u8]) -> Poll<io::Result<usize>> {
    match written {
        Poll::Pending => {
            nix::unistd::write(stream, buf).map_or(Poll::Pending, |length| Poll::Ready(Ok(length)))
        }
        Poll::Ready(_) => written,
    }
}

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        let written = try_again(&self.stream, written, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        let written = match bufs.iter().find(|buf| !buf.is_empty()) {
            Some(first) => try_again(&self.stream, written, first),
            None => written,
        };
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixStream;

    use super::*;
    use hotslot_service::config::Seconds;

    /// More bytes than the buffers of a connection hold.
    const LENGTH: usize = 16 << 20;

    /// Returns a client that has requested a long response from a service with an idle time-out of one second.
    async fn asked() -> (UnixStream, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = Listener::Unix(UnixListener::bind(&path).unwrap());
        let router = Router::new().route("/", axum::routing::get(async || Bytes::from(vec![0; LENGTH])));
        let api = Api { idle_timeout: Seconds(Duration::from_secs(1)), ..Api::default() };
        tokio::spawn(async move { serve(listener, router, &api, std::future::pending()).await });
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
        (client, dir)
    }

    #[tokio::test]
    async fn a_client_that_reads_slowly_is_served_for_as_long_as_it_reads() {
        let (mut client, _dir) = asked().await;
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
        let (mut client, _dir) = asked().await;
        sleep(Duration::from_secs(4)).await;
        let mut all = Vec::new();
        let _ = client.read_to_end(&mut all).await;
        assert!(!all.is_empty() && all.len() < LENGTH, "{} bytes", all.len());
    }
}
