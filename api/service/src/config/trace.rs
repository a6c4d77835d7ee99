//! `[trace]`: where the service sends traces.

use std::path::PathBuf;

use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

/// `[trace]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Trace {
    /// The base URL of a receiver of OTLP over HTTP, such as `http://127.0.0.1:4318`. Without it, no traces are sent.
    pub endpoint: Option<String>,
    /// The PEM file of the authorities of the receiver's certificate. Without it, the authorities that the system trusts.
    pub ca: Option<PathBuf>,
}

/// Parses and checks the URL of a collector, and adds the path of traces.
///
/// # Errors
/// What is wrong and what would be right.
pub(crate) fn collector_url(text: &str) -> Result<Url, String> {
    const WRITE: &str = "write the base URL of an OTLP receiver over HTTP, such as http://127.0.0.1:4318";
    let mut url = Url::parse(text).map_err(|error| format!("not a URL ({error}); {WRITE}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("`{}` is not supported; {WRITE}", url.scheme()));
    }
    let has_more = url.query().is_some() || url.fragment().is_some();
    if !url.username().is_empty() || url.password().is_some() || has_more {
        return Err(format!("it has a user, password, query or fragment; {WRITE}"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&if path.ends_with("/v1/traces") { path } else { path + "/v1/traces" });
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::collector_url;

    #[test]
    fn the_path_of_traces_is_added_to_the_url_of_a_collector() {
        for (text, expected) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("https://otel.example.org/otlp/", "https://otel.example.org/otlp/v1/traces"),
            ("http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/traces"),
        ] {
            assert_eq!(collector_url(text).unwrap().as_str(), expected);
        }
        for bad in ["", "127.0.0.1:4318", "grpc://127.0.0.1:4317", "http://user:s3cret@h/", "http://h/?a=b"] {
            let reason = collector_url(bad).unwrap_err();
            assert!(reason.contains("write the base URL") && !reason.contains("s3cret"), "{reason}");
        }
    }
}
