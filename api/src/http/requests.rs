//! The requests of one connection.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Extensions;
use hotslot_model::identity::Peer;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::ClientCertificate;
use super::connection::{Connection, Doing, ReadAhead, Watched};
use super::ends::Ends;
use super::tls;

/// How long telling an idle client that its connection is closed may take.
const CLOSING: Duration = Duration::from_secs(1);

/// The largest buffer of a connection, in bytes. A longer header is refused before hotslot's own limit of headers
/// applies, so that clients who have not shown who they are take little memory.
const BUFFER: usize = 64 << 10;

/// What is known about the other end of a connection; each of its requests has it among its extensions.
pub(super) struct Client {
    /// `None` when the kernel does not tell.
    peer: Option<Peer>,
    /// The ends of a TCP connection.
    ends: Option<Ends>,
    /// The verified client certificate of a TLS connection.
    certificate: Option<Arc<ClientCertificate>>,
}

impl Client {
    pub(super) fn at(peer: Option<Peer>) -> Self {
        Self { peer, ends: None, certificate: None }
    }

    pub(super) fn at_tcp(stream: &TcpStream, peer: Peer) -> Self {
        Self { peer: Some(peer), ends: Ends::of(stream), certificate: None }
    }

    fn put_into(&self, extensions: &mut Extensions) {
        if let Some(peer) = self.peer {
            extensions.insert(peer);
        }
        if let Some(ends) = self.ends {
            extensions.insert(ends);
        }
        if let Some(certificate) = &self.certificate {
            extensions.insert(Arc::clone(certificate));
        }
    }
}

/// Sends the response to a client whose request is not read, and waits until the client closes the connection.
pub(super) async fn refuse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    status: &str,
    fault: &str,
    message: &str,
) -> io::Result<()> {
    let code = &status[..3];
    let body = format!("{{\"{fault}\": {{\"code\": {code}, \"message\": \"{message}\"}}}}");
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
         x-content-type-options: nosniff\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing a socket with unread data resets the connection, and the client may lose the response.
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
}

/// Serves the requests of a connection.
pub(super) struct Requests {
    /// The connection.
    pub(super) connection: Arc<Connection>,
    /// The routes.
    pub(super) router: Router,
    /// Becomes true when the service stops.
    pub(super) stopping: watch::Receiver<bool>,
}

impl Requests {
    fn watched<S>(&self, stream: S) -> Watched<S> {
        Watched { stream, connection: Arc::clone(&self.connection) }
    }

    /// Serves a connection after its TLS handshake.
    pub(super) async fn serve_tls(self, stream: TcpStream, peer: Peer, acceptor: TlsAcceptor) {
        let client = Client::at_tcp(&stream, peer);
        // It is in the heap, so that it takes no memory after the handshake.
        let handshake = Box::pin(self.handshake(stream, acceptor));
        let stream = match handshake.await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, ?peer, "a TLS handshake failed");
                return;
            }
        };
        let certificate = tls::client(stream.get_ref().1);
        if let Some(certificate) = &certificate {
            tracing::debug!(?peer, %certificate, "a client with a certificate has connected");
        }
        self.serve_all(stream, &Client { certificate, ..client }).await;
    }

    /// Makes the TLS handshake, which counts as the header of a request.
    async fn handshake(
        &self,
        stream: TcpStream,
        acceptor: TlsAcceptor,
    ) -> io::Result<TlsStream<Watched<TcpStream>>> {
        let connection = &self.connection;
        connection.set(Doing::Asking);
        let handshake = async {
            if tls::is_plain_http(&stream).await {
                let message = "this port uses TLS; write https:// in the address";
                refuse(stream, "400 Bad Request", "badRequest", message).await?;
                return Err(io::Error::other("the client does not use TLS"));
            }
            acceptor.accept(self.watched(stream)).await
        };
        let done = self.limited(handshake).await;
        connection.set(Doing::Idle);
        done.unwrap_or_else(|| Err(io::Error::other("the service stops, or the time is over")))
    }

    /// Waits for something that may take as long as the connection may be idle, or as the header of a request may take.
    /// Returns `None` when that time is over, when the connection is to make room for another one, or when the service
    /// stops.
    async fn limited<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let (connection, mut stopping) = (&self.connection, self.stopping.clone());
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = work.as_mut() => return Some(done),
                _ = stopping.wait_for(|stop| *stop) => return None,
                () = connection.check.notified() => {}
            }
            if connection.is_overdue() || connection.unwanted.swap(false, Ordering::Relaxed) {
                return None;
            }
        }
    }

    /// Serves a connection without TLS.
    pub(super) async fn serve<S>(self, stream: S, client: Client)
    where
        S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
    {
        self.serve_all(self.watched(stream), &client).await;
    }

    /// Serves a connection. Its requests have the [`Peer`] and the [`ClientCertificate`], where they are known, among
    /// their extensions. While no request is under way, the connection has no buffers, so that idle connections take
    /// little memory.
    async fn serve_all<S>(&self, stream: S, client: &Client)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut stream = ReadAhead { bytes: Bytes::new(), stream };
        loop {
            if stream.bytes.is_empty() {
                match self.limited(stream.stream.read_u8()).await {
                    Some(Ok(first)) => stream.bytes = Bytes::copy_from_slice(&[first]),
                    Some(Err(_)) | None => {
                        let _ = timeout(CLOSING, stream.stream.shutdown()).await;
                        return;
                    }
                }
            }
            self.connection.set(Doing::Asking);
            // It is in the heap, so that it takes no memory while the connection is idle.
            match Box::pin(self.answer_requests(stream, client)).await {
                Some(idle) => stream = idle,
                None => return,
            }
        }
    }

    /// Answers requests until the connection is idle, and returns its stream then; returns `None` when the connection
    /// has ended.
    async fn answer_requests<S>(&self, stream: ReadAhead<S>, client: &Client) -> Option<ReadAhead<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connection = &self.connection;
        let routes = TowerToHyperService::new(self.router.clone());
        // Whether the body of the last request may not have been read to its end. Its rest must not be taken for the
        // next request.
        let body = AtomicBool::new(false);
        let answer = service_fn(|mut request: hyper::Request<Incoming>| {
            let working = Working::on(Arc::clone(connection));
            body.store(!request.body().is_end_stream(), Ordering::Relaxed);
            client.put_into(request.extensions_mut());
            let answer = routes.call(request);
            async move {
                Ok::<_, std::convert::Infallible>(
                    answer.await?.map(|body| Answer { body, _working: working }),
                )
            }
        });
        let mut http = http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), answer);
        let (mut stopped, mut stopping) = (false, self.stopping.clone());
        loop {
            let progress = poll_fn(|cx| match Pin::new(&mut http).poll(cx) {
                Poll::Ready(ended) => Poll::Ready(Some(ended)),
                Poll::Pending if connection.is_idle() && !body.load(Ordering::Relaxed) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            tokio::select! {
                biased;
                progress = progress => match progress {
                    Some(ended) => {
                        if let Err(error) = ended {
                            tracing::debug!(%error, "a connection ended");
                        }
                        return None;
                    }
                    None => {
                        let parts = http.into_parts();
                        return Some(parts.io.into_inner().after(parts.read_buf));
                    }
                },
                _ = stopping.wait_for(|stop| *stop), if !stopped => {
                    stopped = true;
                    Pin::new(&mut http).graceful_shutdown();
                }
                // The check below runs in this task, where no request can begin at the same time.
                () = connection.check.notified() => {}
            }
            let unwanted = connection.unwanted.swap(false, Ordering::Relaxed);
            if connection.is_overdue() || ((stopped || unwanted) && connection.idle_since().is_some()) {
                return None;
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
