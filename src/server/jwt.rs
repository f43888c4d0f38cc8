//! Tokens that carry their user: signed by the member that made them, and verified by any that has the public key.
//!
//! Nothing is kept of them, so they outlive restarts, and can't be revoked one by one: they name the auth revision at
//! which they were made, and are void once users or roles have changed since.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls::pki_types::PrivateSec1KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// etcd's default.
const TTL: Duration = Duration::from_secs(300);

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whose it is.
    pub username: String,
    /// The auth revision at which it was made.
    pub revision: u64,
    /// When it ends, in seconds since 1970.
    exp: u64,
}

/// Makes and verifies tokens.
pub struct Jwt {
    algorithm: Algorithm,
    sign: Option<EncodingKey>,
    verify: DecodingKey,
    ttl: Duration,
}

/// `--auth-token jwt,sign-method=…,pub-key=…,priv-key=…,ttl=…`, taken apart.
#[derive(Debug, Default)]
struct Options {
    method: String,
    public: PathBuf,
    private: PathBuf,
    ttl: Option<Duration>,
}

impl Jwt {
    /// From what follows `jwt,` in `--auth-token`.
    pub fn new(options: &str) -> anyhow::Result<Self> {
        let options = parse(options)?;
        let algorithm: Algorithm = options
            .method
            .parse()
            .ok()
            .with_context(|| format!("sign-method={:?} is not supported", options.method))?;
        let read = |path: &PathBuf| {
            std::fs::read(path).with_context(|| format!("cannot read the key in {}", path.display()))
        };
        let is_given = |path: &PathBuf| !path.as_os_str().is_empty();
        let private = is_given(&options.private)
            .then(|| read(&options.private))
            .transpose()?;
        let public = is_given(&options.public)
            .then(|| read(&options.public))
            .transpose()?;
        let (sign, verify) = match is_symmetric(algorithm) {
            true => {
                let secret = private.context("priv-key is needed: the secret that is shared")?;
                let sign = EncodingKey::from_secret(&secret);
                (Some(sign), DecodingKey::from_secret(&secret))
            }
            false => {
                let sign = private.map(|pem| signing(algorithm, &pem)).transpose()?;
                let public = public.context("pub-key is needed")?;
                (sign, verifying(algorithm, &public)?)
            }
        };
        let jwt = Jwt {
            algorithm,
            sign,
            verify,
            ttl: options.ttl.unwrap_or(TTL),
        };
        jwt.try_keys()?;
        Ok(jwt)
    }

    /// Keys of another curve, or of two pairs, are found now, and not when users log in.
    fn try_keys(&self) -> anyhow::Result<()> {
        let Some(sign) = &self.sign else { return Ok(()) };
        let claims = Claims {
            username: String::new(),
            revision: 0,
            exp: u64::MAX,
        };
        let token = jsonwebtoken::encode(&Header::new(self.algorithm), &claims, sign);
        let token = token.with_context(|| format!("priv-key is no key for {:?}", self.algorithm))?;
        self.read(&token)
            .map(drop)
            .context("priv-key and pub-key are no pair")
    }

    /// A token for a user, as of an auth revision. A member that has only the public key makes none.
    pub fn make(&self, user: &str, revision: u64) -> Result<String, Error> {
        let claims = Claims {
            username: user.to_string(),
            revision,
            exp: (since_1970() + self.ttl).as_secs(),
        };
        let sign = self.sign.as_ref().ok_or(Error::AuthFailed)?;
        jsonwebtoken::encode(&Header::new(self.algorithm), &claims, sign).map_err(|_| Error::AuthFailed)
    }

    /// What a token says, if it is one of ours and has not ended.
    pub fn read(&self, token: &str) -> Result<Claims, Error> {
        let mut validation = Validation::new(self.algorithm);
        validation.leeway = 0;
        jsonwebtoken::decode(token, &self.verify, &validation)
            .map(|token| token.claims)
            .map_err(|_| Error::InvalidAuthToken)
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn parse(text: &str) -> anyhow::Result<Options> {
    let mut options = Options::default();
    for option in text.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("sign-method", method)) => options.method = method.to_string(),
            Some(("pub-key", path)) => options.public = PathBuf::from(path),
            Some(("priv-key", path)) => options.private = PathBuf::from(path),
            Some(("ttl", ttl)) => {
                let ttl = humantime::parse_duration(ttl).with_context(|| format!("ttl={ttl:?}"))?;
                options.ttl = Some(ttl);
            }
            _ => bail!("{option:?} is none of sign-method=, pub-key=, priv-key=, ttl="),
        }
    }
    if options.method.is_empty() {
        bail!("sign-method= is needed");
    }
    Ok(options)
}

fn is_symmetric(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

fn signing(algorithm: Algorithm, pem: &[u8]) -> anyhow::Result<EncodingKey> {
    let key = match algorithm {
        Algorithm::ES256 => ec_signing(P256, pem),
        Algorithm::ES384 => ec_signing(P384, pem),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(pem),
        _ => EncodingKey::from_rsa_pem(pem),
    };
    key.with_context(|| format!("priv-key is no key for {algorithm:?}"))
}

/// DER of object identifiers: a public key on a curve, and the curves.
const EC_PUBLIC_KEY: &[u8] = &[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const P256: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[0x06, 5, 0x2b, 0x81, 4, 0, 0x22];

/// `openssl ecparam -genkey` writes the older form (SEC 1), which the library does not read.
fn ec_signing(curve: &[u8], pem: &[u8]) -> Result<EncodingKey, jsonwebtoken::errors::Error> {
    match PrivateSec1KeyDer::from_pem_slice(pem) {
        Ok(old) => Ok(EncodingKey::from_ec_der(&pkcs8(curve, old.secret_sec1_der()))),
        Err(_) => EncodingKey::from_ec_pem(pem),
    }
}

/// The newer form around the older one (RFC 5958): version 0, which curve, and the key as it was.
fn pkcs8(curve: &[u8], sec1: &[u8]) -> Vec<u8> {
    const INTEGER: u8 = 0x02;
    const OCTETS: u8 = 0x04;
    const SEQUENCE: u8 = 0x30;
    let version = der(INTEGER, &[0]);
    let algorithm = der(SEQUENCE, &[EC_PUBLIC_KEY, curve].concat());
    der(SEQUENCE, &[version, algorithm, der(OCTETS, sec1)].concat())
}

/// One value of DER, its length in as few bytes as will do; keys are far shorter than the longest here, 65,535 bytes.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let [.., high, low] = content.len().to_be_bytes();
    let head = match content.len() {
        0..128 => vec![tag, low],
        128..256 => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [&head, content].concat()
}

fn verifying(algorithm: Algorithm, pem: &[u8]) -> anyhow::Result<DecodingKey> {
    let key = match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => DecodingKey::from_ec_pem(pem),
        Algorithm::EdDSA => DecodingKey::from_ed_pem(pem),
        _ => DecodingKey::from_rsa_pem(pem),
    };
    key.with_context(|| format!("pub-key is no key for {algorithm:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(ttl: &str) -> (tempfile::TempDir, Jwt) {
        let dir = tempfile::tempdir().expect("a directory");
        let key = dir.path().join("secret");
        std::fs::write(&key, b"a secret").expect("written");
        let options = format!("sign-method=HS256,priv-key={},ttl={ttl}", key.display());
        let jwt = Jwt::new(&options).expect("usable");
        (dir, jwt)
    }

    #[test]
    fn a_token_says_whose_it_is_until_it_ends() {
        let (_dir, jwt) = shared("1h");
        let token = jwt.make("alice", 7).expect("made");
        let claims = jwt.read(&token).expect("read");
        assert_eq!((claims.username.as_str(), claims.revision), ("alice", 7));
        let (_dir, ended) = shared("0s");
        let token = ended.make("alice", 7).expect("made");
        std::thread::sleep(Duration::from_millis(1100));
        assert_eq!(ended.read(&token), Err(Error::InvalidAuthToken));
    }

    #[test]
    fn a_token_of_somebody_else_is_refused() {
        let (_dir, jwt) = shared("1h");
        let (other, _) = (tempfile::tempdir().expect("a directory"), ());
        let key = other.path().join("secret");
        std::fs::write(&key, b"another secret").expect("written");
        let other = Jwt::new(&format!("sign-method=HS256,priv-key={}", key.display())).expect("usable");
        let token = other.make("root", 7).expect("made");
        assert_eq!(jwt.read(&token), Err(Error::InvalidAuthToken));
        let unsigned =
            "eyJhbGciOiJub25lIn0.eyJ1c2VybmFtZSI6InJvb3QiLCJyZXZpc2lvbiI6MSwiZXhwIjo5OTk5OTk5OTk5fQ.";
        assert_eq!(jwt.read(unsigned), Err(Error::InvalidAuthToken));
        assert_eq!(jwt.read("no token"), Err(Error::InvalidAuthToken));
    }

    #[test]
    fn options_are_checked() {
        for wrong in [
            "",
            "sign-method=XX1",
            "sign-method=HS256",
            "sign-method=RS256,priv-key=/nowhere",
            "what",
        ] {
            assert!(Jwt::new(wrong).is_err(), "{wrong}");
        }
    }
}
