//! Images that other tools made, and images for them.
//!
//! ```text
//! a directory, an archive ──layout──┐
//!                                   ├─> index ──choose──> manifest ──> config ──settings──> what is told of it
//! a reference ─────────────registry─┘                         └──────> layers ──tree──────> files
//! ```
//! Whatever comes is anybody's. Documents are small, or refused; a blob is what its digest says, or an error before its
//! image has a name; a layer is what the config says too.

mod blob;
mod choose;
mod export;
mod layout;
mod manifest;
mod registry;
mod settings;

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};

use oci_client::Reference;
use oci_spec::image::ImageConfiguration;
use sha2::{Digest as _, Sha256};

pub use export::{ExportError, Exported, export};
pub use registry::Login;

use super::tree::{self, Kind, Place, TreeError, Unpacked, Unpacking};
use super::{Contents, Image, Root, StoreError, Watch, Writer};
use crate::task::{Digest, ImageName, ResourceLimits};
use blob::{Blob, Verified, Watched, unpacked};
use layout::Layout;
use manifest::{Blobs, check_platform, find, parse, read_all};
use registry::Registry;
use settings::Settings;

/// How the names of archives end.
const ENDINGS: [&str; 4] = [".tar", ".tar.gz", ".tgz", ".tar.zst"];

#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("{step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{0} is neither an OCI layout nor an archive of one or of `docker save`: it has no index.json and no manifest.json"
    )]
    NotAnImage(PathBuf),
    #[error("{0:?} is no file, no directory and no reference to an image in a registry")]
    NotASource(String),
    #[error("{name} cannot be understood")]
    Json { name: String, source: serde_json::Error },
    #[error("{0} is larger than 4 MiB")]
    TooLong(String),
    #[error("read {name}")]
    Blob { name: String, source: io::Error },
    #[error("the digest {0:?} is not sha256's, which is the only one that Faber reads")]
    Digest(String),
    #[error("there is no image for {wanted}; there is {listed}")]
    NoneForThisMachine { wanted: String, listed: String },
    #[error("there is more than one image: {listed}; --tag chooses one")]
    MoreThanOne { listed: String },
    #[error("the image is for {is}, and this machine is {here}")]
    OtherPlatform { is: String, here: String },
    #[error("the manifest is not one of a container image: {0}")]
    Manifest(&'static str),
    #[error("layer {number} of {count}")]
    Layer { number: usize, count: usize, source: Box<OciError> },
    #[error("{reference}")]
    Registry { reference: String, source: Box<oci_client::errors::OciDistributionError> },
    #[error("the registry says nothing")]
    Silent,
    #[error("beyond loopback no password goes over plain HTTP")]
    PasswordInTheOpen,
    #[error("the login that is kept for {0} is an identity token, which Faber cannot use: give --username")]
    IdentityToken(String),
    #[error("the login that is kept for {registry}: {reason}")]
    Login { registry: String, reason: String },
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

type Result<T> = std::result::Result<T, OciError>;

fn at(step: &'static str, path: &Path) -> impl Fn(io::Error) -> OciError {
    move |source| OciError::Io { step, path: path.to_owned(), source }
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Directory(PathBuf),
    Archive(PathBuf),
    Registry(Reference),
}

/// What is asked of an import.
pub struct Request {
    pub source: Source,
    pub name: ImageName,
    /// Of several images in a layout.
    pub tag: Option<String>,
    /// In place of the image's own.
    pub workdir: Option<String>,
    pub plain_http: bool,
    pub login: Option<Login>,
}

/// What an import did.
#[derive(Debug)]
pub struct Imported {
    pub image: Image,
    /// The digest of the manifest it was made of.
    pub manifest: Digest,
    pub unchanged: bool,
    /// What of the image's config could not be kept, in sentences.
    pub notes: Vec<String>,
}

impl Source {
    /// What is there under this name in the file system, else a reference.
    pub fn parse(text: &str) -> Result<Self> {
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        if path.exists() {
            return Ok(Self::Archive(path.to_owned()));
        }
        let is_file = text.starts_with(['.', '/']) || ENDINGS.iter().any(|ending| text.ends_with(ending));
        let reference = if is_file { None } else { text.parse().ok() };
        reference.map(Self::Registry).ok_or_else(|| OciError::NotASource(text.to_owned()))
    }

    /// The name that an image has by itself: the last of the repository's or of the file's, without what follows it.
    pub fn name(&self) -> Option<ImageName> {
        let name = match self {
            Self::Registry(reference) => reference.repository().rsplit('/').next()?.to_owned(),
            Self::Directory(path) | Self::Archive(path) => {
                let name = path.file_name()?.to_str()?;
                ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name).to_owned()
            }
        };
        ImageName::parse(&name).ok()
    }

    /// For people; of a file only its last name, since clients of the server see it.
    fn words(&self) -> String {
        match self {
            Self::Registry(reference) => reference.whole(),
            Self::Directory(path) | Self::Archive(path) => {
                path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
            }
        }
    }
}

/// Makes a Faber image of an image of another tool.
///
/// # Errors
/// What was there under the name stays, whatever fails.
pub fn import(writer: &Writer<'_>, request: Request, watch: &Watch<'_>) -> Result<Imported> {
    make(writer, request, watch).map_err(|error| if (watch.stopped)() { OciError::Interrupted } else { error })
}

fn make(writer: &Writer<'_>, request: Request, watch: &Watch<'_>) -> Result<Imported> {
    let Request { source, name, tag, workdir, plain_http, login } = request;
    let told = Told { name, description: format!("imported from {}", source.words()), workdir };
    (watch.progress)("reading the manifest");
    let blobs: Box<dyn Blobs + '_> = match source {
        Source::Directory(path) => Box::new(Layout::directory(&path)),
        Source::Archive(path) => Box::new(Layout::archive(&path, &writer.scratch(), watch)?),
        Source::Registry(reference) => Box::new(Registry::reach(reference, plain_http, login, watch)?),
    };
    let found = find(&*blobs, tag.as_deref())?;
    let made_of = told.digest(&found.digest);
    if let Some(image) = writer.store().image(&told.name).ok().filter(|image| image.is_made_of(&made_of)) {
        return Ok(Imported { image, manifest: found.digest, unchanged: true, notes: Vec::new() });
    }
    let config: ImageConfiguration = parse(&read_all(blobs.blob(&found.config)?, &found.config.name)?, "its config")?;
    check_platform(&config)?;
    let (mut notes, layer) = (Vec::new(), Cell::new(0));
    let progress = |bytes| {
        (watch.progress)(&format!("layer {} of {}, {} MiB", layer.get(), found.layers.len(), bytes >> 20));
    };
    let made = writer.make(&progress, |place| {
        let mut unpacking = Unpacking::new(Kind::Layers, place)?;
        unpack(&mut unpacking, &*blobs, (&found.layers, config.rootfs().diff_ids()), &layer, watch)?;
        let (image, said) = finish(unpacking, &config, &told, made_of, place)?;
        notes = said;
        Ok((image, None))
    });
    if made.is_err() {
        // Files of the layers that were good.
        let _ = writer.collect();
    }
    made.map(|image| Imported { image, manifest: found.digest, unchanged: false, notes })
}

/// What the operator says of an image.
struct Told {
    name: ImageName,
    description: String,
    workdir: Option<String>,
}

impl Told {
    /// What it is made of: the same again would be the same image.
    fn digest(&self, manifest: &Digest) -> Digest {
        let Self { name, description, workdir } = self;
        let parts = format!("import {} {manifest} {name} {description:?} {workdir:?}", tree::FORM);
        Digest::new(Sha256::digest(parts).into())
    }
}

/// Unpacks the layers, each of which has its diff id in the config; `number` is that of the one at work.
fn unpack(
    unpacking: &mut Unpacking<'_>,
    blobs: &dyn Blobs,
    (layers, diff_ids): (&[Blob], &[String]),
    number: &Cell<usize>,
    watch: &Watch<'_>,
) -> Result<()> {
    let count = layers.len();
    if diff_ids.len() != count {
        return Err(OciError::Manifest("its config has another number of layers"));
    }
    layers.iter().zip(diff_ids).try_for_each(|(layer, diff_id)| {
        number.set(number.get() + 1);
        let failed = |source| OciError::Layer { number: number.get(), count, source: Box::new(source) };
        unpack_one(unpacking, blobs, layer, diff_id, watch).map_err(failed)
    })
}

fn unpack_one(
    unpacking: &mut Unpacking<'_>,
    blobs: &dyn Blobs,
    layer: &Blob,
    diff_id: &str,
    watch: &Watch<'_>,
) -> Result<()> {
    let diff_id = Digest::try_from(diff_id.to_owned()).map_err(|_| OciError::Digest(diff_id.to_owned()))?;
    let content = unpacked(Watched { content: blobs.blob(layer)?, watch }).map_err(TreeError::Archive)?;
    let name = format!("what {} holds", layer.name);
    Ok(unpacking.archive(Verified::new(content, name, Some(diff_id), None))?)
}

/// What is told of the image, of which the config says one part and the files another.
fn finish(
    mut unpacking: Unpacking<'_>,
    config: &ImageConfiguration,
    told: &Told,
    made_of: Digest,
    place: &Place<'_>,
) -> Result<(Image, Vec<String>)> {
    let mut settings = Settings::of(config, told.workdir.as_deref());
    settings.make_workdir(&mut unpacking)?;
    let Unpacked { digest: tree, size, packages } = unpacking.finish()?;
    settings.look(place.tree);
    let Settings { path, env, workdir, user, notes, .. } = settings;
    // The name and all that is told count too.
    let digest = Digest::new(Sha256::digest(format!("{tree} {made_of} {path:?} {env:?} {workdir:?} {user:?}")).into());
    let image = Image {
        name: told.name.clone(),
        digest,
        description: told.description.clone(),
        path,
        env,
        workdir,
        user,
        limits: ResourceLimits::default(),
        language: None,
        prepare: None,
        root: Root::Tree(Contents { definition: made_of, size, versions: Default::default(), packages }),
    };
    Ok((image, notes))
}

/// Bytes as each of the documents of an image: an index that leads to itself, a manifest, a config, docker's list.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz(bytes: &[u8]) {
    struct Only<'a>(&'a [u8], bool);
    impl Blobs for Only<'_> {
        fn first(&self) -> Result<manifest::Document> {
            match self.1 {
                true => parse(self.0, "it").map(manifest::Document::Docker),
                false => Ok(manifest::Document::Oci(self.0.to_vec())),
            }
        }
        fn manifest(&self, _: &Blob) -> Result<Vec<u8>> {
            Ok(self.0.to_vec())
        }
        fn blob(&self, _: &Blob) -> Result<Box<dyn io::Read + '_>> {
            Ok(Box::new(self.0))
        }
    }
    for docker in [false, true] {
        _ = find(&Only(bytes, docker), None);
        _ = find(&Only(bytes, docker), Some("latest"));
    }
    if let Ok(config) = parse::<ImageConfiguration>(bytes, "it") {
        _ = check_platform(&config);
        _ = Settings::of(&config, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_a_name_of_its_own() {
        let name = |text: &str| Source::parse(text).ok().and_then(|source| source.name()).map(String::from);
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(name("docker.io/library/alpine:3.20"), some("alpine"));
        assert_eq!(name("alpine"), some("alpine"));
        assert_eq!(name("127.0.0.1:5000/a/b-c@sha256:".to_owned().as_str()), None);
        assert_eq!(name(&format!("127.0.0.1:5000/a/b-c@sha256:{}", "0".repeat(64))), some("b-c"));
        assert_eq!([name("./nothing-there.tar"), name("there/is/no.tar"), name("A B")], [None, None, None]);
        let named = |path: &str| Source::Archive(path.into()).name().map(String::from);
        assert_eq!([named("/x/a.b.tar.gz"), named("a.tar"), named("A.tar")], [some("a.b"), some("a"), None]);
    }
}
