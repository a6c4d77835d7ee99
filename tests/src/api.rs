//! A client of hotslot's API.

use std::time::{Duration, Instant};

use reqwest::Method;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

use crate::attachments;

/// The default time limit for effects that a simulated host must show without further requests.
const PATIENCE: Duration = Duration::from_secs(60);

/// The API of a service.
#[derive(Debug, Clone)]
pub struct Api {
    url: String,
    client: reqwest::Client,
    pub(crate) patience: Duration,
}

/// A response of the service.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body; null when it is empty.
    pub body: Value,
    /// `Retry-After`.
    pub retry_after: Option<String>,
    /// `Location`.
    pub location: Option<String>,
    /// `ETag`.
    pub etag: Option<String>,
    /// All headers.
    pub headers: reqwest::header::HeaderMap,
}

impl Answer {
    /// Returns the message of a fault in Nova's form.
    pub fn message(&self) -> &str {
        self.body.as_object().and_then(|fault| fault.values().next()?["message"].as_str()).unwrap_or_default()
    }

    /// Returns the message of a fault in Cyborg's form: a JSON document as a string.
    pub fn fault_string(&self) -> String {
        let text = self.body["error_message"].as_str().expect("an error_message");
        let fault: Value = serde_json::from_str(text).expect("JSON in the error_message");
        fault["faultstring"].as_str().expect("a faultstring").to_owned()
    }

    /// Fails the test unless the status is the one expected.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:#}", self.body);
        self
    }
}

/// Makes clients without settings of their own use the cryptography of ring. A second call does nothing.
pub(crate) fn use_ring() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Api {
    /// Returns the API at a URL, or at a unix socket: `unix:/path`.
    pub fn at(url: String) -> Self {
        Self::with_tls(url, None)
    }

    /// Returns the API at a URL, for `https://` with these settings of TLS.
    pub fn with_tls(url: String, tls: Option<ClientConfig>) -> Self {
        use_ring();
        // A test that blocks its thread does not notice that the service has closed an idle connection, and a request
        // on such a connection fails. Idle connections are therefore not reused after some seconds.
        let builder = reqwest::Client::builder().no_proxy().pool_idle_timeout(Duration::from_secs(3));
        let builder = builder.redirect(reqwest::redirect::Policy::none());
        let (builder, url) = match url.strip_prefix("unix:") {
            Some(path) => (builder.unix_socket(path), "http://localhost".to_owned()),
            None => (builder, url),
        };
        // The authorities of the system are not read, because the test VM has none.
        let tls = tls.unwrap_or_else(|| {
            ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
        });
        let builder = builder.tls_backend_preconfigured(tls);
        Self { url, client: builder.build().expect("a client"), patience: PATIENCE }
    }

    /// Returns the same API with another time limit for [`until`](Self::until).
    pub fn patient(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// The URL of the service.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits until the service is ready.
    pub async fn ready(&self) {
        self.until("the service is ready", async || self.get("/readyz").await.status == 200).await;
    }

    /// Waits until a condition holds, and fails the test when it does not hold in time.
    pub async fn until(&self, what: &str, so: impl AsyncFn() -> bool) {
        let start = Instant::now();
        while !so().await {
            assert!(start.elapsed() < self.patience, "timed out waiting until {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a request.
    pub async fn send(&self, method: Method, path: &str, body: Option<(&str, String)>) -> Answer {
        self.sent(method, path, body).await.expect("an answer")
    }

    /// Sends a request; `None` when there is no response.
    pub async fn try_send(&self, method: Method, path: &str, body: Option<(&str, String)>) -> Option<Answer> {
        self.sent(method, path, body).await.ok()
    }

    async fn sent(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, String)>,
    ) -> Result<Answer, reqwest::Error> {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some((kind, body)) = body {
            request = request.header("content-type", kind).body(body);
        }
        self.answer(path, request).await
    }

    /// Sends a request with headers. A body is sent as JSON unless the headers give another media type.
    pub async fn send_with(
        &self,
        method: Method,
        path: &str,
        headers: impl IntoIterator<Item = (String, String)>,
        body: Option<String>,
    ) -> Answer {
        let request = self.client.request(method, format!("{}{path}", self.url));
        let headers: Vec<_> = headers.into_iter().collect();
        let typed = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        let json =
            (body.is_some() && !typed).then(|| ("content-type".to_owned(), "application/json".to_owned()));
        let headers = headers.into_iter().chain(json);
        let request = body.into_iter().fold(request, |request, body| request.body(body));
        let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        self.answer(path, request).await.expect("an answer")
    }

    async fn answer(&self, path: &str, request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
        let response = request.send().await?;
        let status = response.status().as_u16();
        let header =
            |name: &str| response.headers().get(name).map(|value| value.to_str().expect("a text").to_owned());
        let (retry_after, location, etag) = (header("retry-after"), header("location"), header("etag"));
        let headers = response.headers().clone();
        let is_text = header("content-type").is_some_and(|kind| {
            ["application/openmetrics-text", "text/", "image/svg+xml"]
                .iter()
                .any(|text| kind.starts_with(text))
        });
        let text = response.text().await?;
        let body = if text.is_empty() {
            Value::Null
        } else if is_text {
            Value::String(text)
        } else {
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
        };
        Ok(Answer { status, body, retry_after, location, etag, headers })
    }

    /// Sends a GET; `None` when there is no response.
    pub async fn try_get(&self, path: &str) -> Option<Answer> {
        self.try_send(Method::GET, path, None).await
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    /// POST with a JSON body.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Some(("application/json", body.to_string()))).await
    }

    /// POST with a JSON body and an idempotency key.
    pub async fn post_once(&self, path: &str, key: &str, body: &str) -> Answer {
        let request = self.client.post(format!("{}{path}", self.url)).header("idempotency-key", key);
        let request = request.header("content-type", "application/json").body(body.to_owned());
        self.answer(path, request).await.expect("an answer")
    }

    /// PUT with a JSON body.
    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, Some(("application/json", body.to_string()))).await
    }

    /// PUT with a JSON body and `If-Match`.
    pub async fn put_if(&self, path: &str, tag: &str, body: Value) -> Answer {
        let request = self.client.put(format!("{}{path}", self.url)).header("if-match", tag);
        let request = request.header("content-type", "application/json").body(body.to_string());
        self.answer(path, request).await.expect("an answer")
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None).await
    }

    /// Attaches devices by alias.
    pub async fn attach(&self, server: &str, aliases: &str) -> Answer {
        self.post(&attachments(server), json!({ "pciAttachment": { "pci_passthrough:alias": aliases } }))
            .await
    }

    /// Creates an accelerator with a spec, and returns its path.
    pub async fn accelerator(&self, name: &str, spec: Value) -> String {
        let created = self.post("/accelerators", json!({ "name": name })).await.expect(201);
        let location = created.location.expect("a location");
        let path = &location[location.find("/accelerators/").expect("the path of an accelerator")..];
        self.put(&format!("{path}/acc_spec"), json!({ "acc_specs": spec })).await.expect(200);
        path.to_owned()
    }

    /// Returns the attachments of a server.
    pub async fn attachments(&self, server: &str) -> Vec<Value> {
        let answer = self.get(&attachments(server)).await.expect(200);
        answer.body["pciAttachment"].as_array().expect("a list").clone()
    }

    /// Returns the device at an address from `os-pci`; null when there is none.
    pub async fn device(&self, address: &str) -> Value {
        let devices = self.get("/v2/t/os-pci/detail").await.expect(200);
        let devices = devices.body["pci_devices"].as_array().expect("a list").clone();
        devices.into_iter().find(|device| device["address"] == address).unwrap_or(Value::Null)
    }

    /// Returns every PCI function of the first host, by address.
    pub async fn functions(&self) -> serde_json::Map<String, Value> {
        let functions = self.get("/v2/t/os-hypervisors/1/pci_devices").await.expect(200);
        let functions = functions.body["pci_devices"].as_array().expect("a list").clone();
        let address = |function: &Value| function["address"].as_str().expect("a text").to_owned();
        functions.into_iter().map(|function| (address(&function), function)).collect()
    }

    /// Fails the test unless there are no attachments, all devices are available and no function is bound to vfio-pci.
    pub async fn expect_clean(&self) {
        let all = self.get("/v2/t/os-pci_attachments").await.expect(200);
        assert_eq!(all.body["pciAttachment"], json!([]));
        let devices = self.get("/v2/t/os-pci/detail").await.expect(200);
        for device in devices.body["pci_devices"].as_array().expect("a list") {
            assert_eq!(device["status"], "available", "{device}");
            assert_eq!(device["instance_uuid"], Value::Null, "{device}");
        }
        for function in self.functions().await.values() {
            assert_ne!(function["driver"], "vfio-pci", "{function}");
        }
    }
}
