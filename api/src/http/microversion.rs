//! Nova's microversions: which one a request asks for, and whether there is such a one. Cyborg's are in `cyborg`.

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::error::Fault;
use super::versions::MICROVERSION;

/// The header of all services, which counts when a request has both.
const HEADER: &str = "openstack-api-version";

/// Nova's own header before microversion 2.27.
const LEGACY: &str = "x-openstack-nova-api-version";

/// Refuses a request under `/v2.1` that asks for a microversion which is not supported. Like Nova, the other versions have no
/// microversions and ignore the headers.
pub(super) async fn refuse_unsupported(request: Request, next: Next) -> Response {
    let below = request.uri().path().strip_prefix("/v2.1");
    if below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
        && let Err(fault) = check(request.headers())
    {
        return fault.into_response();
    }
    next.run(request).await
}

/// Checks the microversion that a request asks for, as Nova does with microversion-parse.
///
/// # Errors
/// 400 when it is not a microversion; 406 when it is not supported.
fn check(headers: &HeaderMap) -> Result<(), Fault> {
    let Some(version) = requested(headers) else { return Ok(()) };
    if version == "latest" || version == MICROVERSION {
        return Ok(());
    }
    let shown: String = version.chars().take(80).collect();
    if is_microversion(&version) {
        let message = format!(
            "version {shown} is not supported by the API: minimum and maximum are {MICROVERSION}; ask for this one, or \
             send no such header"
        );
        return Err(Fault::new(StatusCode::NOT_ACCEPTABLE, message));
    }
    Err(malformed(&shown))
}

fn malformed(shown: &str) -> Fault {
    let message = format!(
        "the API version `{shown}` is not of the form MAJOR.MINOR; send `OpenStack-API-Version: compute \
         {MICROVERSION}`, or no such header"
    );
    Fault::new(StatusCode::BAD_REQUEST, message)
}

/// Returns the microversion of the service `compute` that the headers name. As in microversion-parse, repeated headers are
/// one list, the last item of a list counts, and a service without a version is skipped.
fn requested(headers: &HeaderMap) -> Option<String> {
    let values = |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    let items = |name| values(name).flat_map(|value| value.split(',')).map(str::trim);
    let of_compute = |item: &str| {
        let (service, version) = item.split_once(char::is_whitespace)?;
        service.eq_ignore_ascii_case("compute").then(|| version.trim().to_owned())
    };
    items(HEADER).filter_map(of_compute).next_back().or_else(|| items(LEGACY).next_back().map(str::to_owned))
}

/// Whether a text is a microversion: two numbers without leading zeros, of which the first is above 0.
fn is_microversion(text: &str) -> bool {
    let number = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|digit| digit.is_ascii_digit())
            && (text == "0" || !text.starts_with('0'))
    };
    text.split_once('.').is_some_and(|(major, minor)| number(major) && major != "0" && number(minor))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    #[test]
    fn only_the_supported_microversion_passes() {
        for (headers, status) in [
            (&[][..], 200),
            (&[(HEADER, "compute 2.1")], 200),
            (&[(HEADER, "compute latest")], 200),
            (&[(HEADER, "Compute 2.1")], 200),
            (&[(HEADER, "compute 2.2")], 406),
            (&[(HEADER, "compute 2.0")], 406),
            (&[(HEADER, "compute 3.0")], 406),
            (&[(HEADER, "compute 99999999999999999999.1")], 406),
            (&[(HEADER, "compute 2")], 400),
            (&[(HEADER, "compute 2.01")], 400),
            (&[(HEADER, "compute 0.1")], 400),
            (&[(HEADER, "compute two")], 400),
            (&[(HEADER, "compute")], 200),
            (&[(HEADER, "compute"), (LEGACY, "2.90")], 406),
            (&[(HEADER, "compute 2.1 2.1")], 400),
            (&[(HEADER, "compute Latest")], 400),
            (&[(LEGACY, "LATEST")], 400),
            (&[(HEADER, "compute 2.90, compute 2.1")], 200),
            (&[(HEADER, "compute 2.1, compute 2.90, compute")], 406),
            (&[(HEADER, "compute 2.90"), (HEADER, "volume 3.1,compute\t 2.1")], 200),
            (&[(LEGACY, "2.90, 2.1")], 200),
            (&[(LEGACY, "2.1"), (LEGACY, "2.90")], 406),
            (&[(HEADER, "accelerator 2.9")], 200),
            (&[(HEADER, "accelerator 2.9, compute 2.90")], 406),
            (&[(LEGACY, "2.1")], 200),
            (&[(LEGACY, "latest")], 200),
            (&[(LEGACY, "2.90")], 406),
            (&[(LEGACY, "x")], 400),
            (&[(LEGACY, "")], 400),
            (&[(HEADER, "compute 2.1"), (LEGACY, "2.90")], 200),
            (&[(HEADER, "volume 3.1"), (LEGACY, "2.90")], 406),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(HeaderName::from_static(name), value.parse().unwrap());
            }
            let answered = check(&map).map_or_else(|fault| fault.status.as_u16(), |()| 200);
            assert_eq!(answered, status, "{headers:?}");
        }
    }
}
