//! The page for one person, through a unix socket: `hotslot ui` listens on loopback while it runs, and passes requests on
//! to the service, which then takes them for those of the user who started it. Only the browser that opened the printed
//! link gets through: the link has a key that works once, and gives the browser a cookie. The cookie alone is not enough,
//! because a browser sends it to every port of the host: the connection must be of a program of the same user.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::unistd::geteuid;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::ends::Ends;
use super::requests::refuse;

/// The maximum number of connections. A browser has a few.
const CONNECTIONS: usize = 64;

/// The time limit for the header of a request, and for a connection without a request.
const HEADER: Duration = Duration::from_secs(30);

/// How long telling somebody else's program that it is refused may take, and the pause after a failure to accept a
/// connection.
const MOMENT: Duration = Duration::from_secs(1);

/// What decides who gets through.
struct Gate {
    socket: PathBuf,
    port: u16,
    /// The users whose programs get through.
    users: Vec<u32>,
    key: String,
    is_used: AtomicBool,
    cookie: String,
}

/// A page for one person, which is served until it is dropped.
pub struct OwnPage {
    listener: TcpListener,
    gate: Arc<Gate>,
}

/// Returns the user who runs this program, and the user who became root by sudo to run it: the browser is theirs.
fn own_users() -> Vec<u32> {
    let own = geteuid();
    let by_sudo = std::env::var("SUDO_UID").ok().filter(|_| own.is_root());
    std::iter::once(own.as_raw()).chain(by_sudo.and_then(|uid| uid.parse().ok())).collect()
}

fn random() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

impl OwnPage {
    /// Prepares the page of the service at a socket.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn at(listener: TcpListener, socket: PathBuf) -> std::io::Result<Self> {
        let port = listener.local_addr()?.port();
        let (is_used, users) = (AtomicBool::new(false), own_users());
        let gate = Gate { socket, port, users, key: random(), is_used, cookie: random() };
        Ok(Self { listener, gate: Arc::new(gate) })
    }

    /// The link that opens the page. It works once.
    pub fn link(&self) -> String {
        format!("http://127.0.0.1:{}/open?key={}", self.gate.port, self.gate.key)
    }

    /// Serves the page, and does not end.
    pub async fn serve(self) -> Infallible {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let (stream, place) =
                match (self.listener.accept().await, Arc::clone(&places).acquire_owned().await) {
                    (Ok((stream, _)), Ok(place)) => (stream, place),
                    // No descriptor is left, or the client has gone away.
                    (Err(_), _) | (_, Err(_)) => {
                        sleep(MOMENT).await;
                        continue;
                    }
                };
            let gate = Arc::clone(&self.gate);
            tokio::spawn(async move {
                let _place = place;
                gate.serve(stream).await;
            });
        }
    }
}

impl Gate {
    /// Serves a connection of a program of the same user, and refuses any other.
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let Some(ends) = Ends::of(&stream) else { return };
        let user = ends.user().await;
        if !user.is_some_and(|user| self.users.contains(&user)) {
            let whose =
                user.map_or("of nobody whom the kernel knows".to_owned(), |uid| format!("of uid {uid}"));
            let message = format!(
                "this page belongs to the user who ran `hotslot ui` (uid {}), and this connection is {whose}; run \
                 `hotslot ui` as the user of the browser",
                self.users.iter().map(u32::to_string).collect::<Vec<_>>().join(" and ")
            );
            let _ = timeout(MOMENT, refuse(stream, "403 Forbidden", "forbidden", &message)).await;
            return;
        }
        let routes = TowerToHyperService::new(Router::new().fallback(pass).with_state(self));
        let mut http = http1::Builder::new();
        // The browser repeats a request whose connection ended early.
        let _ = http
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER)
            .serve_connection(TokioIo::new(stream), routes)
            .await;
    }

    fn cookie_name(&self) -> String {
        // Browsers send cookies to all ports of a host.
        format!("hotslot_own_page_{}", self.port)
    }

    fn is_open_to(&self, headers: &HeaderMap) -> bool {
        let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs =
            values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let name = self.cookie_name();
        pairs.any(|(key, value)| key == name && value == self.cookie)
    }

    /// Exchanges the key of the link for a cookie, once.
    fn open(&self, query: &str) -> Option<HeaderValue> {
        let is_right = query.strip_prefix("key=").is_some_and(|key| key == self.key);
        if !is_right || self.is_used.swap(true, Ordering::SeqCst) {
            return None;
        }
        let text = format!("{}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie_name(), self.cookie);
        HeaderValue::from_str(&text).ok()
    }
}

async fn pass(State(gate): State<Arc<Gate>>, request: Request) -> Result<Response, Infallible> {
    let no_store = (header::CACHE_CONTROL, "no-store");
    if request.uri().path() == "/open" {
        // A HEAD, as programs that look at links send it, does not use the link up.
        if request.method() != Method::GET {
            return Ok((StatusCode::METHOD_NOT_ALLOWED, [no_store], [(header::ALLOW, "GET")]).into_response());
        }
        let query = request.uri().query().unwrap_or_default();
        return Ok(match gate.open(query) {
            Some(cookie) => {
                let place = (header::LOCATION, HeaderValue::from_static("/ui/home"));
                (StatusCode::SEE_OTHER, [no_store], [place, (header::SET_COOKIE, cookie)]).into_response()
            }
            None => {
                let text = "This link was opened before, or is not complete. Run `hotslot ui` again for another one.\n";
                (StatusCode::FORBIDDEN, [no_store], text).into_response()
            }
        });
    }
    if !gate.is_open_to(request.headers()) || !request.uri().path().starts_with("/ui") {
        let text = "This page belongs to the person who ran `hotslot ui`. Open the link that it printed.\n";
        return Ok((StatusCode::FORBIDDEN, [no_store], text).into_response());
    }
    Ok(forward(&gate, request).await.unwrap_or_else(|error| {
        let text = format!("The service does not answer at {}: {error}\n", gate.socket.display());
        (StatusCode::BAD_GATEWAY, [no_store], text).into_response()
    }))
}

/// Sends a request to the service, and returns its response as it arrives.
async fn forward(
    gate: &Gate,
    mut request: Request,
) -> Result<Response, Box<dyn std::error::Error + Send + Sync>> {
    // The connection is this program's own, and so is what a client may say about it. The service has no proxy here.
    for name in ["connection", "x-auth-token", "authorization"] {
        request.headers_mut().remove(HeaderName::from_static(name));
    }
    let stream = UnixStream::connect(&gate.socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?.map(Body::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_link_works_once_and_only_with_its_key() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let page = OwnPage::at(listener, "/nowhere".into()).unwrap();
        let gate = page.gate;
        assert!(gate.open("key=").is_none() && gate.open("").is_none());
        let cookie = gate.open(&format!("key={}", gate.key)).unwrap();
        assert!(gate.open(&format!("key={}", gate.key)).is_none(), "the link was used");
        let mut headers = HeaderMap::new();
        assert!(!gate.is_open_to(&headers));
        let pair = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
        headers.insert(header::COOKIE, pair.parse().unwrap());
        assert!(gate.is_open_to(&headers));
    }
}
