//! Which of the images that an index lists: the one for this machine.

use oci_spec::image::{Arch, Descriptor, ImageIndex, Os, Platform};

use super::OciError;

/// Where layouts keep an image's tag (image-spec, annotations.md).
pub const TAG: &str = "org.opencontainers.image.ref.name";

/// This machine's platform.
pub fn here() -> (Os, Arch) {
    (Os::Linux, Arch::default())
}

/// As container engines write it.
pub fn words(os: &Os, architecture: &Arch, variant: Option<&str>) -> String {
    let variant = variant.map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{os}/{architecture}{variant}")
}

/// The manifest for this machine, with `tag` where one is asked for.
///
/// # Errors
/// With all that is listed, when none or more than one fits.
pub fn choose<'a>(index: &'a ImageIndex, tag: Option<&str>) -> Result<&'a Descriptor, OciError> {
    let listed: Vec<&Descriptor> = index.manifests().iter().collect();
    let fits = |entry: &&&Descriptor| has_tag(entry, tag) && entry.platform().as_ref().is_none_or(fits);
    let mut fitting: Vec<&Descriptor> = listed.iter().filter(fits).copied().collect();
    fitting.sort_by_key(|entry| variant(entry));
    fitting.dedup_by_key(|entry| entry.digest());
    match fitting[..] {
        [one] => Ok(one),
        [one, other, ..] if variant(one) != variant(other) => Ok(one),
        [] => Err(OciError::NoneForThisMachine { wanted: wanted(tag), listed: list(&listed) }),
        _ => Err(OciError::MoreThanOne { listed: list(&fitting) }),
    }
}

/// The variant of an architecture. The least demanding comes first, since this machine may not have more.
fn variant(entry: &Descriptor) -> String {
    let variant = entry.platform().as_ref().and_then(|platform| platform.variant().clone());
    variant.filter(|variant| variant != "v8").unwrap_or_default()
}

fn has_tag(entry: &Descriptor, tag: Option<&str>) -> bool {
    tag.is_none_or(|tag| {
        name(entry).is_some_and(|name| name == tag || name.rsplit_once(':').is_some_and(|n| n.1 == tag))
    })
}

fn name(entry: &Descriptor) -> Option<&String> {
    entry.annotations().as_ref().and_then(|annotations| annotations.get(TAG))
}

fn fits(platform: &Platform) -> bool {
    (platform.os().clone(), platform.architecture().clone()) == here()
}

fn wanted(tag: Option<&str>) -> String {
    let (os, architecture) = here();
    let tag = tag.map(|tag| format!(" with the tag {tag}")).unwrap_or_default();
    format!("{}{tag}", words(&os, &architecture, None))
}

fn list(entries: &[&Descriptor]) -> String {
    let line = |entry: &&Descriptor| {
        let platform = entry.platform().as_ref();
        let platform = platform.map(|p| words(p.os(), p.architecture(), p.variant().as_deref()));
        let parts: Vec<String> = [name(entry).cloned(), platform].into_iter().flatten().collect();
        if parts.is_empty() { entry.digest().to_string() } else { parts.join(" ") }
    };
    let lines: Vec<String> = entries.iter().map(line).collect();
    if lines.is_empty() { "nothing".into() } else { lines.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The place of what is chosen, or what is said instead.
    fn chosen(entries: &[(&str, &str)], tag: Option<&str>) -> Result<usize, String> {
        let entry = |(at, (platform, tag)): (usize, &(&str, &str))| {
            let mut parts = platform.split('/');
            let mut next = || parts.next().unwrap_or_default();
            let mut entry = json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
                "digest": format!("sha256:{at:064}"),
            });
            if !platform.is_empty() {
                entry["platform"] = json!({ "os": next(), "architecture": next() });
            }
            if let Some(variant) = parts.next().filter(|variant| !variant.is_empty()) {
                entry["platform"]["variant"] = variant.into();
            }
            if !tag.is_empty() {
                entry["annotations"] = json!({ TAG: tag });
            }
            entry
        };
        let manifests: Vec<_> = entries.iter().enumerate().map(entry).collect();
        let index: ImageIndex = serde_json::from_value(json!({ "schemaVersion": 2, "manifests": manifests })).unwrap();
        let digest = choose(&index, tag).map_err(|error| error.to_string())?.digest().digest().to_owned();
        Ok(digest.parse().unwrap())
    }

    #[test]
    fn the_one_for_this_machine_is_chosen() {
        let here = words(&Os::Linux, &Arch::default(), None);
        let newer = format!("{here}/v9");
        assert_eq!(chosen(&[("linux/s390x", ""), (&here, ""), ("unknown/unknown", "")], None), Ok(1));
        assert_eq!(chosen(&[(&newer, ""), (&here, "")], None), Ok(1));
        assert_eq!(chosen(&[("", "a"), ("", "x/y:b")], Some("b")), Ok(1));
        let none = chosen(&[("linux/s390x", ""), ("windows/amd64", "")], None).unwrap_err();
        assert_eq!(none, format!("there is no image for {here}; there is linux/s390x, windows/amd64"));
        let two = chosen(&[("", "a"), ("", "b")], None).unwrap_err();
        assert_eq!(two, "there is more than one image: a, b; --tag chooses one");
        assert!(chosen(&[("", "a")], Some("b")).unwrap_err().contains("with the tag b; there is a"));
    }
}
