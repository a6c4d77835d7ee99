//! The certificates of an `https://` connection to the service.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use hotslot_service::tls::{self, ClientConfig, Failure};
use reqwest::Url;

/// The certificates of an `https://` connection to the service.
#[derive(Debug, Default, Args)]
pub(crate) struct Tls {
    /// The PEM file of the authority that signed the certificate of an https:// service. By default the authorities of
    /// the system are trusted, with this option only those of the file.
    #[arg(long, global = true, env = "HOTSLOT_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The PEM file of the client certificate, for a service that asks for one.
    #[arg(long, global = true, env = "HOTSLOT_CERT", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The PEM file of the private key of the client certificate.
    #[arg(long, global = true, env = "HOTSLOT_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

impl Tls {
    /// The file of `--ca-file`.
    pub(crate) fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// Returns these settings, with the authorities of `file` where `--ca-file` names no others.
    pub(crate) fn trusting(self, file: Option<PathBuf>) -> Self {
        Self { ca_file: self.ca_file.or(file), ..self }
    }

    /// Returns the settings of TLS for connections to this URL. No file is read when it does not use TLS.
    ///
    /// # Errors
    /// A file cannot be used.
    pub(crate) fn client(&self, url: &Url) -> anyhow::Result<ClientConfig> {
        let of_option = |option: &'static str| move |reason: String| anyhow!("{option}: {reason}");
        let authorities =
            tls::authorities_for(url, self.ca_file.as_deref()).map_err(of_option("--ca-file"))?;
        let identity = self.cert.as_ref().zip(self.key.as_ref()).filter(|_| url.scheme() == "https");
        let identity = identity.map(|(certificate, key)| tls::identity(certificate, key)).transpose();
        tls::client(authorities, identity.map_err(of_option("--cert and --key"))?)
            .map_err(of_option("--cert and --key"))
    }

    /// What a user can do about a failure of TLS, to follow the text of the failure.
    pub(crate) fn advice(failure: &Failure) -> &'static str {
        match failure {
            Failure::UnknownAuthority => {
                "; give the PEM file of the authority with --ca-file or HOTSLOT_CA_FILE"
            }
            Failure::OtherName { .. } => {
                "; use a name of the certificate in --url or HOTSLOT_URL, or have a certificate signed for this one"
            }
            Failure::NoClientCertificate => "; give one with --cert and --key",
            Failure::RefusedClientCertificate => {
                "; give one with --cert and --key that an authority in client_ca of [api.tls] has signed for clients, \
                 and that is valid now"
            }
            Failure::Expired | Failure::NotYetValid => {
                "; have the certificate of the service renewed, or correct the clock of this machine"
            }
            Failure::NoTls => "; write http:// in --url or HOTSLOT_URL if it is the right port",
            Failure::Other(_) => "",
        }
    }
}
