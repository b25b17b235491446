//! Registries (distribution-spec), by `oci-client`.
//!
//! That is asynchronous and all else here is not: each step is waited for on a runtime of this thread alone. Plain HTTP is
//! for loopback, and where it is asked for; beyond loopback no password goes over it.

use std::future::Future;
use std::io::{self, Read};
use std::net::IpAddr;
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use tokio::runtime::Runtime;

use super::OciError;
use super::blob::Blob;
use super::manifest::{Blobs, Document, MANIFEST_BYTES, read_all};
use crate::image::Watch;

/// How long a registry may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How often is looked whether the operator wants to stop.
const LOOK: Duration = Duration::from_millis(100);
/// The kinds of manifests that are understood.
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// A name and its password.
pub struct Login {
    pub username: String,
    pub password: String,
}

/// An image in a registry that has been reached.
pub struct Registry<'a> {
    runtime: Runtime,
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
    watch: &'a Watch<'a>,
}

impl<'a> Registry<'a> {
    /// Reaches the registry of `reference`, and logs in where it asks for that.
    pub fn reach(
        reference: Reference,
        plain_http: bool,
        login: Option<Login>,
        watch: &'a Watch<'a>,
    ) -> Result<Self, OciError> {
        // Another part of the process may have chosen one before; then that is it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OciError::Runtime)?;
        let loopback = is_loopback(reference.resolve_registry());
        let protocols = match (plain_http, loopback) {
            (true, _) => vec![ClientProtocol::Http],
            (false, true) => vec![ClientProtocol::Https, ClientProtocol::Http],
            (false, false) => vec![ClientProtocol::Https],
        };
        let auth = match (login, plain_http && !loopback) {
            (Some(_), true) => return Err(OciError::PasswordInTheOpen),
            (Some(login), false) => RegistryAuth::Basic(login.username, login.password),
            (None, true) => RegistryAuth::Anonymous,
            (None, false) => kept_login(reference.resolve_registry())?,
        };
        for protocol in protocols {
            let config = ClientConfig {
                protocol,
                read_timeout: Some(SILENCE),
                connect_timeout: Some(SILENCE / 4),
                user_agent: concat!("faber/", env!("CARGO_PKG_VERSION")),
                ..ClientConfig::default()
            };
            let client = Client::try_from(config).map_err(|source| failed(&reference, source))?;
            let reached = {
                let login = client.auth(&reference, &auth, RegistryOperation::Pull);
                wait(&runtime, watch, login)?
            };
            match reached {
                Ok(_) => return Ok(Self { runtime, client, reference, auth, watch }),
                Err(error) if loopback && !plain_http && speaks_no_tls(&error) => {}
                Err(error) => return Err(failed(&reference, error)),
            }
        }
        Err(OciError::Silent)
    }

    fn pull(&self, reference: &Reference) -> Result<Vec<u8>, OciError> {
        let pull = self.client.pull_manifest_raw(reference, &self.auth, &MANIFESTS);
        let (text, _) = wait(&self.runtime, self.watch, pull)?.map_err(|source| failed(&self.reference, source))?;
        if text.len() as u64 > MANIFEST_BYTES { Err(OciError::TooLong("its manifest".into())) } else { Ok(text.into()) }
    }
}

impl Blobs for Registry<'_> {
    fn first(&self) -> Result<Document, OciError> {
        self.pull(&self.reference).map(Document::Oci)
    }

    fn manifest(&self, blob: &Blob) -> Result<Vec<u8>, OciError> {
        let text = self.pull(&self.reference.clone_with_digest(blob.name.clone()))?;
        read_all(blob.verified(&text[..]), &blob.name)
    }

    fn blob(&self, blob: &Blob) -> Result<Box<dyn Read + '_>, OciError> {
        let pull = self.client.pull_blob_stream(&self.reference, blob.name.as_str());
        let stream = wait(&self.runtime, self.watch, pull)?.map_err(|source| failed(&self.reference, source))?;
        let coming = Coming { registry: self, stream: Some(stream.stream), chunk: Default::default() };
        Ok(Box::new(blob.verified(coming)))
    }
}

/// A blob on its way.
struct Coming<'a> {
    registry: &'a Registry<'a>,
    /// None at its end, beyond which it must not be asked.
    stream: Option<BoxStream<'static, io::Result<bytes::Bytes>>>,
    chunk: bytes::Bytes,
}

impl Read for Coming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            let Some(stream) = &mut self.stream else { return Ok(0) };
            let next = wait(&self.registry.runtime, self.registry.watch, stream.next());
            match next.map_err(io::Error::other)? {
                Some(chunk) => self.chunk = chunk?,
                None => self.stream = None,
            }
        }
        let length = self.chunk.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.chunk.split_to(length));
        Ok(length)
    }
}

/// What comes of `future`, unless the operator wants to stop or the registry is silent for too long.
fn wait<T>(runtime: &Runtime, watch: &Watch<'_>, future: impl Future<Output = T>) -> Result<T, OciError> {
    runtime.block_on(async {
        let stopped = async {
            while !(watch.stopped)() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            done = future => Ok(done),
            () = stopped => Err(OciError::Interrupted),
            () = tokio::time::sleep(2 * SILENCE) => Err(OciError::Silent),
        }
    })
}

/// Whether the other end answered TLS with something else. A certificate that is not trusted is no such thing.
fn speaks_no_tls(error: &OciDistributionError) -> bool {
    matches!(of_tls(error), Some(rustls::Error::InvalidMessage(_)))
}

/// What rustls says of a failed request, in whatever it is wrapped.
fn of_tls<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    // An io::Error's source is that of what it holds, not what it holds.
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(held) => of_tls(held),
        None => error.downcast_ref().or_else(|| of_tls(error.source()?)),
    }
}

fn failed(reference: &Reference, source: OciDistributionError) -> OciError {
    OciError::Registry { reference: reference.whole(), source: Box::new(source) }
}

fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// What `docker login` or `podman login` keeps for this registry.
fn kept_login(registry: &str) -> Result<RegistryAuth, OciError> {
    // Docker's own name for its registry, under which it keeps the login.
    let names: &[&str] =
        if registry == "index.docker.io" { &["https://index.docker.io/v1/", registry] } else { &[registry] };
    for name in names {
        for kept in [docker_credential::get_podman_credential(name), docker_credential::get_credential(name)] {
            match kept {
                Ok(DockerCredential::UsernamePassword(username, password)) => {
                    return Ok(RegistryAuth::Basic(username, password));
                }
                Ok(DockerCredential::IdentityToken(_)) => return Err(OciError::IdentityToken(registry.to_owned())),
                Err(
                    CredentialRetrievalError::ConfigNotFound
                    | CredentialRetrievalError::ConfigReadError
                    | CredentialRetrievalError::NoCredentialConfigured,
                ) => {}
                Err(error) => return Err(OciError::Login { registry: registry.to_owned(), reason: error.to_string() }),
            }
        }
    }
    Ok(RegistryAuth::Anonymous)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback() {
        for registry in ["127.0.0.1:5000", "localhost:5000", "localhost", "[::1]:5000"] {
            assert!(is_loopback(registry), "{registry}");
        }
        for registry in ["10.0.0.1:5000", "example.org", "127.0.0.1.example.org:5000", "localhost.example.org"] {
            assert!(!is_loopback(registry), "{registry}");
        }
    }
}
