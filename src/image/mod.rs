//! Images: named read-only root file systems with defaults.
//!
//! ```text
//! images/NAME/image.toml ──definition──> Definition ──build──> a tree in the store ──sandbox──> a container's root
//! ```
//! The `host` image is embedded in the binary: the machine's own /usr and a curated /etc, read-only. All others are
//! trees in the [`Store`], built here or imported ([`oci`]), each under the digest of everything in it; a name points at one of them.

mod build;
mod catalog;
mod copy;
mod definition;
mod lock;
mod oci;
mod order;
mod package;
mod prepare;
mod sbom;
mod store;
mod tree;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use build::{BuildError, Built, Choice, build};
pub use catalog::Catalog;
pub use copy::CopiedFile;
#[cfg(any(test, feature = "fuzzing"))]
pub use definition::fuzz as fuzz_definition;
pub use definition::{Definition, DefinitionError, Definitions, Test};
pub use lock::{Lock, LockError, Locked, architecture, departure};
#[cfg(any(test, feature = "fuzzing"))]
pub use oci::fuzz as fuzz_documents;
pub use oci::{ExportError, Exported, Imported, Login, OciError, Request, Source, export, import};
pub use order::{Additions, EPOCH, Event, Order, Start};
pub use package::{Crate, CrateName, NpmPackage, Package, PipRequirement, Suite};
pub use prepare::Prepare;
pub use sbom::{SbomError, sbom};
pub use store::{InUse, Store, StoreError, Writer};

pub use crate::task::Language;
use crate::task::{Digest, ImageId, ImageName, Offer, ResourceLimits};

const HOST: &str = include_str!("../../images/host/image.toml");

/// The files every root file system gets below /etc: Faber's own, nothing of the machine's.
pub const SKELETON: &[(&str, &str)] = &[
    ("passwd", include_str!("../../rootfs/etc/passwd")),
    ("group", include_str!("../../rootfs/etc/group")),
    ("hosts", include_str!("../../rootfs/etc/hosts")),
    ("nsswitch.conf", include_str!("../../rootfs/etc/nsswitch.conf")),
];
/// Mount points every container needs.
pub const MOUNT_POINTS: [&str; 4] = ["proc", "dev", "tmp", "workspace"];

/// The directories a command is looked up in, where an image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a task's files are, and where it starts unless its image says something else.
pub const WORKSPACE: &str = "/workspace";

/// The user and group that a task is inside of its container. Never root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u32, u32)", into = "(u32, u32)")]
pub struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// Of the range that Debian keeps free for nobody (65000–65533), so that no file of the machine is the task's own by
    /// chance.
    pub const FABER: Self = Self { uid: 65_000, gid: 65_000 };
    /// A container has 65536 ids; the last one is no user's, since it means "no change" in 16 bits.
    const LAST: u32 = 65_534;

    /// None for root, root's group, and what no container has.
    pub fn new(uid: u32, gid: u32) -> Option<Self> {
        let is_good = |id| (1..=Self::LAST).contains(&id);
        (is_good(uid) && is_good(gid)).then_some(Self { uid, gid })
    }
}

impl Default for User {
    fn default() -> Self {
        Self::FABER
    }
}

impl TryFrom<(u32, u32)> for User {
    type Error = &'static str;
    fn try_from((uid, gid): (u32, u32)) -> Result<Self, Self::Error> {
        Self::new(uid, gid).ok_or("expected the numbers of a user and a group that a task may have")
    }
}

impl From<User> for (u32, u32) {
    fn from(User { uid, gid }: User) -> Self {
        (uid, gid)
    }
}

/// Who looks on while something long is done, from any thread: hears what it is, and may stop it.
pub struct Watch<'a> {
    pub progress: &'a (dyn Fn(&str) + Sync),
    pub stopped: &'a (dyn Fn() -> bool + Sync),
}

/// An image that can be used: what a runner makes containers from, and what a client is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub name: ImageName,
    pub digest: Digest,
    pub description: String,
    /// Where commands are looked up, as in PATH.
    pub path: String,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Where tasks start, if not in the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Whom they run as.
    #[serde(default)]
    pub user: User,
    /// What tasks of this image get in place of the server's defaults.
    #[serde(default)]
    pub limits: ResourceLimits,
    #[serde(default)]
    pub language: Option<Language>,
    /// What is started before a task is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepare: Option<Prepare>,
    pub root: Root,
}

/// Where an image's files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Root {
    Machine(Machine),
    Tree(Contents),
}

/// The machine's own files, as far as they are shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Directories that are there read-only, under their own names; symbolic links stay links.
    pub binds: Vec<String>,
    /// Entries of the machine's /etc that programs need to run.
    pub etc: Vec<String>,
    /// A command the machine may lack, and the ones that can stand in for it, best first.
    pub fallbacks: BTreeMap<String, Vec<String>>,
}

/// A tree in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// What it was made from, as a digest: a definition with its base and its lock, or the manifest of an imported image.
    /// Made again, it would be the same.
    pub definition: Digest,
    /// Bytes of its files, shared ones included.
    pub size: u64,
    /// The packages that were asked for, of every registry, each with its version.
    pub versions: BTreeMap<String, String>,
    /// Each Debian package with its version.
    pub packages: BTreeMap<String, String>,
}

impl Image {
    /// The embedded image: the machine's own programs.
    pub fn host() -> Self {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Host {
            name: ImageName,
            description: String,
            path: String,
            env: BTreeMap<String, String>,
            machine: Machine,
        }
        let Host { name, description, path, env, machine } =
            toml::from_str(HOST).expect("the embedded definition is one: tested");
        let digest = Digest::new(Sha256::digest(HOST).into());
        let (limits, language, prepare) = (ResourceLimits::default(), None, None);
        let (workdir, user, root) = (None, User::FABER, Root::Machine(machine));
        Self { name, digest, description, path, env, workdir, user, limits, language, prepare, root }
    }

    /// Whether it is a tree that was made of what has this digest.
    pub fn is_made_of(&self, digest: &Digest) -> bool {
        matches!(&self.root, Root::Tree(contents) if contents.definition == *digest)
    }

    pub fn id(&self) -> ImageId {
        ImageId { name: self.name.clone(), digest: self.digest.clone() }
    }

    pub fn offer(&self) -> Offer {
        Offer { id: self.id(), limits: self.limits.clone(), language: self.language.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_definition_is_one() {
        let host = Image::host();
        assert_eq!(host.name.as_str(), "host");
        assert!(host.path.starts_with("/usr/local/sbin:"));
    }
}
