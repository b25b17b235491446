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

/// The bill of `image`, which was made of what `lock` has. The same image has the same bill: no time, no serial number.
///
/// # Errors
/// When a part of the lock is not what its program writes.
pub fn sbom(image: &Image, lock: &Lock) -> Result<String> {
    let mut components = Vec::new();
    for package in &lock.debian {
        components.push(component("deb", Some("debian"), package, Some(architecture()))?);
    }
    if let (Root::Tree(contents), true) = (&image.root, lock.debian.is_empty()) {
        for (name, version) in &contents.packages {
            let package = Locked { name: name.clone(), version: version.clone(), sha256: String::new() };
            components.push(component("deb", None, &package, None)?);
        }
    }
    for package in &lock.pip {
        components.push(component("pypi", None, package, None)?);
    }
    for package in lock.npm.as_deref().map(npm).transpose()?.unwrap_or_default() {
        components.push(package);
    }
    for package in lock.cargo.as_deref().map(cargo).transpose()?.unwrap_or_default() {
        components.push(component("cargo", None, &package, None)?);
    }
    let whole = Component::new(Classification::Container, image.name.as_str(), &image.digest.to_string(), None);
    let metadata = Metadata { component: Some(whole), ..Metadata::default() };
    let bom = Bom {
        serial_number: None,
        metadata: Some(metadata),
        components: Some(Components(components)),
        spec_version: SpecVersion::V1_5,
        ..Bom::default()
    };
    let mut text = Vec::new();
    bom.output_as_json(&mut text, SpecVersion::V1_5)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A package with its package URL (github.com/package-url/purl-spec).
fn component(kind: &str, namespace: Option<&str>, package: &Locked, arch: Option<&str>) -> Result<Component> {
    let Locked { name, version, sha256 } = package;
    let failed = |source| SbomError::Purl { name: name.clone(), version: version.clone(), source };
    let mut url = PackageUrl::new(kind.to_owned(), name.clone()).map_err(failed)?;
    url.with_version(version.clone()).map_err(failed)?;
    if let Some(namespace) = namespace {
        url.with_namespace(namespace.to_owned()).map_err(failed)?;
    }
    if let Some(arch) = arch {
        url.add_qualifier("arch", arch).map_err(failed)?;
    }
    Ok(described(name, version, &url, (!sha256.is_empty()).then(|| hash(HashAlgorithm::SHA_256, sha256.clone()))))
}

fn described(name: &str, version: &str, url: &PackageUrl<'_>, hash: Option<Hash>) -> Component {
    let url = url.to_string();
    let mut component = Component::new(Classification::Library, name, version, Some(url.clone()));
    component.purl = url.parse::<Purl>().ok();
    component.hashes = hash.map(|hash| Hashes(vec![hash]));
    component
}

fn hash(alg: HashAlgorithm, digits: String) -> Hash {
    Hash { alg, content: HashValue(digits) }
}

/// package-lock.json (npm documentation, lockfileVersion 3), as far as it is of use here.
#[derive(Deserialize)]
struct NpmLock {
    packages: BTreeMap<String, NpmPackage>,
}

#[derive(Deserialize)]
struct NpmPackage {
    version: Option<String>,
    integrity: Option<String>,
    #[serde(default)]
    os: Vec<String>,
    #[serde(default)]
    cpu: Vec<String>,
}

/// What npm installed: its lock also has what other systems would get.
fn npm(lock: &str) -> Result<Vec<Component>> {
    let lock: NpmLock = serde_json::from_str(lock).map_err(|_| SbomError::Foreign("npm"))?;
    let cpu = if architecture() == "amd64" { "x64" } else { architecture() };
    let is_for = |list: &[String], here: &str| list.is_empty() || list.iter().any(|name| name == here);
    let mut components = Vec::new();
    for (path, package) in &lock.packages {
        let (Some((_, name)), Some(version)) = (path.rsplit_once("node_modules/"), &package.version) else { continue };
        if !is_for(&package.os, "linux") || !is_for(&package.cpu, cpu) {
            continue;
        }
        let failed = |source| SbomError::Purl { name: name.to_owned(), version: version.clone(), source };
        let (namespace, bare) = name.split_once('/').map_or((None, name), |(scope, bare)| (Some(scope), bare));
        let mut url = PackageUrl::new("npm", bare.to_owned()).map_err(failed)?;
        url.with_version(version.clone()).map_err(failed)?;
        if let Some(namespace) = namespace {
            url.with_namespace(namespace.to_owned()).map_err(failed)?;
        }
        let digits = package.integrity.as_deref().and_then(sha512);
        components.push(described(name, version, &url, digits.map(|digits| hash(HashAlgorithm::SHA_512, digits))));
    }
    // One package can be there at several places.
    components.dedup_by(|one, other| one.bom_ref == other.bom_ref);
    Ok(components)
}

/// The digits of a subresource integrity string.
fn sha512(integrity: &str) -> Option<String> {
    let bytes = BASE64_STANDARD.decode(integrity.strip_prefix("sha512-")?).ok()?;
    Some(bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
}

/// Cargo.lock, as far as it is of use here; what is from no registry is our own.
#[derive(Deserialize)]
struct CargoLock {
    package: Vec<CargoPackage>,
}

#[derive(Deserialize)]
struct CargoPackage {
    name: String,
    version: String,
    checksum: Option<String>,
}

fn cargo(lock: &str) -> Result<Vec<Locked>> {
    let lock: CargoLock = toml::from_str(lock).map_err(|_| SbomError::Foreign("cargo"))?;
    let locked = |package: CargoPackage| {
        Some(Locked { name: package.name, version: package.version, sha256: package.checksum? })
    };
    Ok(lock.package.into_iter().filter_map(locked).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cyclonedx_bom::prelude::Validate;

    #[test]
    fn a_bill_is_valid_and_names_every_registry() {
        let locked = |name: &str| Locked { name: name.into(), version: "1:2+b1".into(), sha256: "ab".repeat(32) };
        let integrity = format!("sha512-{}", BASE64_STANDARD.encode([0xaa; 64]));
        let npm = serde_json::json!({ "packages": {
            "": {},
            "node_modules/@types/node": { "version": "22.0.0", "integrity": integrity },
            "node_modules/x/node_modules/y": { "version": "1.0.0" },
            "node_modules/z": { "version": "1.0.0", "os": ["aix"] },
        }});
        let rand = format!("[[package]]\nname = 'rand'\nversion = '0.8.5'\nchecksum = '{}'\n", "cd".repeat(32));
        let cargo = format!("{rand}[[package]]\nname = 'own'\nversion = '0.0.0'\n");
        let lock = Lock {
            architecture: architecture().into(),
            npm: Some(npm.to_string()),
            cargo: Some(cargo),
            debian: vec![locked("lua5.4")],
            pip: vec![locked("requests")],
        };
        let text = sbom(&Image::host(), &lock).unwrap();
        assert_eq!(text, sbom(&Image::host(), &lock).unwrap(), "the same twice");
        let bom = Bom::parse_from_json(text.as_bytes()).unwrap();
        let components = bom.components.as_ref().unwrap();
        let urls: Vec<_> = components.0.iter().map(|component| component.purl.as_ref().unwrap().to_string()).collect();
        let deb = format!("pkg:deb/debian/lua5.4@1:2%2Bb1?arch={}", architecture());
        let expected = [
            &deb,
            "pkg:pypi/requests@1:2%2Bb1",
            "pkg:npm/%40types/node@22.0.0",
            "pkg:npm/y@1.0.0",
            "pkg:cargo/rand@0.8.5",
        ];
        assert_eq!(urls, expected);
        let valid = bom.validate_version(SpecVersion::V1_5);
        assert!(valid.passed(), "{valid:?}");
    }
}
