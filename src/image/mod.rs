//! Images: named read-only root file systems with defaults.
//!
//! The `host` image is embedded in the binary: the machine's own /usr and a curated /etc, read-only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::task::ImageName;

const HOST: &str = include_str!("../../images/host/image.toml");

/// The files every root file system gets below /etc: Faber's own, nothing of the machine's.
pub const SKELETON: &[(&str, &str)] = &[
    ("passwd", include_str!("../../rootfs/etc/passwd")),
    ("group", include_str!("../../rootfs/etc/group")),
    ("hosts", include_str!("../../rootfs/etc/hosts")),
    ("nsswitch.conf", include_str!("../../rootfs/etc/nsswitch.conf")),
];

/// A definition, images/NAME/image.toml.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    pub name: ImageName,
    pub description: String,
    /// Where commands are looked up, as in PATH.
    pub path: String,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Directories of the machine that are there read-only, under their own names; symbolic links stay links.
    #[serde(default)]
    pub binds: Vec<String>,
    /// Entries of the machine's /etc that programs need to run.
    #[serde(default)]
    pub etc: Vec<String>,
    /// A command the machine may lack, and the ones that can stand in for it, best first.
    #[serde(default)]
    pub fallbacks: BTreeMap<String, Vec<String>>,
}

/// The images of this server: by now the embedded one.
///
/// # Errors
/// When the embedded definition is not one, which the build's own test rules out.
pub fn all() -> Result<Vec<Image>, toml::de::Error> {
    Ok(vec![toml::from_str(HOST)?])
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_embedded_definition_is_one() {
        let images = super::all().unwrap();
        assert_eq!(images[0].name.as_str(), "host");
        assert!(images[0].path.starts_with("/usr/local/sbin:"));
    }
}
