//! Gets a token from Keystone, and the address of the service from its catalog.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use hotslot_model::identity::login::login;
use hotslot_service::config::{expect_private, keystone_url};
use hotslot_service::tls;
use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, StatusCode, Url};
use serde_json::Value;

use crate::client::{CONNECT, secret_header};
use crate::cloud::Cloud;
use crate::exit::{Exit, Failure};

/// The type of the service in Keystone's catalog. The endpoints of the type `accelerator` and `compute` may be those of
/// Cyborg and Nova.
const SERVICE: &str = "hotslot";

/// The time limit for a request to Keystone.
const PATIENCE: Duration = Duration::from_secs(60);

/// A token, and where the service is.
pub(crate) struct Login {
    pub(crate) token: String,
    /// The endpoint in the catalog, where it was looked for.
    pub(crate) endpoint: Option<Url>,
}

impl Login {
    /// Authenticates the user of a cloud. With `find` the service is looked for in the catalog.
    pub(crate) async fn to(cloud: &Cloud, find: bool) -> anyhow::Result<Self> {
        let url = keystone_url(cloud.auth_url()?).map_err(bad_url)?;
        let tls = tls::authorities_for(&url, cloud.cacert.as_deref())
            .and_then(|authorities| tls::client(authorities, None))
            .map_err(|reason| anyhow!("cacert (OS_CACERT): {reason}"))?;
        // Send passwords and tokens to the configured URL only.
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT)
            .timeout(PATIENCE)
            .build()?;
        let (token, catalog) = if let Some(token) = cloud.token() {
            let token = token.trim().to_owned();
            let catalog = if find {
                let request =
                    http.get(format!("{url}/auth/catalog")).header("x-auth-token", secret_header(&token)?);
                exchange(&url, request).await?.1["catalog"].take()
            } else {
                Value::Null
            };
            (token, catalog)
        } else {
            let scope = cloud.scope()?;
            let body = cloud.with_method(|method| login(method, &scope))?;
            let (token, mut body) =
                exchange(&url, http.post(format!("{url}/auth/tokens")).json(&body)).await?;
            let token = token.with_context(|| format!("{url} is not Keystone: its response has no token"))?;
            (token, body["token"]["catalog"].take())
        };
        let endpoint = find.then(|| endpoint(cloud, &catalog)).transpose()?;
        Ok(Self { token, endpoint })
    }
}

fn bad_url(reason: String) -> anyhow::Error {
    anyhow!("auth_url (OS_AUTH_URL): {reason}")
}

/// Sends a request to Keystone. Returns the token in its response, and the body.
///
/// # Errors
/// Anyone on the way could read the password or token, or Keystone cannot be reached, or refuses.
async fn exchange(url: &Url, request: RequestBuilder) -> anyhow::Result<(Option<String>, Value)> {
    expect_private(url, "cacert (OS_CACERT)").map_err(bad_url)?;
    let unreachable = |error: reqwest::Error| {
        if let Some(failure) = tls::Failure::of(&error) {
            let advice = match failure {
                tls::Failure::UnknownAuthority => {
                    "; name the PEM file of the authority in cacert (OS_CACERT)"
                }
                tls::Failure::OtherName { .. } => "; use a name of the certificate in auth_url (OS_AUTH_URL)",
                tls::Failure::Expired | tls::Failure::NotYetValid => {
                    "; have it renewed, or correct this machine's clock"
                }
                tls::Failure::NoTls => "; correct auth_url (OS_AUTH_URL)",
                tls::Failure::NoClientCertificate
                | tls::Failure::RefusedClientCertificate
                | tls::Failure::Other(_) => "",
            };
            let message = format!("no TLS connection to Keystone at {url}: {failure}{advice}");
            return Failure::new(Exit::Unreachable, message);
        }
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Failure::new(Exit::Unreachable, format!("cannot reach Keystone at {url}: {cause}"))
    };
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    let token =
        response.headers().get("x-subject-token").and_then(|token| token.to_str().ok()).map(str::to_owned);
    let body: Value =
        serde_json::from_slice(&response.bytes().await.map_err(unreachable)?).unwrap_or_default();
    if status.is_success() {
        return Ok((token, body));
    }
    let message = body["error"]["message"].as_str().unwrap_or_default();
    let advice = if status == StatusCode::UNAUTHORIZED {
        "; check the user, the password and the project"
    } else {
        ""
    };
    let message = format!("Keystone at {url} responded with status {status}: {message}{advice}");
    Err(Failure::new(Exit::of_status(status.as_u16()), message).into())
}

/// Returns the endpoint of the service in a catalog.
fn endpoint(cloud: &Cloud, catalog: &Value) -> anyhow::Result<Url> {
    let interface = cloud.interface.as_deref().unwrap_or("public").trim_end_matches("URL");
    let region = cloud.region_name.as_deref();
    let services = catalog.as_array().into_iter().flatten().filter(|service| service["type"] == SERVICE);
    let mut endpoints = services.flat_map(|service| service["endpoints"].as_array().into_iter().flatten());
    let is_it = |endpoint: &&Value| {
        endpoint["interface"] == interface
            && region.is_none_or(|region| endpoint["region"] == region || endpoint["region_id"] == region)
    };
    let Some(found) = endpoints.find(is_it) else {
        let place = region.map_or_else(String::new, |region| format!(" in the region {region}"));
        bail!(
            "Keystone's catalog has no {interface} endpoint of a service of the type `{SERVICE}`{place}; give the \
             address with --url, or run `openstack service create --name hotslot {SERVICE}` and `openstack endpoint \
             create {SERVICE} {interface} https://HOST:PORT` as the administrator of Keystone"
        );
    };
    let url = found["url"].as_str().unwrap_or_default();
    Url::parse(url).with_context(|| format!("the endpoint in Keystone's catalog is not a URL: {url}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_endpoint_of_the_interface_and_region_is_found() {
        let at = |interface, region, url| json!({ "interface": interface, "region": region, "url": url });
        let catalog = json!([
            { "type": "compute", "endpoints": [at("public", "R1", "https://nova")] },
            { "type": "hotslot", "endpoints": [
                at("internal", "R1", "https://inside"), at("public", "R1", "https://one"), at("public", "R2", "https://two"),
            ] },
        ]);
        let found = |interface: Option<&str>, region: Option<&str>| {
            let mut cloud = Cloud::default();
            (cloud.interface, cloud.region_name) = (interface.map(str::to_owned), region.map(str::to_owned));
            endpoint(&cloud, &catalog).map(String::from)
        };
        assert_eq!(found(None, None).unwrap(), "https://one/");
        assert_eq!(found(None, Some("R2")).unwrap(), "https://two/");
        assert_eq!(found(Some("internalURL"), None).unwrap(), "https://inside/");
        assert!(found(Some("internal"), Some("R2")).unwrap_err().to_string().contains("in the region R2"));
        assert!(endpoint(&Cloud::default(), &Value::Null).unwrap_err().to_string().contains("--url"));
    }
}
