//! Protection against web pages. A browser that can reach the service sends the requests of pages of any origin. It
//! names the origin in `Origin` and `Sec-Fetch-Site`. A page that uses DNS rebinding is recognized by its name in
//! `Host`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hotslot_service::config::Config;
use hotslot_service::config::{Api, Listen};

use super::error::Fault;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses requests from pages of another origin and requests for another host, before the body is read.
pub(super) async fn refuse_other_origins(
    State(config): State<Arc<Config>>,
    request: Request,
    next: Next,
) -> Response {
    match check(&config.api, request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(fault) => fault.into_response(),
    }
}

/// Whether a request was caused by another site, as its browser says.
pub(super) fn is_of_another_site(headers: &HeaderMap) -> bool {
    let own = |site: &HeaderValue| site == "same-origin" || site == "none";
    headers.get_all(SEC_FETCH_SITE).iter().any(|site| !own(site))
}

/// Whether a person follows a link to a page of hotslot: the browser shows what it gets, and the other site does not see
/// it. `ui.rs` has the browser ask again before it shows anything.
fn is_link_to_page(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    let says = |name: &str, value: &str| headers.get(name).is_some_and(|said| said == value);
    (method == Method::GET || method == Method::HEAD)
        && (uri.path() == "/ui" || uri.path().starts_with("/ui/"))
        && says("sec-fetch-mode", "navigate")
        && says("sec-fetch-dest", "document")
}

fn check(api: &Api, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Fault> {
    let host = host(headers)?;
    let by_browser = headers.contains_key(header::ORIGIN) || headers.contains_key(SEC_FETCH_SITE);
    // Browsers do not connect to unix sockets, but a proxy may do so on behalf of a browser. Any host name is accepted
    // on a unix socket unless names are configured or the request comes from a browser.
    let any_host = matches!(api.listen, Listen::Unix(_)) && api.hosts.is_empty() && !by_browser;
    if !any_host {
        let Some(host) = &host else {
            return Err(Fault::new(StatusCode::BAD_REQUEST, "the request has no Host header; send one"));
        };
        for name in [Some(host), uri.authority()].into_iter().flatten() {
            if !api.is_known_host(name.host()) {
                let message = format!(
                    "{:?} is not a name of this service; use localhost or 127.0.0.1, or add the name to hosts in \
                     [api] of the configuration",
                    shown(name.as_str())
                );
                return Err(Fault::new(StatusCode::MISDIRECTED_REQUEST, message));
            }
        }
    }
    for origin in headers.get_all(header::ORIGIN) {
        let text = origin.to_str().unwrap_or("?");
        let default = if text.starts_with("https:") { 443 } else { 80 };
        let site = |name: &Authority| (name.host().to_ascii_lowercase(), name.port_u16().unwrap_or(default));
        let authority = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let authority = authority.filter(|text| !text.contains('@')).and_then(|text| text.parse().ok());
        if authority.is_none() || authority.as_ref().map(site) != host.as_ref().map(site) {
            return Err(foreign(&format!("Origin {:?}", shown(text))));
        }
    }
    if is_of_another_site(headers) && !is_link_to_page(method, uri, headers) {
        return Err(foreign("Sec-Fetch-Site"));
    }
    Ok(())
}

/// Returns the host and port of the `Host` header; `None` when there is no such header.
///
/// # Errors
/// 400 when there are several such headers, or one that is not a host.
fn host(headers: &HeaderMap) -> Result<Option<Authority>, Fault> {
    let bad =
        |why: &str| Fault::new(StatusCode::BAD_REQUEST, format!("the request {why}; send one Host header"));
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return if headers.contains_key(header::HOST) {
            Err(bad("has several Host headers"))
        } else {
            Ok(None)
        };
    };
    let authority = host.to_str().ok().filter(|text| !text.contains('@')).and_then(|text| text.parse().ok());
    authority.map(Some).ok_or_else(|| bad("has a Host header that is not a host name or address"))
}

fn foreign(header: &str) -> Fault {
    let message = format!(
        "requests of a web page of another origin are refused ({header}); use a program, or do not send this header"
    );
    Fault::new(StatusCode::FORBIDDEN, message)
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hotslot_service::config::Config;

    /// Returns the status of a request with these headers: 200 when it passes the check.
    fn status(config: &str, headers: &[(&str, &str)]) -> u16 {
        status_of("GET /servers", config, headers)
    }

    fn status_of(request: &str, config: &str, headers: &[(&str, &str)]) -> u16 {
        let (method, path) = request.split_once(' ').unwrap();
        let api = Config::parse(config).unwrap().api;
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        check(&api, &method.parse().unwrap(), &path.parse().unwrap(), &map)
            .map_or_else(|fault| fault.status.as_u16(), |()| 200)
    }

    #[test]
    fn a_person_may_follow_a_link_of_another_site_to_a_page_only() {
        const LINK: [(&str, &str); 4] = [
            ("host", "localhost"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        for (request, changed, expected) in [
            ("GET /ui/hosts", None, 200),
            ("HEAD /ui/hosts", None, 200),
            ("GET /ui", None, 200),
            ("POST /ui/hosts", None, 403),
            ("GET /uid", None, 403),
            ("GET /v2.1/servers", None, 403),
            ("GET /ui/hosts", Some(("sec-fetch-mode", "no-cors")), 403),
            ("GET /ui/hosts", Some(("sec-fetch-dest", "iframe")), 403),
            ("GET /ui/hosts", Some(("sec-fetch-dest", "empty")), 403),
            ("GET /ui/hosts", Some(("origin", "http://evil.example")), 403),
            ("GET /ui/hosts", Some(("host", "evil.example")), 421),
        ] {
            let mut headers: Vec<_> =
                LINK.into_iter().filter(|(name, _)| changed.is_none_or(|it| it.0 != *name)).collect();
            headers.extend(changed);
            let config = "[api]\nlisten = '127.0.0.1:9774'\ninsecure_tcp = true";
            assert_eq!(status_of(request, config, &headers), expected, "{request} {headers:?}");
        }
    }

    #[test]
    fn only_known_hosts_and_the_same_origin_pass() {
        const TCP: &str = "[api]\nlisten = '127.0.0.1:9774'\ninsecure_tcp = true";
        const UNIX: &str = "";
        const NAMED: &str = "[api]\nhosts = ['hotslot.example']";
        for (config, headers, expected) in [
            (TCP, &[("host", "localhost:1")][..], 200),
            (TCP, &[("host", "[::1]:9774")], 200),
            (TCP, &[("host", "evil.example:9774")], 421),
            (TCP, &[("host", "a@127.0.0.1")], 400),
            (TCP, &[("host", "")], 400),
            (TCP, &[], 400),
            (TCP, &[("host", "localhost"), ("host", "localhost")], 400),
            (TCP, &[("host", "localhost:9774"), ("origin", "http://localhost:9774")], 200),
            (TCP, &[("host", "localhost:9774"), ("origin", "http://localhost:3000")], 403),
            (TCP, &[("host", "localhost:9774"), ("origin", "null")], 403),
            (TCP, &[("host", "localhost:9774"), ("origin", "http://evil.example")], 403),
            (TCP, &[("host", "localhost:9774"), ("sec-fetch-site", "same-origin")], 200),
            (TCP, &[("host", "localhost:9774"), ("sec-fetch-site", "none")], 200),
            (TCP, &[("host", "localhost:9774"), ("sec-fetch-site", "same-site")], 403),
            (TCP, &[("host", "localhost:9774"), ("sec-fetch-site", "cross-site")], 403),
            (TCP, &[("host", "evil.example"), ("origin", "http://evil.example")], 421),
            (UNIX, &[], 200),
            (UNIX, &[("host", "anything.example")], 200),
            (UNIX, &[("host", "evil.example"), ("origin", "http://evil.example")], 421),
            (UNIX, &[("host", "localhost"), ("origin", "http://evil.example")], 403),
            (NAMED, &[("host", "hotslot.example"), ("origin", "https://hotslot.example")], 200),
            (NAMED, &[("host", "hotslot.example:443"), ("origin", "https://hotslot.example")], 200),
            (NAMED, &[("host", "hotslot.example:80"), ("origin", "http://hotslot.example")], 200),
            (NAMED, &[("host", "hotslot.example:443"), ("origin", "http://hotslot.example")], 403),
            (NAMED, &[("host", "hotslot.example"), ("origin", "https://hotslot.example:8443")], 403),
            (NAMED, &[("host", "localhost")], 200),
            (NAMED, &[("host", "evil.example")], 421),
        ] {
            assert_eq!(status(config, headers), expected, "{config} {headers:?}");
        }
    }
}
