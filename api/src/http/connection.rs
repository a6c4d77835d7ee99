//! One connection: what it is doing, since when, and its time limits.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hotslot_model::identity::Origin;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// The activity of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
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

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// With whose connections it counts; `None` when they are not limited.
    pub(super) origin: Option<Origin>,
    now: Mutex<Now>,
    /// Wakes the connection's task to check whether the connection must be closed.
    pub(super) check: Notify,
    /// Whether the connection is to be closed to make room for another one.
    pub(super) unwanted: AtomicBool,
    /// The time limit for receiving the header of a request.
    header: Duration,
    /// The time limit for an idle connection and for a blocked write.
    idle: Duration,
}

impl Connection {
    /// Returns an idle connection with these time limits.
    pub(super) fn new(origin: Option<Origin>, header: Duration, idle: Duration) -> Self {
        let now = Mutex::new(Now { doing: Doing::Idle, since: Instant::now(), blocked: None });
        Self { origin, now, check: Notify::new(), unwanted: AtomicBool::new(false), header, idle }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, doing: Doing) {
        let mut now = self.now();
        (now.doing, now.since) = (doing, Instant::now());
    }

    /// Since when no complete request has been received; `None` while a request is answered.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let now = self.now();
        (now.doing != Doing::Answering && now.blocked.is_none()).then_some(now.since)
    }

    /// Whether neither a request is received or answered, nor a write is blocked.
    pub(super) fn is_idle(&self) -> bool {
        let now = self.now();
        now.doing == Doing::Idle && now.blocked.is_none()
    }

    pub(super) fn is_overdue(&self) -> bool {
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

/// A stream that records when a request begins and when writes are blocked. TLS is above it.
pub(super) struct Watched<S> {
    pub(super) stream: S,
    pub(super) connection: Arc<Connection>,
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

/// A stream of which some bytes have been read already. They are read again first.
pub(super) struct ReadAhead<S> {
    pub(super) bytes: Bytes,
    pub(super) stream: S,
}

impl<S> ReadAhead<S> {
    /// Returns the stream with bytes before those that it has.
    pub(super) fn after(self, bytes: Bytes) -> Self {
        // Even without a byte of content, `bytes` would keep the whole buffer that it comes from.
        let bytes = match (bytes.is_empty(), self.bytes.is_empty()) {
            (true, true) => Bytes::new(),
            (true, false) => self.bytes,
            (false, true) => bytes,
            (false, false) => [bytes, self.bytes].concat().into(),
        };
        Self { bytes, ..self }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = self.bytes.len().min(buf.remaining());
        buf.put_slice(&self.bytes.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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
    use super::*;

    #[test]
    fn an_idle_connection_keeps_no_buffer() {
        let idle = |before: &[u8], read: Bytes| {
            ReadAhead { bytes: Bytes::copy_from_slice(before), stream: () }.after(read).bytes
        };
        let empty = || Bytes::from(Vec::with_capacity(8 << 10));
        assert!(
            empty().try_into_mut().is_ok_and(|buffer| buffer.capacity() == 8 << 10),
            "it keeps its memory"
        );
        assert!(idle(b"", empty()).try_into_mut().map_or(true, |buffer| buffer.capacity() == 0));
        assert_eq!(idle(b"b", empty()), "b");
        assert_eq!(idle(b"b", "a".into()), "ab");
        assert_eq!(idle(b"", "a".into()), "a");
    }
}
