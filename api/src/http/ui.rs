//! The page: which routes of it there are is in the crate `hotslot-web`. Here is decided who looks at it, as for every
//! other route: a session stands for the token that was shown at sign-in. The page calls the routes of the API in this
//! process, on behalf of that caller.

use std::sync::Arc;

use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::{DefaultBodyLimit, FromRef as _, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use hotslot_model::identity::{Caller, Peer, Target};
use hotslot_service::config::{Config, IdentityFrom};
use hotslot_store::actor;
use hotslot_web::{
    Api, Context, Cookie, Credential, Place, Problem, Sessions, SignIn, SignedIn, Ways, Who, bounce_page,
    by_pages, problem_page,
};

use super::audit::{DoneByRoutes, Identified};
use super::ends::Ends;
use super::error::Fault;
use super::identity::OnBehalf;
use super::standing::{Shown, StillSignedIn};
use super::state::{App, IdentityParts};
use super::{RequestId, limits, origin, policy};

const TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// The longest token that a person may sign in with, in bytes. The largest tokens of Keystone have about a third of that.
const LONGEST_TOKEN: usize = 8 << 10;

/// The longest address of a page, after encoding, to which a sign-in returns.
const LONGEST_PAGE: usize = 2 << 10;

/// What the layers of the page need.
#[derive(Clone)]
struct Pages {
    app: App,
    api: Arc<Router>,
    sessions: Arc<Sessions>,
}

/// The browser of a request.
#[derive(Clone)]
struct Browser {
    cookie: Cookie,
    place: Place,
    signed_in: bool,
}

/// Returns the routes of the page, which call the routes of the API.
pub(super) fn pages(app: &App, api: Router) -> Router {
    let pages = Pages { app: app.clone(), api: Arc::new(api), sessions: Arc::new(Sessions::new()) };
    hotslot_web::routes()
        .layer(middleware::from_fn_with_state(pages.clone(), with_context))
        .layer(middleware::from_fn_with_state(app.clone(), limits::enforce_form))
        .layer(DefaultBodyLimit::max(limits::BODY))
        .layer(middleware::from_fn_with_state(app.clone(), policy::admit))
        .layer(middleware::from_fn_with_state(pages.clone(), with_session))
        .layer(middleware::from_fn(bounce))
        .layer(middleware::from_fn_with_state(app.clone(), origin::refuse_other_origins))
        .layer(middleware::from_fn_with_state(pages, as_page))
}

/// Has the browser of a person who follows a link of another site ask again from a page of hotslot, because it sends no
/// cookie with the first request. `home` then goes on to the page that was asked for.
async fn bounce(request: Request, next: Next) -> Response {
    let uri = request.uri();
    let is_page = uri.path().starts_with("/ui/");
    let has_bounced = uri.path() == "/ui/home" && uri.query().is_some_and(|query| query.starts_with("next="));
    if origin::is_of_another_site(request.headers()) && is_page && !has_bounced {
        return bounce_page(&returning("home", uri));
    }
    next.run(request).await
}

/// Replaces the cookie of a session by the token that it stands for.
async fn with_session(State(pages): State<Pages>, mut request: Request, next: Next) -> Response {
    let cookies = Cookie::all(request.headers());
    let place = if cookies.is_empty() { Place::Unknown } else { place(request.extensions()).await };
    // What a page reads by itself is no use of the session.
    let is_use = request.headers().get("sec-fetch-dest").is_none_or(|dest| dest != "empty");
    let found = cookies
        .iter()
        .find_map(|cookie| Some((cookie.clone(), pages.sessions.token(cookie, place, is_use)?)));
    let (is_new, signed_in) = (cookies.is_empty(), found.is_some());
    let cookie = match found {
        Some((cookie, token)) => {
            request.headers_mut().remove(header::AUTHORIZATION);
            request.headers_mut().insert(TOKEN, token);
            cookie
        }
        None => cookies.into_iter().next().unwrap_or_else(|| Cookie::random(request.headers())),
    };
    let browser = Browser { cookie, place, signed_in };
    request.extensions_mut().insert(browser.clone());
    let is_secure = is_secure(&pages.app.0.config.get(), request.headers());
    // The folder without the slash is in another folder, and the cookie would be for that one. A browser that comes from
    // another site may have a cookie that it does not send.
    let takes_cookie =
        request.uri().path().starts_with("/ui/") && !origin::is_of_another_site(request.headers());
    let mut response = next.run(request).await;
    if response.status() == StatusCode::UNAUTHORIZED && signed_in {
        pages.sessions.end(&browser.cookie);
    }
    if is_new && takes_cookie && !response.headers().contains_key(header::SET_COOKIE) {
        let (name, value) = browser.cookie.header(is_secure);
        response.headers_mut().insert(name, value);
    }
    response.extensions_mut().insert(browser);
    response
}

/// Returns where the browser at the other end of a connection is. One behind a proxy is where the proxy is.
async fn place(extensions: &Extensions) -> Place {
    match (extensions.get::<Peer>(), extensions.get::<Ends>()) {
        (Some(Peer::Unix { uid, .. }), _) => Place::User(*uid),
        (Some(Peer::Tcp(_)), Some(ends)) if ends.are_on_this_machine() => {
            ends.user().await.map_or(Place::Unknown, Place::User)
        }
        (Some(Peer::Tcp(_)), Some(_)) => Place::Elsewhere,
        (Some(Peer::Tcp(_)) | None, _) => Place::Unknown,
    }
}

/// Whether the browser reaches the page over TLS: that of the service, or that of a proxy, as the origin of a form or the
/// proxy says. Whoever lies about that gets a cookie that is of no use.
fn is_secure(config: &Config, headers: &HeaderMap) -> bool {
    let https = |origin: &HeaderValue| origin.as_bytes().starts_with(b"https:");
    config.api.tls.is_some()
        || headers.get(header::ORIGIN).is_some_and(https)
        || headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https")
}

/// Gives the handlers of the page what they need.
async fn with_context(State(pages): State<Pages>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let Some(browser) = parts.extensions.get::<Browser>().cloned() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let caller = parts.extensions.get::<Caller>().cloned();
    let context = context(&pages, &parts, browser, caller.clone());
    parts.extensions.insert(context);
    let mut response = next.run(Request::from_parts(parts, body)).await;
    // For the navigation of a page that says what went wrong.
    if let Some(caller) = caller {
        response.extensions_mut().insert(caller);
    }
    response
}

/// Returns what a page is made with.
fn context(pages: &Pages, request: &Parts, browser: Browser, caller: Option<Caller>) -> Context {
    let (config, policy) = (pages.app.0.config.get(), pages.app.0.policy.get());
    let Browser { cookie, place, signed_in } = browser;
    let asking = caller.clone();
    let may = move |rule: &str| {
        let asked = asking.as_ref().map(|caller| policy.require(caller, rule, Target::Unknown).is_ok());
        asked.unwrap_or_default()
    };
    let simulated = !config.hypervisor.is_empty()
        && config.hypervisor.iter().all(|hypervisor| hypervisor.uri.starts_with("sim:"));
    Context {
        who: caller.as_ref().map(|caller| who(caller, signed_in)),
        may: Arc::new(may),
        sign_in: sign_in(&pages.app, &request.extensions, place),
        sessions: Arc::clone(&pages.sessions),
        // A cookie that stands for a session says who it is.
        person: caller.as_ref().filter(|_| !signed_in).map(Caller::key).unwrap_or_default(),
        place,
        signed_in,
        secure: is_secure(&config, &request.headers),
        ways: Ways { token: takes_tokens(&pages.app), password: takes_passwords(&pages.app), simulated },
        api: api(pages, request, caller, signed_in.then(|| (cookie.clone(), place))),
        cookie,
    }
}

/// Whether a person can sign in with a token.
fn takes_tokens(app: &App) -> bool {
    app.0.callers.take_tokens() && app.0.config.get().api.identity != IdentityFrom::Headers
}

/// Whether a person can sign in with a name and password of Keystone.
fn takes_passwords(app: &App) -> bool {
    app.0.callers.keystone().is_some() && app.0.config.get().api.identity != IdentityFrom::Headers
}

/// Returns why nobody can sign in with a credential here, before anybody is asked about it.
fn not_taken(app: &App, place: Place, credential: &Credential) -> Option<Fault> {
    let is_taken = match credential {
        Credential::Token(token) if token.len() > LONGEST_TOKEN => {
            return Some(Fault::new(StatusCode::UNAUTHORIZED, "the token is too long; copy only the token"));
        }
        Credential::Token(_) => takes_tokens(app),
        Credential::Login(_) => takes_passwords(app),
    };
    let text = match (is_taken, place) {
        (false, _) => "this service does not take this here; open the form again, which says how to sign in",
        (true, Place::Unknown) => {
            "the kernel does not tell who has the other end of this connection, so that nobody can sign in here; allow \
             cookies, and open this form again"
        }
        (true, Place::Elsewhere | Place::User(_)) => return None,
    };
    Some(Fault::new(StatusCode::FORBIDDEN, text))
}

/// Returns the routes of the API as the caller of a page uses them.
fn api(pages: &Pages, request: &Parts, caller: Option<Caller>, session: Option<(Cookie, Place)>) -> Api {
    let (mut headers, mut extensions) = (HeaderMap::new(), Extensions::new());
    if let Some(host) = request.headers.get(header::HOST) {
        headers.insert(header::HOST, host.clone());
    }
    if let Some(peer) = request.extensions.get::<Peer>() {
        extensions.insert(*peer);
    }
    if let Some(id) = request.extensions.get::<RequestId>() {
        extensions.insert(id.clone());
    }
    if let Some(caller) = caller {
        extensions.insert(OnBehalf(caller));
    }
    if request.uri.path().ends_with("/live") {
        let sessions = Arc::clone(&pages.sessions);
        let signed_in = session.map(|(cookie, place)| -> StillSignedIn {
            Arc::new(move || sessions.token(&cookie, place, false).is_some())
        });
        extensions.insert(Shown::of(request.clone(), signed_in));
    }
    Api::new(Arc::clone(&pages.api), headers, extensions)
}

fn who(caller: &Caller, signed_in: bool) -> Who {
    let name = caller.user.as_ref().map_or_else(|| "no identity".to_owned(), |user| user.name.clone());
    Who {
        name,
        project: caller.project.clone(),
        roles: caller.roles.iter().cloned().collect(),
        signed_in,
        is_admin: caller.is_admin(),
        is_service_or_admin: caller.is_service_or_admin(),
    }
}

/// Returns what checks a credential at sign-in. It counts as a request of its owner, or as a failure of this connection.
fn sign_in(app: &App, extensions: &Extensions, place: Place) -> SignIn {
    let app = app.clone();
    let peer = extensions.get::<Peer>().copied();
    Arc::new(move |credential| {
        let (identity, refused) = (IdentityParts::from_ref(&app), not_taken(&app, place, &credential));
        Box::pin(async move {
            let signed_in = match refused {
                Some(fault) => Err(fault),
                None => signed_in(&identity, peer, credential).await,
            };
            signed_in.map_err(|fault| Problem::new(fault.status.as_u16(), fault.message))
        })
    })
}

async fn signed_in(
    identity: &IdentityParts,
    peer: Option<Peer>,
    credential: Credential,
) -> Result<SignedIn, Fault> {
    let token = match credential {
        Credential::Token(token) => token,
        Credential::Login(login) => policy::token_for(identity, peer, &login).await?,
    };
    let mut shown = Request::new(());
    *shown.uri_mut() = Uri::from_static("/ui/account");
    shown.headers_mut().insert(TOKEN, token.clone());
    if let Some(peer) = peer {
        shown.extensions_mut().insert(peer);
    }
    let (parts, ()): (Parts, ()) = shown.into_parts();
    let too_many = || Fault::new(StatusCode::TOO_MANY_REQUESTS, "too many requests; wait a minute");
    let caller = match policy::identified(identity, &parts).await {
        Ok(caller) => caller?,
        Err(response) => return Err(response.extensions().get::<Fault>().cloned().unwrap_or_else(too_many)),
    };
    let mut for_audit = Extensions::new();
    for_audit.insert(Identified { actor: Arc::new(actor::current().by(&caller)), rule: None });
    Ok(SignedIn { caller: caller.key(), token, for_audit })
}

/// Makes a page of every error: of one that a layer found, and of one that a handler returned. Whoever is not signed in
/// is sent to the form for it.
async fn as_page(State(pages): State<Pages>, request: Request, next: Next) -> Response {
    let (sent, body) = request.into_parts();
    let request = Request::from_parts(sent.clone(), body);
    let mut response = next.run(request).await;
    if !sent.uri.path().starts_with("/ui/sign-") {
        response.extensions_mut().insert(DoneByRoutes);
    }
    let status = response.status();
    let is_html = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    if !(status.is_client_error() || status.is_server_error())
        || (is_html && !response.body().is_end_stream())
    {
        return with_fault(response);
    }
    let extensions = response.extensions();
    let signs_in = takes_tokens(&pages.app) || takes_passwords(&pages.app);
    let fault = extensions.get::<Fault>().map(|fault| {
        let message = if status == StatusCode::UNAUTHORIZED && signs_in {
            "you are not signed in, or your session has ended, so nothing was done; sign in, and repeat it"
                .to_owned()
        } else {
            by_pages(&fault.message)
        };
        Problem::new(status.as_u16(), message)
    });
    let problem = fault.or_else(|| extensions.get::<Problem>().cloned());
    let problem = problem
        .unwrap_or_else(|| Problem::new(status.as_u16(), "the address or form of this page is not valid"));
    let (parts, _) = response.into_parts();
    let path = sent.uri.path().to_owned();
    let mut page = match (status, &sent.method) {
        (StatusCode::UNAUTHORIZED, &Method::GET) if !path.ends_with("/live") => {
            to(&returning("sign-in", &sent.uri))
        }
        // The session has ended before.
        (StatusCode::UNAUTHORIZED, _) if path.ends_with("/sign-out") => to("sign-in"),
        _ => {
            let caller = parts.extensions.get::<Caller>().cloned();
            let browser = parts.extensions.get::<Browser>().cloned();
            let context =
                caller.zip(browser).map(|(caller, browser)| context(&pages, &sent, browser, Some(caller)));
            problem_page(&problem, context.as_ref())
        }
    };
    for name in [header::SET_COOKIE, header::RETRY_AFTER] {
        if let Some(value) = parts.headers.get(&name) {
            page.headers_mut().insert(name, value.clone());
        }
    }
    *page.extensions_mut() = parts.extensions;
    page.extensions_mut().insert(problem);
    with_fault(page)
}

/// Adds what the audit reads.
fn with_fault(mut response: Response) -> Response {
    if let (Some(problem), None) =
        (response.extensions().get::<Problem>().cloned(), response.extensions().get::<Fault>())
    {
        let fault = Fault::new(response.status(), problem.message);
        response.extensions_mut().insert(fault);
    }
    response
}

/// Sends the browser to a page.
fn to(page: &str) -> Response {
    let place = HeaderValue::from_str(page).unwrap_or(HeaderValue::from_static("home"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, place)]).into_response()
}

/// Returns the address of a page that goes on to another one later.
fn returning(by: &str, to: &Uri) -> String {
    let page = to.path_and_query().map_or("", |text| text.as_str().trim_start_matches("/ui/"));
    let next: String = page
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    if next.len() > LONGEST_PAGE { format!("{by}?next=") } else { format!("{by}?next={next}") }
}
