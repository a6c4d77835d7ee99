//! The certificates of an `https://` connection to the service.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use hotslot_service::tls::{self, ClientConfig, Failure, RootCertStore};

use crate::address::Address;

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
    /// Returns the settings of TLS for a connection to this address. No file is read when it does not use TLS.
    ///
    /// # Errors
    /// A file cannot be used.
    pub(crate) fn client(&self, address: &Address) -> anyhow::Result<ClientConfig> {
        let told = |option: &'static str| move |reason: String| anyhow!("{option}: {reason}");
        if !address.uses_tls() {
            return tls::client(RootCertStore::empty(), None).map_err(told("TLS"));
        }
        let authorities = match &self.ca_file {
            Some(file) => tls::authorities(file).map_err(told("--ca-file"))?,
            None => tls::system_authorities(),
        };
        let identity = self.cert.as_ref().zip(self.key.as_ref());
        let identity = identity.map(|(certificate, key)| tls::identity(certificate, key)).transpose();
        tls::client(authorities, identity.map_err(told("--cert and --key"))?)
            .map_err(told("--cert and --key"))
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
            Failure::NoTls => "; write http:// in --url or HOTSLOT_URL if it is the right port",
            Failure::Other(_) => "",
        }
    }
}
