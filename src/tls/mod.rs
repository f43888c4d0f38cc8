//! TLS: certificates of the client port, of the peer port, and of whoever connects to them.
//!
//! A URL decides: `https://` is TLS, `http://` is plain. Certificates are read anew when their files change, at the next
//! handshake, so they are renewed without a restart; if the new files can't be used the old ones stay in use, and the
//! log says so. With a CA to trust, a side that connects must show a certificate of that CA ([`files`]), which is not
//! revoked, and is of somebody who is let in ([`admission`]). Versions and cipher suites are those of [`protocol`].

pub mod admission;
pub mod files;
pub mod protocol;

use std::fmt;
use std::io;
use std::sync::Arc;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint, Uri};

pub use self::admission::Admission;
use self::admission::common_name;
pub use self::files::Files;
use self::files::{Renewed, is_unset};
pub use self::protocol::Protocol;
use crate::wire::Gathered;

/// One side of TLS.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// What it shows, and whom it trusts.
    pub files: Files,
    /// What it speaks.
    pub protocol: Protocol,
    /// Whom it takes of those that it trusts.
    pub admission: Admission,
}

impl From<Files> for Options {
    fn from(files: Files) -> Self {
        Options {
            files,
            ..Options::default()
        }
    }
}

/// The side that is connected to.
pub struct ServerTls {
    shown: Renewed<Shown>,
    admission: Admission,
}

/// What is made of a certificate.
#[derive(Clone)]
struct Shown {
    config: Arc<ServerConfig>,
    /// When it ends, in seconds since 1970.
    not_after: i64,
}

/// A stream that is encrypted, or not.
pub type ServerStream = Either<TcpStream, server::TlsStream<TcpStream>>;

/// The name in the certificate that a client showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommonName(pub String);

impl ServerTls {
    /// With these options; the files are checked now.
    pub fn new(options: Options) -> anyhow::Result<Self> {
        let protocol = options.protocol;
        Ok(ServerTls {
            shown: Renewed::new(options.files, move |files| {
                Ok(Shown {
                    config: server_config(files, &protocol)?,
                    not_after: files.not_after()?,
                })
            })?,
            admission: options.admission,
        })
    }

    /// When the certificate that is shown now ends, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.shown.get().not_after
    }

    /// The handshake. The client's common name, if it showed a certificate.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<(ServerStream, Option<CommonName>)> {
        let remote = stream.peer_addr()?;
        let stream = TlsAcceptor::from(self.shown.get().config).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        self.admission.check_name(shown, remote)?;
        self.admission.check_address(shown, remote).await?;
        let name = shown.and_then(common_name).map(CommonName);
        Ok((Either::Right(stream), name))
    }
}

fn server_config(files: &Files, protocol: &Protocol) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = protocol.provider();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(protocol.versions())
        .context("TLS")?;
    let builder = match is_unset(&files.ca) {
        true => builder.with_no_client_auth(),
        false => {
            // As in etcd, an authority that has no list in the file has revoked nothing.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(files.roots()?), provider)
                .with_crls(files.revoked()?)
                .allow_unknown_revocation_status()
                .build()
                .with_context(|| format!("{}: can't be trusted", files.ca.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(files.chain()?, files.private_key()?)
        .with_context(|| format!("{} and {} do not fit", files.cert.display(), files.key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The side that connects.
pub struct ClientTls {
    config: Renewed<Arc<ClientConfig>>,
    admission: Admission,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientTls").field(self.config.files()).finish()
    }
}

impl ClientTls {
    /// With the authorities in these files (none: those of the web) and, if given, a certificate to show.
    pub fn new(options: impl Into<Options>) -> anyhow::Result<Self> {
        ClientTls::verified_by(verifier, options.into())
    }

    /// Takes whatever certificate it is shown: encrypted, but anybody may be at the other end.
    pub fn trusting_anybody(options: impl Into<Options>) -> anyhow::Result<Self> {
        ClientTls::verified_by(no_verifier, options.into())
    }

    fn verified_by(verifier: MakeVerifier, options: Options) -> anyhow::Result<Self> {
        let protocol = options.protocol;
        Ok(ClientTls {
            config: Renewed::new(options.files, move |files| {
                client_config(files, &protocol, verifier(files, protocol.provider())?)
            })?,
            admission: options.admission,
        })
    }

    async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        let name = host.trim_start_matches('[').trim_end_matches(']').to_string();
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let remote = stream.peer_addr()?;
        let stream = TlsConnector::from(self.config.get())
            .connect(name, stream)
            .await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        self.admission.check_name(shown, remote)?;
        Ok(stream)
    }
}

type MakeVerifier = fn(&Files, Arc<CryptoProvider>) -> anyhow::Result<Arc<dyn ServerCertVerifier>>;

fn verifier(files: &Files, provider: Arc<CryptoProvider>) -> anyhow::Result<Arc<dyn ServerCertVerifier>> {
    let roots = match is_unset(&files.ca) {
        true => RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        },
        false => files.roots()?,
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(files.revoked()?)
        .allow_unknown_revocation_status()
        .build()?;
    Ok(verifier)
}

fn no_verifier(_: &Files, provider: Arc<CryptoProvider>) -> anyhow::Result<Arc<dyn ServerCertVerifier>> {
    Ok(Arc::new(AnyCertificate(provider)))
}

fn client_config(
    files: &Files,
    protocol: &Protocol,
    verifier: Arc<dyn ServerCertVerifier>,
) -> anyhow::Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(protocol.provider())
        .with_protocol_versions(protocol.versions())
        .context("TLS")?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match is_unset(&files.cert) {
        true => builder.with_no_client_auth(),
        false => builder
            .with_client_auth_cert(files.chain()?, files.private_key()?)
            .with_context(|| format!("{} and {} do not fit", files.cert.display(), files.key.display()))?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A channel over plain connections to `http://`, over TLS to `https://`; made at the first use, and names resolved
/// anew, at each connection.
pub fn channel(endpoint: &Endpoint, tls: Option<Arc<ClientTls>>) -> Channel {
    endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| connect(uri, tls.clone())))
}

/// The same, but the first connection is made now.
pub async fn connected(
    endpoint: &Endpoint,
    tls: Option<Arc<ClientTls>>,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |uri: Uri| connect(uri, tls.clone()));
    endpoint.connect_with_connector(connector).await
}

/// A connection of the side that connects, encrypted or not.
pub type ClientStream = Either<TcpStream, client::TlsStream<TcpStream>>;

async fn connect(uri: Uri, tls: Option<Arc<ClientTls>>) -> io::Result<TokioIo<Gathered<ClientStream>>> {
    let stream = dial(&uri, tls).await?;
    Ok(TokioIo::new(Gathered::new(stream)))
}

/// A bare connection: plain to `http://`, over TLS to `https://`.
pub async fn dial(uri: &Uri, tls: Option<Arc<ClientTls>>) -> io::Result<ClientStream> {
    let is_tls = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let stream = TcpStream::connect((host.trim_start_matches('[').trim_end_matches(']'), port)).await?;
    stream.set_nodelay(true)?;
    match (is_tls, tls) {
        (false, _) => Ok(Either::Left(stream)),
        (true, Some(tls)) => tls.connect(host, stream).await.map(Either::Right),
        (true, None) => Err(io::Error::other("https:// needs certificates to be configured")),
    }
}

/// Verifies that the other end has the key of the certificate that it shows, and nothing about whose that is.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
