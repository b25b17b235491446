//! What an image was made of, exactly: image.lock, beside the definition or in the store. A build that finds one takes the
//! versions in it.
//!
//! Each package is pinned by version and content, not by where it came from: no host name stands in a lock.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::task::Digest;

/// The file beside image.toml.
pub const FILE: &str = "image.lock";
const HEAD: &str = "# Made by `faber image build`, which takes these versions as long as this file is here.
# `faber image build --update` renews it.
";
/// No lock is larger.
const BYTES: u64 = 64 << 20;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// As Debian names it: amd64, arm64.
    pub architecture: String,
    /// The manifest of the base, where that is an image of another tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Digest>,
    /// npm's own: a package-lock.json without addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub npm: Option<String>,
    /// Cargo's own: a Cargo.lock without addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cargo: Option<String>,
    /// Debian's.
    #[serde(default, rename = "debian", skip_serializing_if = "Vec::is_empty")]
    pub debian: Vec<Locked>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pip: Vec<Locked>,
}

/// One package, by what the registry says of it: the digest is of the archive that was installed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    pub name: String,
    pub version: String,
    pub sha256: String,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is no lock: `faber image build --update` makes it anew")]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{path} is for {found}, this machine is {here}: `faber image build --update` makes it anew")]
    Architecture { path: PathBuf, found: String, here: &'static str },
    #[error("write the lock as TOML")]
    Write(#[from] toml::ser::Error),
}

impl Lock {
    /// The lock in `directory`, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, or was made on another architecture.
    pub fn read(directory: &Path) -> Result<Option<Self>, LockError> {
        let path = directory.join(FILE);
        let at = |source| LockError::Io { step: "read", path: path.clone(), source };
        let file = match fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(at)?,
        };
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(file, BYTES), &mut text).map_err(at)?;
        let lock: Self =
            toml::from_str(&text).map_err(|source| LockError::Toml { path: path.clone(), source: Box::new(source) })?;
        if lock.architecture != architecture() {
            return Err(LockError::Architecture { path, found: lock.architecture, here: architecture() });
        }
        Ok(Some(lock))
    }

    /// Writes it to `directory`, which it makes if need be, whole or not at all.
    ///
    /// # Errors
    /// When the directory cannot be made or written to.
    pub fn write(&self, directory: &Path) -> Result<(), LockError> {
        let path = directory.join(FILE);
        let at = |source| LockError::Io { step: "write", path: path.clone(), source };
        fs::create_dir_all(directory).map_err(at)?;
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(at)?;
        file.write_all(self.text()?.as_bytes()).map_err(at)?;
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(at)?;
        // On the disk before it has its name (fsync(2)).
        file.as_file().sync_all().map_err(at)?;
        file.persist(&path).map_err(|error| at(error.error))?;
        Ok(())
    }

    /// As it stands in the file.
    ///
    /// # Errors
    /// When it cannot be written as TOML, which would be a mistake here.
    pub fn text(&self) -> Result<String, toml::ser::Error> {
        Ok(format!("{HEAD}{}", toml::to_string(self)?))
    }

    pub fn digest(&self) -> Digest {
        let parts = serde_json::to_string(self).unwrap_or_default();
        Digest::new(Sha256::digest(parts).into())
    }
}

/// The first package that is in `found` in another version or with other content than in `pins`: both.
pub fn departure<'a>(found: &'a [Locked], pins: &'a [Locked]) -> Option<(&'a Locked, &'a Locked)> {
    let pinned: BTreeMap<&str, &Locked> = pins.iter().map(|pin| (pin.name.as_str(), pin)).collect();
    let mut both = found.iter().filter_map(|found| Some((*pinned.get(found.name.as_str())?, found)));
    both.find(|(pin, found)| pin != found)
}

/// This machine's architecture, as Debian names it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(version: &str) -> Lock {
        let locked = |name: &str| Locked { name: name.into(), version: version.into(), sha256: "00".into() };
        Lock { architecture: architecture().into(), debian: vec![locked("a"), locked("b")], ..Lock::default() }
    }

    #[test]
    fn a_lock_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Lock::read(dir.path()).unwrap(), None);
        let written = Lock { npm: Some("{\n \"a\": '''\n}".into()), ..lock("1") };
        written.write(dir.path()).unwrap();
        assert_eq!(Lock::read(dir.path()).unwrap(), Some(written));
        fs::write(dir.path().join(FILE), "architecture = \"pdp11\"").unwrap();
        assert!(Lock::read(dir.path()).unwrap_err().to_string().contains("is for pdp11, this machine is"));
        fs::write(dir.path().join(FILE), "colour = 1").unwrap();
        assert!(Lock::read(dir.path()).unwrap_err().to_string().contains("is no lock"));
    }

    #[test]
    fn another_version_than_the_pinned_is_found() {
        let (one, two) = (lock("1").debian, lock("2").debian);
        assert_eq!(departure(&one, &one), None);
        assert_eq!(departure(&one, &[]), None);
        assert_eq!(departure(&two, &one).unwrap().0.version, "1");
    }
}
