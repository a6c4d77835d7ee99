//! Certificates and keys of TLS connections, and why a TLS connection failed.
//!
//! TLS is by rustls with the cryptography of ring. hotslot uses TLS 1.2 and 1.3 only; rustls has no older versions.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use reqwest::Url;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::{AlertDescription, CertificateError};
pub use rustls::{ClientConfig, RootCertStore};

/// A chain of certificates, the own one first, and the key of the own one.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Returns the cryptography of all TLS connections.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads a chain of certificates and its key from PEM files.
///
/// # Errors
/// Says which file cannot be used, and why.
pub fn identity(certificate: &Path, key: &Path) -> Result<Identity, String> {
    let chain = certificates(certificate)?;
    if chain.first().is_none_or(|own| ParsedCertificate::try_from(own).is_err()) {
        return Err(unreadable(certificate, pem::Error::NoItemsFound, "certificate that can be read"));
    }
    let reason = |error| unreadable(key, error, "private key that is not encrypted");
    Ok((chain, PrivateKeyDer::from_pem_file(key).map_err(reason)?))
}

/// Reads the certificates of a PEM file.
///
/// # Errors
/// Says why the file cannot be used.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let reason = |error| unreadable(file, error, "certificate");
    let found = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found.map_err(reason)? {
        none if none.is_empty() => Err(reason(pem::Error::NoItemsFound)),
        found => Ok(found),
    }
}

/// Makes the message for a PEM file. It never repeats a line of the file, which may be a secret.
fn unreadable(file: &Path, error: pem::Error, expected: &str) -> String {
    let file = file.display();
    if let pem::Error::Io(error) = error {
        format!("cannot read {file}: {error}")
    } else {
        format!("{file} has no {expected}; write a PEM file")
    }
}

/// Reads the certificates of authorities from a PEM file.
///
/// # Errors
/// Says why the file cannot be used.
pub fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(file)? {
        store
            .add(certificate)
            .map_err(|error| format!("{} has a certificate that cannot be used: {error}", file.display()))?;
    }
    Ok(store)
}

/// Returns the authorities that the system trusts. `SSL_CERT_FILE` and `SSL_CERT_DIR` replace them.
fn system_authorities() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(%error, "some certificates of the system's authorities cannot be read");
    }
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    store
}

/// Returns the authorities that a client of `url` trusts: those of a PEM file, or without one those of the system. None
/// are read for a URL that does not use TLS.
///
/// # Errors
/// Says why the file cannot be used.
pub fn authorities_for(url: &Url, file: Option<&Path>) -> Result<RootCertStore, String> {
    if url.scheme() != "https" {
        return Ok(RootCertStore::empty());
    }
    file.map_or_else(|| Ok(system_authorities()), authorities)
}

/// Returns the settings of a client that trusts these authorities and shows this certificate.
///
/// # Errors
/// The key does not belong to the certificate, or cannot be used.
pub fn client(authorities: RootCertStore, identity: Option<Identity>) -> Result<ClientConfig, String> {
    let reason = |error: rustls::Error| error.to_string();
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(reason)?.with_root_certificates(authorities);
    let mut client = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(reason)?,
        None => builder.with_no_client_auth(),
    };
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(client)
}

/// Why a TLS connection to a server failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No trusted authority has signed the certificate of the server.
    UnknownAuthority,
    /// The certificate is for other names.
    OtherName {
        /// The name or address that the client used.
        expected: String,
        /// The names of the certificate.
        names: Vec<String>,
    },
    /// The certificate has expired.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// The server demands a client certificate.
    NoClientCertificate,
    /// The server does not accept the client certificate.
    RefusedClientCertificate,
    /// The server does not use TLS.
    NoTls,
    /// Anything else, in the words of rustls.
    Other(String),
}

impl Failure {
    /// Returns the failure of TLS in the causes of an error, if there is one.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(failure) = error.downcast_ref::<rustls::Error>() {
                return Some(failure.into());
            }
            // The source of an I/O error is that of the error within it.
            let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            cause = within.map(|within| within as &(dyn Error + 'static)).or_else(|| error.source());
        }
        None
    }

    /// Says that TLS failed, and what to change in a part of the configuration with the keys `url` and `ca`.
    pub(crate) fn in_configuration(&self) -> String {
        let advice = match self {
            Self::UnknownAuthority => "; name the PEM file of its authority in `ca`",
            Self::OtherName { .. } => "; use a name of the certificate in `url`",
            Self::NoTls => "; correct the port in `url`, or write http:// where that is permitted",
            Self::Expired | Self::NotYetValid => "; have it renewed, or correct the clock of this machine",
            Self::NoClientCertificate | Self::RefusedClientCertificate | Self::Other(_) => "",
        };
        format!("TLS failed: {self}{advice}")
    }
}

impl From<&rustls::Error> for Failure {
    fn from(error: &rustls::Error) -> Self {
        use rustls::Error as Tls;
        // The signature is bad when an authority has the name of a trusted one, but another key.
        use CertificateError as Bad;
        if matches!(error, Tls::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) {
            return Self::UnknownAuthority;
        }
        if matches!(error, Tls::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) {
            return Self::Expired;
        }
        if matches!(error, Tls::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. })) {
            return Self::NotYetValid;
        }
        if let Tls::InvalidCertificate(Bad::NotValidForNameContext { expected, presented }) = error {
            // rustls writes `DnsName("a.example")` and `IpAddress(192.0.2.1)`.
            let plain = |name: &String| {
                name.split(['(', ')', '"']).rfind(|part| !part.is_empty()).unwrap_or_default().into()
            };
            let names = presented.iter().map(plain).collect();
            return Self::OtherName { expected: expected.to_str().into_owned(), names };
        }
        if let Tls::AlertReceived(alert) = error {
            if *alert == AlertDescription::CertificateRequired {
                return Self::NoClientCertificate;
            }
            use AlertDescription as Alert;
            let of_certificate = [
                Alert::BadCertificate,
                Alert::UnsupportedCertificate,
                Alert::CertificateRevoked,
                Alert::CertificateExpired,
                Alert::CertificateUnknown,
                Alert::UnknownCA,
                Alert::DecryptError,
            ];
            if of_certificate.contains(alert) {
                return Self::RefusedClientCertificate;
            }
        }
        if matches!(error, Tls::InvalidMessage(_)) { Self::NoTls } else { Self::Other(error.to_string()) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownAuthority => f.write_str("no trusted authority has signed its certificate"),
            Self::OtherName { expected, names } if names.is_empty() => {
                write!(f, "its certificate has no names, and so it is not valid for {expected}")
            }
            Self::OtherName { expected, names } => {
                write!(f, "its certificate is for {}, and not for {expected}", names.join(", "))
            }
            Self::Expired => f.write_str("its certificate has expired"),
            Self::NotYetValid => f.write_str("its certificate is not valid yet"),
            Self::NoClientCertificate => f.write_str("it demands a client certificate"),
            Self::RefusedClientCertificate => f.write_str("it does not accept the client certificate"),
            Self::NoTls => f.write_str("it does not use TLS"),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_pem_file_does_not_repeat_its_lines() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pem");
        for text in [
            "s3cret",
            "-----BEGIN s3cret",
            "-----BEGIN PRIVATE KEY-----\ns3cret!\n-----END PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----\ns3cret",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nczNjcmV0\n-----END ENCRYPTED PRIVATE KEY-----",
        ] {
            std::fs::write(&file, text).unwrap();
            let message = unreadable(&file, PrivateKeyDer::from_pem_file(&file).unwrap_err(), "key");
            assert!(message.contains("key.pem has no key") && !message.contains("s3cret"), "{message}");
            let message = certificates(&file).unwrap_err();
            assert!(
                message.contains("key.pem has no certificate") && !message.contains("s3cret"),
                "{message}"
            );
        }
        let message = certificates(&dir.path().join("none.pem")).unwrap_err();
        assert!(message.contains("cannot read") && message.contains("none.pem: No such file"), "{message}");
    }

    #[test]
    fn the_failure_of_tls_is_found_within_other_errors() {
        let error = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let error = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(Failure::of(&error), Some(Failure::UnknownAuthority));
        assert_eq!(Failure::of(&io::Error::other("x")), None);
    }
}
