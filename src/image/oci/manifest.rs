//! From the first document of an image to its one manifest, and to the config that this names.

use std::io::Read;
use std::path::Path;

use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::blob::Blob;
use super::layout::Saved;
use super::{OciError, Result, choose};
use crate::task::Digest;

/// Bytes of an index, a manifest or a config: registries take no larger manifests (distribution-spec).
pub const MANIFEST_BYTES: u64 = 4 << 20;
/// Container engines stop far below that.
const LAYERS: usize = 500;
/// Indexes in indexes.
const INDEXES: usize = 4;

/// Where the parts of an image are.
pub trait Blobs {
    /// The document to begin with.
    fn first(&self) -> Result<Document>;
    /// An index or a manifest that another document names.
    fn manifest(&self, blob: &Blob) -> Result<Vec<u8>>;
    /// Anything else; its end is an error unless it is what it has to be.
    fn blob(&self, blob: &Blob) -> Result<Box<dyn Read + '_>>;
}

pub enum Document {
    /// An index or a manifest.
    Oci(Vec<u8>),
    /// The manifest.json of `docker save`.
    Docker(Vec<Saved>),
}

/// An image, as its manifest has it.
pub struct Found {
    pub config: Blob,
    pub layers: Vec<Blob>,
    /// Over the manifest: everything follows from it.
    pub digest: Digest,
}

/// From the first document to the manifest of the one image.
pub fn find(blobs: &dyn Blobs, tag: Option<&str>) -> Result<Found> {
    let mut text = match blobs.first()? {
        Document::Oci(text) => text,
        Document::Docker(images) => return saved(images, tag),
    };
    // Only the outermost index has tags.
    let mut tag = tag;
    for _ in 0..INDEXES {
        if !is_index(&text)? {
            return described(&text);
        }
        let index: ImageIndex = parse(&text, "its index")?;
        text = blobs.manifest(&Blob::described(choose::choose(&index, tag.take())?)?)?;
    }
    Err(OciError::Manifest("there are too many indexes in indexes"))
}

/// An index has manifests, a manifest has layers; media types may be missing.
fn is_index(text: &[u8]) -> Result<bool> {
    #[derive(Deserialize)]
    struct Either {
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    let Either { manifests, layers } = parse(text, "its manifest")?;
    match (manifests, layers) {
        (Some(_), None) => Ok(true),
        (None, Some(_)) => Ok(false),
        _ => Err(OciError::Manifest("it has either manifests or layers")),
    }
}

fn described(text: &[u8]) -> Result<Found> {
    let manifest: ImageManifest = parse(text, "its manifest")?;
    let layers = manifest.layers().iter().map(Blob::described).collect::<Result<Vec<_>>>()?;
    if layers.len() > LAYERS {
        return Err(OciError::Manifest("it has too many layers"));
    }
    let digest = Digest::new(Sha256::digest(text).into());
    Ok(Found { config: Blob::described(manifest.config())?, layers, digest })
}

/// The one image of a `docker save` archive. Its config is named by its digest, and knows its layers' contents.
fn saved(images: Vec<Saved>, tag: Option<&str>) -> Result<Found> {
    let has_tag = |image: &Saved| {
        let tags = image.repo_tags.iter().flatten();
        tag.is_none_or(|tag| {
            tags.into_iter().any(|name| name == tag || name.rsplit_once(':').is_some_and(|n| n.1 == tag))
        })
    };
    let listed =
        images.iter().flat_map(|image| image.repo_tags.iter().flatten()).cloned().collect::<Vec<_>>().join(", ");
    let mut images = images.into_iter().filter(has_tag);
    let Some(Saved { config, layers, .. }) = images.next() else {
        return Err(OciError::NoneForThisMachine { wanted: tag.unwrap_or("this machine").to_owned(), listed });
    };
    if images.next().is_some() {
        return Err(OciError::MoreThanOne { listed });
    }
    if layers.len() > LAYERS {
        return Err(OciError::Manifest("it has too many layers"));
    }
    let digits = Path::new(&config).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let digest = Digest::try_from(format!("sha256:{digits}")).map_err(|_| OciError::Digest(config.clone()))?;
    let part = |name, digest| Blob { name, digest, size: None };
    let layers = layers.into_iter().map(|name| part(name, None)).collect();
    Ok(Found { config: part(config, Some(digest.clone())), layers, digest })
}

pub fn check_platform(config: &ImageConfiguration) -> Result<()> {
    let (os, architecture) = choose::here();
    if (config.os(), config.architecture()) != (&os, &architecture) {
        return Err(OciError::OtherPlatform {
            is: choose::words(config.os(), config.architecture(), config.variant().as_deref()),
            here: choose::words(&os, &architecture, None),
        });
    }
    Ok(())
}

pub fn parse<'a, T: Deserialize<'a>>(text: &'a [u8], name: &str) -> Result<T> {
    serde_json::from_slice(text).map_err(|source| OciError::Json { name: name.to_owned(), source })
}

/// A small document.
pub fn read_all(content: impl Read, name: &str) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = content.take(MANIFEST_BYTES + 1).read_to_end(&mut text);
    read.map_err(|source| OciError::Blob { name: name.to_owned(), source })?;
    if text.len() as u64 > MANIFEST_BYTES { Err(OciError::TooLong(name.to_owned())) } else { Ok(text) }
}
