//! Certificates, keys, authorities and lists of what was revoked, in files that are read anew when they change.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, bail};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

/// Which files one side uses. An empty path: not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Authorities to trust, PEM.
    pub ca: PathBuf,
    /// Certificates that were revoked: lists in PEM, or one in DER, as etcd reads it.
    pub crl: PathBuf,
}

impl Files {
    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cert, &self.key, &self.ca, &self.crl]
            .into_iter()
            .filter(|path| !is_unset(path))
    }

    /// When each was last changed: a renewed certificate shows here.
    fn changed(&self) -> Vec<Option<SystemTime>> {
        let changed = |path: &PathBuf| std::fs::metadata(path).and_then(|file| file.modified()).ok();
        self.all().map(changed).collect()
    }

    /// The certificate to show, and those that vouch for it.
    pub(super) fn chain(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        certificates(&self.cert)
    }

    /// When the certificate to show ends, in seconds since 1970.
    pub(super) fn not_after(&self) -> anyhow::Result<i64> {
        let chain = self.chain()?;
        let said = || format!("{}: no certificate", self.cert.display());
        let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).with_context(said)?;
        Ok(parsed.validity().not_after.timestamp())
    }

    /// The key of the certificate to show.
    pub(super) fn private_key(&self) -> anyhow::Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_file(&self.key)
            .with_context(|| format!("{}: no private key can be read from it", self.key.display()))
    }

    /// The authorities to trust.
    pub(super) fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots
                .add(certificate)
                .with_context(|| format!("{}: not an authority", self.ca.display()))?;
        }
        Ok(roots)
    }

    /// The lists of revoked certificates. A file without one is an error, and never taken for an empty list: that
    /// would let in whom it means to keep out.
    pub(super) fn revoked(&self) -> anyhow::Result<Vec<CertificateRevocationListDer<'static>>> {
        if is_unset(&self.crl) {
            return Ok(Vec::new());
        }
        let said = || format!("{}: no revocation list can be read from it", self.crl.display());
        let bytes = std::fs::read(&self.crl).with_context(said)?;
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
        let mut lists = lists.with_context(said)?;
        if lists.is_empty() {
            lists.push(CertificateRevocationListDer::from(bytes));
        }
        for list in &lists {
            x509_parser::parse_x509_crl(list).with_context(said)?;
        }
        Ok(lists)
    }
}

/// Whether no file was given.
pub(super) fn is_unset(path: &Path) -> bool {
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

type Make<T> = dyn Fn(&Files) -> anyhow::Result<T> + Send + Sync;

/// Something made from files, made anew when they change.
pub(super) struct Renewed<T> {
    files: Files,
    make: Box<Make<T>>,
    made: Mutex<(Vec<Option<SystemTime>>, T)>,
}

impl<T: Clone> Renewed<T> {
    /// Made now, to see that the files can be used.
    pub(super) fn new(
        files: Files,
        make: impl Fn(&Files) -> anyhow::Result<T> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let made = Mutex::new((files.changed(), make(&files)?));
        Ok(Renewed {
            files,
            make: Box::new(make),
            made,
        })
    }

    /// What the files make now; while they can't be used, what they made before.
    pub(super) fn get(&self) -> T {
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

    /// From which files.
    pub(super) fn files(&self) -> &Files {
        &self.files
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
