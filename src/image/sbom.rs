//! A software bill of materials: each package of an image with its version and the digest of the archive it came in, as
//! CycloneDX 1.5 JSON (cyclonedx.org), which scanners for known vulnerabilities read.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cyclonedx_bom::models::component::{Classification, Components};
use cyclonedx_bom::models::hash::{Hash, HashAlgorithm, HashValue, Hashes};
use cyclonedx_bom::prelude::{Bom, Component, Metadata, Purl, SpecVersion};
use packageurl::PackageUrl;
use serde::Deserialize;

use super::package::npm_cpu;
use super::{Image, Lock, Locked, Root, architecture};

#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    #[error("the lock of {0} that the image was built with cannot be read")]
    Foreign(&'static str),
    #[error("{name} {version} has no package URL")]
    Purl { name: String, version: String, source: packageurl::Error },
    #[error("write CycloneDX")]
    Write(#[from] cyclonedx_bom::errors::JsonWriteError),
}

type Result<T> = std::result::Result<T, SbomError>;

/// One package of a registry.
pub struct Packaged {
    /// Its kind in package URLs: deb, pypi, npm, cargo.
    kind: &'static str,
    namespace: Option<String>,
    pub name: String,
    pub version: String,
    arch: Option<&'static str>,
    digest: Option<Hash>,
}

/// The bill of `image`, which was made of what `lock` has. The same image has the same bill: no time, no serial number.
///
/// # Errors
/// When a part of the lock is not what its program writes.
pub fn sbom(image: &Image, lock: &Lock) -> Result<String> {
    let mut all: Vec<Packaged> = match &image.root {
        // What an imported image says of itself: it may be of another distribution than Debian, or of none.
        Root::Tree(contents) if lock.debian.is_empty() => contents.packages.iter().map(installed).collect(),
        // Without those that were there for the build alone.
        Root::Tree(contents) => {
            lock.debian.iter().filter(|package| contents.packages.contains_key(&package.name)).map(debian).collect()
        }
        Root::Machine(_) => Vec::new(),
    };
    all.extend(packages(lock)?);
    let components = all.iter().map(component).collect::<Result<Vec<Component>>>()?;
    let whole = Component::new(Classification::Container, image.name.as_str(), &image.digest.to_string(), None);
    let bom = Bom {
        serial_number: None,
        metadata: Some(Metadata { component: Some(whole), ..Metadata::default() }),
        components: Some(Components(components)),
        spec_version: SpecVersion::V1_5,
        ..Bom::default()
    };
    let mut text = Vec::new();
    bom.output_as_json(&mut text, SpecVersion::V1_5)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What is of the languages' own registries.
///
/// # Errors
/// When a part of the lock is not what its program writes.
pub fn packages(lock: &Lock) -> Result<Vec<Packaged>> {
    let mut all: Vec<Packaged> = lock.pip.iter().map(|package| plain("pypi", package)).collect();
    if let Some(lock) = &lock.npm {
        all.extend(npm(lock)?);
    }
    if let Some(lock) = &lock.cargo {
        all.extend(cargo(lock)?);
    }
    Ok(all)
}

fn plain(kind: &'static str, Locked { name, version, sha256 }: &Locked) -> Packaged {
    let digest = Some(hash(HashAlgorithm::SHA_256, sha256.clone()));
    Packaged { kind, namespace: None, name: name.clone(), version: version.clone(), arch: None, digest }
}

fn debian(package: &Locked) -> Packaged {
    Packaged { namespace: Some("debian".into()), arch: Some(architecture()), ..plain("deb", package) }
}

fn installed((name, version): (&String, &String)) -> Packaged {
    let (name, version) = (name.clone(), version.clone());
    Packaged { kind: "deb", namespace: None, name, version, arch: None, digest: None }
}

/// With its package URL (github.com/package-url/purl-spec).
fn component(package: &Packaged) -> Result<Component> {
    let Packaged { kind, namespace, name, version, arch, digest } = package;
    let bare = name.rsplit('/').next().unwrap_or(name);
    let failed = |source| SbomError::Purl { name: name.clone(), version: version.clone(), source };
    let mut url = PackageUrl::new((*kind).to_owned(), bare.to_owned()).map_err(failed)?;
    url.with_version(version.clone()).map_err(failed)?;
    if let Some(namespace) = namespace {
        url.with_namespace(namespace.clone()).map_err(failed)?;
    }
    if let Some(arch) = arch {
        url.add_qualifier("arch", *arch).map_err(failed)?;
    }
    let url = url.to_string();
    let mut component = Component::new(Classification::Library, name, version, Some(url.clone()));
    component.purl = url.parse::<Purl>().ok();
    component.hashes = digest.clone().map(|digest| Hashes(vec![digest]));
    Ok(component)
}

fn hash(alg: HashAlgorithm, digits: String) -> Hash {
    Hash { alg, content: HashValue(digits) }
}

/// package-lock.json (npm documentation, lockfileVersion 3), as far as it is of use here.
#[derive(Deserialize)]
struct NpmLock {
    packages: BTreeMap<String, NpmLocked>,
}

#[derive(Deserialize)]
struct NpmLocked {
    version: Option<String>,
    integrity: Option<String>,
    #[serde(default)]
    os: Platforms,
    #[serde(default)]
    cpu: Platforms,
}

/// The systems or processors that a package is for, or with `!` is not for (npm documentation, package.json).
#[derive(Deserialize)]
#[serde(untagged)]
enum Platforms {
    One(String),
    Some(Vec<String>),
}

impl Default for Platforms {
    fn default() -> Self {
        Self::Some(Vec::new())
    }
}

impl Platforms {
    fn have(&self, here: &str) -> bool {
        let names = match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Some(names) => names,
        };
        let is_named = names.iter().any(|name| name == here);
        let is_excluded = names.iter().any(|name| name.strip_prefix('!') == Some(here));
        !is_excluded && (is_named || names.iter().all(|name| name.starts_with('!')))
    }
}

/// What npm installed: its lock also has what other systems would get. A package can be there at several places.
fn npm(lock: &str) -> Result<Vec<Packaged>> {
    let lock: NpmLock = serde_json::from_str(lock).map_err(|_| SbomError::Foreign("npm"))?;
    let mut all = BTreeMap::new();
    for (path, package) in lock.packages {
        let (Some((_, name)), Some(version)) = (path.rsplit_once("node_modules/"), package.version) else { continue };
        if !package.os.have("linux") || !package.cpu.have(npm_cpu()) {
            continue;
        }
        let namespace = name.split_once('/').map(|(scope, _)| scope.to_owned());
        let digest = package.integrity.as_deref().and_then(sha512).map(|digits| hash(HashAlgorithm::SHA_512, digits));
        let key = (name.to_owned(), version.clone());
        all.insert(key, Packaged { kind: "npm", namespace, name: name.to_owned(), version, arch: None, digest });
    }
    Ok(all.into_values().collect())
}

/// The digits of a subresource integrity string.
fn sha512(integrity: &str) -> Option<String> {
    let bytes = BASE64_STANDARD.decode(integrity.strip_prefix("sha512-")?).ok()?;
    Some(bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
}

/// Cargo.lock, as far as it is of use here; what is from no registry is our own.
#[derive(Deserialize)]
struct CargoLock {
    package: Vec<CargoLocked>,
}

#[derive(Deserialize)]
struct CargoLocked {
    name: String,
    version: String,
    checksum: Option<String>,
}

fn cargo(lock: &str) -> Result<Vec<Packaged>> {
    let lock: CargoLock = toml::from_str(lock).map_err(|_| SbomError::Foreign("cargo"))?;
    let locked = |CargoLocked { name, version, checksum }: CargoLocked| {
        Some(plain("cargo", &Locked { name, version, sha256: checksum? }))
    };
    Ok(lock.package.into_iter().filter_map(locked).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Contents;
    use crate::task::Digest;
    use cyclonedx_bom::prelude::Validate;

    #[test]
    fn a_bill_is_valid_and_names_every_registry() {
        let locked = |name: &str| Locked { name: name.into(), version: "1:2+b1".into(), sha256: "ab".repeat(32) };
        let integrity = format!("sha512-{}", BASE64_STANDARD.encode([0xaa; 64]));
        let npm = serde_json::json!({ "packages": {
            "": {},
            "node_modules/@types/node": { "version": "22.0.0", "integrity": integrity },
            "node_modules/x/node_modules/y": { "version": "1.0.0" },
            "node_modules/here": { "version": "1.0.0", "os": "linux", "cpu": [npm_cpu()] },
            "node_modules/not-there": { "version": "1.0.0", "os": ["!aix"] },
            "node_modules/z": { "version": "1.0.0", "os": ["aix"] },
            "node_modules/not-here": { "version": "1.0.0", "os": ["!linux"] },
        }});
        let rand = format!("[[package]]\nname = 'rand'\nversion = '0.8.5'\nchecksum = '{}'\n", "cd".repeat(32));
        let cargo = format!("{rand}[[package]]\nname = 'own'\nversion = '0.0.0'\n");
        let lock = Lock {
            architecture: architecture().into(),
            base: None,
            npm: Some(npm.to_string()),
            cargo: Some(cargo),
            debian: vec![locked("lua5.4"), locked("npm")],
            pip: vec![locked("requests")],
        };
        // npm was there for the build alone.
        let packages = BTreeMap::from([("lua5.4".to_owned(), "1:2+b1".to_owned())]);
        let contents = Contents { definition: Digest::new([0; 32]), size: 0, versions: BTreeMap::new(), packages };
        let image = Image { root: Root::Tree(contents), ..Image::host() };
        let text = sbom(&image, &lock).unwrap();
        assert_eq!(text, sbom(&image, &lock).unwrap(), "the same twice");
        let bom = Bom::parse_from_json(text.as_bytes()).unwrap();
        let components = bom.components.as_ref().unwrap();
        let urls: Vec<_> = components.0.iter().map(|component| component.purl.as_ref().unwrap().to_string()).collect();
        let deb = format!("pkg:deb/debian/lua5.4@1:2%2Bb1?arch={}", architecture());
        let expected = [
            &deb,
            "pkg:pypi/requests@1:2%2Bb1",
            "pkg:npm/%40types/node@22.0.0",
            "pkg:npm/here@1.0.0",
            "pkg:npm/not-there@1.0.0",
            "pkg:npm/y@1.0.0",
            "pkg:cargo/rand@0.8.5",
        ];
        assert_eq!(urls, expected);
        let valid = bom.validate_version(SpecVersion::V1_5);
        assert!(valid.passed(), "{valid:?}");
    }
}
