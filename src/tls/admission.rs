//! Whom a side takes, of those for whom an authority vouches.
//!
//! An authority may sign for many, of which few are members. The rules here are etcd's: names that a certificate must
//! have, and that it is for the address it is shown from. That its alternative names say: the address is among them, or
//! what one of them stands for in DNS, or has one of them there; only the last makes a `*.name` match. A certificate
//! without addresses and names is for any address.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustls::pki_types::{CertificateDer, ServerName};
use x509_parser::extensions::GeneralName;

/// Rules for the certificate of the other end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admission {
    /// It has one of these common names; empty: any.
    pub common_names: Vec<String>,
    /// It is for one of these hosts; empty: any.
    pub hosts: Vec<String>,
    /// It is for the address that the connection comes from.
    pub from_its_address: bool,
}

impl Admission {
    /// Refuses a certificate without the right name. None shown has no name at all.
    pub(super) fn check_name(
        &self,
        shown: Option<&CertificateDer<'_>>,
        remote: SocketAddr,
    ) -> io::Result<()> {
        let is_called = |name: &String| shown.and_then(common_name).as_ref() == Some(name);
        if !self.common_names.is_empty() && !self.common_names.iter().any(is_called) {
            return Err(refused(remote, "has another common name than those allowed"));
        }
        let is_its_host = |host: &String| shown.is_some_and(|shown| is_for(shown, host));
        if !self.hosts.is_empty() && !self.hosts.iter().any(is_its_host) {
            return Err(refused(remote, "is for another host than those allowed"));
        }
        Ok(())
    }

    /// Refuses a certificate that is not for where it is shown from. None shown is none that was stolen.
    pub(super) async fn check_address(
        &self,
        shown: Option<&CertificateDer<'_>>,
        remote: SocketAddr,
    ) -> io::Result<()> {
        let Some(shown) = shown.filter(|_| self.from_its_address) else {
            return Ok(());
        };
        let names = Names::of(shown).ok_or_else(|| refused(remote, "can't be read"))?;
        // An IPv4 client of a listener that takes both kinds.
        let address = remote.ip().to_canonical();
        if names.are_none() || names.addresses.contains(&address) || names.resolve_to(address).await {
            return Ok(());
        }
        Err(refused(remote, "is not for this address"))
    }
}

fn refused(remote: SocketAddr, why: &str) -> io::Error {
    let said = format!("the certificate that {remote} shows {why}");
    io::Error::new(io::ErrorKind::PermissionDenied, said)
}

/// Whose a certificate says that it is.
pub(super) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_string)
}

/// Whether a certificate is for a host, by its alternative names.
fn is_for(certificate: &CertificateDer<'_>, host: &str) -> bool {
    let Ok(name) = ServerName::try_from(host) else {
        return false;
    };
    rustls::server::ParsedCertificate::try_from(certificate)
        .is_ok_and(|parsed| rustls::client::verify_server_name(&parsed, &name).is_ok())
}

/// The alternative names of a certificate.
struct Names {
    addresses: Vec<IpAddr>,
    dns: Vec<String>,
}

impl Names {
    /// None: what is said there can't be read.
    fn of(certificate: &CertificateDer<'_>) -> Option<Names> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let mut names = Names {
            addresses: Vec::new(),
            dns: Vec::new(),
        };
        let extension = parsed.subject_alternative_name().ok()?;
        for name in extension.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::IPAddress(bytes) => names.addresses.push(address(bytes)?),
                GeneralName::DNSName(name) => names.dns.push(name.to_string()),
                _ => {}
            }
        }
        Some(names)
    }

    fn are_none(&self) -> bool {
        self.addresses.is_empty() && self.dns.is_empty()
    }

    async fn resolve_to(&self, remote: IpAddr) -> bool {
        for name in self.dns.iter().filter(|name| !name.starts_with("*.")) {
            let resolved = tokio::net::lookup_host((name.as_str(), 0)).await;
            if resolved.is_ok_and(|mut found| found.any(|found| found.ip().to_canonical() == remote)) {
                return true;
            }
        }
        if self.dns.is_empty() {
            return false;
        }
        // It blocks, as the resolver does; how many wait is bounded by how many are being accepted.
        let named = tokio::task::spawn_blocking(move || dns_lookup::lookup_addr(&remote)).await;
        named.is_ok_and(|named| named.is_ok_and(|named| self.dns.iter().any(|name| covers(name, &named))))
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let sixteen = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| sixteen()).ok()
}

/// Whether a name in a certificate stands for this one; `*.` for any number of labels, as etcd has it.
fn covers(name: &str, of_the_address: &str) -> bool {
    let (name, named) = (name.to_lowercase(), of_the_address.to_lowercase());
    let named = named.trim_end_matches('.');
    match name.strip_prefix('*') {
        Some(domain) if domain.starts_with('.') => named.ends_with(domain),
        _ => name == named,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn certificate(name: &str, alternative: &[&str]) -> CertificateDer<'static> {
        let alternative: Vec<String> = alternative.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(alternative).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        signed(params)
    }

    fn signed(params: CertificateParams) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().clone()
    }

    fn remote() -> SocketAddr {
        ([10, 0, 0, 1], 2380).into()
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_of_the_common_names_is_enough() {
        let rules = Admission {
            common_names: strings(&["a", "b"]),
            ..Admission::default()
        };
        assert!(rules.check_name(Some(&certificate("b", &[])), remote()).is_ok());
        assert!(
            rules
                .check_name(Some(&certificate("c", &["a", "b"])), remote())
                .is_err()
        );
        assert!(rules.check_name(None, remote()).is_err());
        assert!(Admission::default().check_name(None, remote()).is_ok());
    }

    #[test]
    fn one_of_the_hosts_is_enough() {
        let rules = Admission {
            hosts: strings(&["n1.example.com", "10.0.0.1"]),
            ..Admission::default()
        };
        for names in [
            &["n1.example.com"][..],
            &["*.example.com"],
            &["10.0.0.1"],
            &["x", "10.0.0.1"],
        ] {
            assert!(
                rules.check_name(Some(&certificate("a", names)), remote()).is_ok(),
                "{names:?}"
            );
        }
        for names in [&["n2.example.com"][..], &["10.0.0.2"], &[]] {
            let shown = certificate("n1.example.com", names);
            assert!(rules.check_name(Some(&shown), remote()).is_err(), "{names:?}");
        }
        assert!(rules.check_name(None, remote()).is_err());
    }

    #[tokio::test]
    async fn a_certificate_is_for_the_address_that_it_is_shown_from() {
        let rules = Admission {
            from_its_address: true,
            ..Admission::default()
        };
        for (names, remote, is_taken) in [
            (&["10.0.0.1"][..], "10.0.0.1:1", true),
            (&["10.0.0.1"], "[::ffff:10.0.0.1]:1", true),
            (&["10.0.0.1", "10.0.0.2"], "10.0.0.2:1", true),
            (&["fd00::1"], "[fd00::1]:1", true),
            (&["10.0.0.1"], "10.0.0.2:1", false),
            (&["fd00::1"], "10.0.0.1:1", false),
            (&["localhost"], "127.0.0.1:1", true),
            (&["10.0.0.1", "localhost"], "127.0.0.1:1", true),
            (&["nowhere.invalid"], "127.0.0.1:1", false),
            (&["*.invalid"], "127.0.0.1:1", false),
            (&[], "10.0.0.2:1", true),
        ] {
            let shown = certificate("a", names);
            let remote = remote.parse().expect("an address");
            let taken = rules.check_address(Some(&shown), remote).await;
            assert_eq!(taken.is_ok(), is_taken, "{names:?} from {remote}: {taken:?}");
            let anywhere = Admission::default().check_address(Some(&shown), remote).await;
            assert!(anywhere.is_ok());
        }
        assert!(rules.check_address(None, remote()).await.is_ok());
    }

    #[tokio::test]
    async fn other_kinds_of_names_say_nothing_about_addresses() {
        let rules = Admission {
            from_its_address: true,
            ..Admission::default()
        };
        let mut params = CertificateParams::default();
        let mail = "a@example.com".try_into().expect("ASCII");
        params.subject_alt_names.push(SanType::Rfc822Name(mail));
        assert!(rules.check_address(Some(&signed(params)), remote()).await.is_ok());
    }

    #[test]
    fn names_that_an_address_has_in_dns() {
        for (name, of_the_address, is_covered) in [
            ("n1.example.com", "n1.example.com", true),
            ("n1.example.com", "N1.Example.com.", true),
            ("*.example.com", "n1.example.com", true),
            ("*.example.com", "a.n1.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "n1.badexample.com", false),
            ("*", "n1", false),
            ("n1", "n2", false),
        ] {
            assert_eq!(
                covers(name, of_the_address),
                is_covered,
                "{name} {of_the_address}"
            );
        }
    }
}
