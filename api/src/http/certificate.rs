//! What is in a certificate: the names of a client, and when a certificate is valid.

use std::fmt;
use std::net::IpAddr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

/// The names in a client certificate (RFC 5280, 4.1.2.6 and 4.2.1.6). A request of a client with a certificate has an
/// `Arc` of it among its extensions. The handshake has checked that an authority of `client_ca` signed it, that it is
/// for client authentication, that it is valid now, and that the client has its key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ClientCertificate {
    /// The last common name of the subject.
    common_name: Option<String>,
    /// The subject's alternative names in the notation of OpenSSL: `DNS:a.example`, `IP:192.0.2.1`, `email:a@b.example`
    /// and `URI:spiffe://a/b`. Names of other kinds are left out.
    names: Vec<String>,
}

impl ClientCertificate {
    /// Reads the names of a certificate in DER. Returns `None` when it is not a certificate.
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let common_name = certificate.subject().iter_common_name().last();
        let common_name = common_name.and_then(|name| Some(name.as_str().ok()?.to_owned()));
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.map(|names| names.value.general_names.iter().filter_map(name).collect());
        Some(Self { common_name, names: names.unwrap_or_default() })
    }
}

/// Says since or until when a certificate in DER is not valid; `None` when it is valid now.
pub(super) fn out_of_date(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let (validity, now) = (certificate.validity(), ASN1Time::now());
    if now < validity.not_before {
        return Some(format!("is not valid before {}", validity.not_before));
    }
    (now > validity.not_after).then(|| format!("expired at {}", validity.not_after))
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(format!("DNS:{name}")),
        GeneralName::RFC822Name(name) => Some(format!("email:{name}")),
        GeneralName::URI(name) => Some(format!("URI:{name}")),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok()?;
            Some(format!("IP:{address}"))
        }
        GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    }
}

impl fmt::Display for ClientCertificate {
    /// Writes `CN=name, DNS:name, …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let common_name = self.common_name.iter().map(|name| format!("CN={name}"));
        f.write_str(&common_name.chain(self.names.iter().cloned()).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    #[test]
    fn the_names_of_a_certificate_are_read() {
        let mut params = CertificateParams::new(vec!["a.example".into(), "2001:db8::1".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "nova-compute");
        params.subject_alt_names.push(SanType::URI("spiffe://site/nova".try_into().unwrap()));
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let read = ClientCertificate::read(certificate.der()).unwrap();
        assert_eq!(
            read.to_string(),
            "CN=nova-compute, DNS:a.example, IP:2001:db8::1, URI:spiffe://site/nova"
        );
        assert_eq!(ClientCertificate::read(b"-----BEGIN"), None);
        assert_eq!(ClientCertificate::read(&certificate.der()[..100]), None);
    }
}
