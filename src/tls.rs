//! TLS: certificates of the client port, of the peer port, and of whoever connects to them.
//!
//! A URL decides: `https://` is TLS, `http://` is plain. Certificates are read anew when their files change, at the next
//! handshake, so they are renewed without a restart; if the new files can't be used the old ones stay in use, and the
//! log says so. With a CA to trust, a side that connects must show a certificate of that CA.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, bail};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint, Uri};

/// Which files one side uses. An empty path: not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Authorities to trust, PEM.
    pub ca: PathBuf,
    /// Certificates that were revoked, PEM.
    pub crl: PathBuf,
    /// Whoever connects must show a certificate with this common name; empty: any.
    pub allowed_cn: String,
    /// Whoever connects must show a certificate for this host; empty: any.
    pub allowed_host: String,
}

impl Files {
    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cert, &self.key, &self.ca, &self.crl]
            .into_iter()
            .filter(|path| !path.as_os_str().is_empty())
    }

    /// When each was last changed: a renewed certificate shows here.
    fn changed(&self) -> Vec<Option<SystemTime>> {
        let changed = |path: &PathBuf| std::fs::metadata(path).and_then(|file| file.modified()).ok();
        self.all().map(changed).collect()
    }

    fn chain(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        certificates(&self.cert)
    }

    fn private_key(&self) -> anyhow::Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_file(&self.key)
            .with_context(|| format!("{}: no private key can be read from it", self.key.display()))
    }

    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots
                .add(certificate)
                .with_context(|| format!("{}: not an authority", self.ca.display()))?;
        }
        Ok(roots)
    }

    fn revoked(&self) -> anyhow::Result<Vec<CertificateRevocationListDer<'static>>> {
        if is_unset(&self.crl) {
            return Ok(Vec::new());
        }
        let lists = CertificateRevocationListDer::pem_file_iter(&self.crl).and_then(Iterator::collect);
        lists.with_context(|| format!("{}: no revocation list can be read from it", self.crl.display()))
    }
}

fn is_unset(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let read = read.with_context(|| format!("{}: no certificate can be read from it", path.display()))?;
    if read.is_empty() {
        bail!("{}: there is no certificate in it", path.display());
    }
    Ok(read)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Something made from files, made anew when they change.
struct Renewed<T> {
    files: Files,
    make: fn(&Files) -> anyhow::Result<T>,
    made: Mutex<(Vec<Option<SystemTime>>, T)>,
}

impl<T: Clone> Renewed<T> {
    fn new(files: Files, make: fn(&Files) -> anyhow::Result<T>) -> anyhow::Result<Self> {
        let made = Mutex::new((files.changed(), make(&files)?));
        Ok(Renewed { files, make, made })
    }

    fn get(&self) -> T {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = self.files.changed();
        if made.0 != changed {
            match (self.make)(&self.files) {
                Ok(renewed) => *made = (changed, renewed),
                // Files that are being replaced one by one fit together a moment later.
                Err(error) => tracing::warn!(%error, "the renewed certificates can't be used yet"),
            }
        }
        made.1.clone()
    }
}

/// The side that is connected to.
pub struct ServerTls {
    config: Renewed<Arc<ServerConfig>>,
}

/// A stream that is encrypted, or not.
pub type ServerStream = Either<TcpStream, server::TlsStream<TcpStream>>;

/// The name in the certificate that a client showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommonName(pub String);

impl ServerTls {
    /// From these files, which are checked now.
    pub fn new(files: Files) -> anyhow::Result<Self> {
        Ok(ServerTls {
            config: Renewed::new(files, server_config)?,
        })
    }

    /// The handshake. The client's common name, if it showed a certificate.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<(ServerStream, Option<CommonName>)> {
        let stream = TlsAcceptor::from(self.config.get()).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let name = shown.and_then(common_name);
        let files = &self.config.files;
        if !files.allowed_cn.is_empty() && name.as_ref() != Some(&files.allowed_cn) {
            return Err(refused(
                "its certificate has another common name than the one allowed",
            ));
        }
        if !files.allowed_host.is_empty() && !shown.is_some_and(|shown| is_for(shown, &files.allowed_host)) {
            return Err(refused(
                "its certificate is for another host than the one allowed",
            ));
        }
        Ok((Either::Right(stream), name.map(CommonName)))
    }
}

fn refused(why: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::PermissionDenied, why)
}

fn server_config(files: &Files) -> anyhow::Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match is_unset(&files.ca) {
        true => builder.with_no_client_auth(),
        false => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(files.roots()?), provider())
                .with_crls(files.revoked()?)
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
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientTls").field(&self.config.files).finish()
    }
}

impl ClientTls {
    /// With these files: the authorities (none: those of the web) and, if given, a certificate to show.
    pub fn new(files: Files) -> anyhow::Result<Self> {
        Ok(ClientTls {
            config: Renewed::new(files, verifying)?,
        })
    }

    /// Takes whatever certificate it is shown: encrypted, but anybody may be at the other end.
    pub fn trusting_anybody(files: Files) -> anyhow::Result<Self> {
        Ok(ClientTls {
            config: Renewed::new(files, trusting)?,
        })
    }

    async fn connect(&self, host: &str, stream: TcpStream) -> std::io::Result<client::TlsStream<TcpStream>> {
        let name = host.trim_start_matches('[').trim_end_matches(']').to_string();
        let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
        TlsConnector::from(self.config.get()).connect(name, stream).await
    }
}

fn verifying(files: &Files) -> anyhow::Result<Arc<ClientConfig>> {
    let roots = match is_unset(&files.ca) {
        true => RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        },
        false => files.roots()?,
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .with_crls(files.revoked()?)
        .build()?;
    client_config(files, verifier)
}

fn trusting(files: &Files) -> anyhow::Result<Arc<ClientConfig>> {
    client_config(files, Arc::new(AnyCertificate(provider())))
}

fn client_config(files: &Files, verifier: Arc<dyn ServerCertVerifier>) -> anyhow::Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
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

type ClientStream = TokioIo<Either<TcpStream, client::TlsStream<TcpStream>>>;

async fn connect(uri: Uri, tls: Option<Arc<ClientTls>>) -> std::io::Result<ClientStream> {
    let is_tls = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let stream = TcpStream::connect((host.trim_start_matches('[').trim_end_matches(']'), port)).await?;
    stream.set_nodelay(true)?;
    match (is_tls, tls) {
        (false, _) => Ok(TokioIo::new(Either::Left(stream))),
        (true, Some(tls)) => Ok(TokioIo::new(Either::Right(tls.connect(host, stream).await?))),
        (true, None) => Err(std::io::Error::other(
            "https:// needs certificates to be configured",
        )),
    }
}

/// A certificate and key for these hosts, signed by itself, kept in `dir`: encrypts, and proves nothing.
pub fn self_signed(dir: &Path, hosts: Vec<String>) -> anyhow::Result<Files> {
    let files = Files {
        cert: dir.join("cert.pem"),
        key: dir.join("key.pem"),
        ..Files::default()
    };
    if files.cert.exists() && files.key.exists() {
        return Ok(files);
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let made = rcgen::generate_simple_self_signed(hosts).context("cannot make a certificate")?;
    write_private(&files.key, &made.signing_key.serialize_pem())?;
    std::fs::write(&files.cert, made.cert.pem())
        .with_context(|| format!("cannot write {}", files.cert.display()))?;
    Ok(files)
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Whose a certificate says that it is.
fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
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
