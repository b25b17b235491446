//! Which image a task runs in: its name, which a client says, and its digest, which says what is in it.

use serde::{Deserialize, Serialize};

use super::{Language, Refusal, ResourceLimits};

/// The name of an image: lower-case letters, digits, `-`, `_` and `.`, beginning with a letter or digit, at most 64.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

/// `sha256:` and 64 hexadecimal digits: over everything in an image, so that two with the same digest are the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// One image, exactly: what a name stood for when the task was taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageId {
    pub name: ImageName,
    pub digest: Digest,
}

/// An image as a task may choose it, with the limits it has in place of the server's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub id: ImageId,
    pub limits: ResourceLimits,
    pub language: Option<Language>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected sha256: and 64 hexadecimal digits")]
pub struct NotADigest;

impl ImageName {
    /// # Errors
    /// `Refusal::ImageName` for anything else.
    pub fn parse(name: &str) -> Result<Self, Refusal> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let ok = name.len() <= 64
            && name.starts_with(plain)
            && name.chars().all(|c| plain(c) || matches!(c, '-' | '_' | '.'));
        if ok { Ok(Self(name.to_owned())) } else { Err(Refusal::ImageName(name.chars().take(100).collect())) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Digest {
    /// The digest whose bytes these are.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}")))
    }

    /// The 64 digits: a file name.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;
    fn try_from(text: String) -> Result<Self, NotADigest> {
        let digits = text.strip_prefix("sha256:").ok_or(NotADigest)?;
        let hexadecimal = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if digits.len() == 64 && digits.bytes().all(hexadecimal) { Ok(Self(text)) } else { Err(NotADigest) }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ImageName {
    type Error = Refusal;
    fn try_from(name: String) -> Result<Self, Refusal> {
        Self::parse(&name)
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> String {
        name.0
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The image called `name`.
///
/// # Errors
/// `Refusal::UnknownImage`, with the names that are nearest to it, or else the first of those there are.
pub(super) fn find<'a>(name: &ImageName, offers: &'a [Offer]) -> Result<&'a Offer, Refusal> {
    if let Some(offer) = offers.iter().find(|offer| offer.id.name == *name) {
        return Ok(offer);
    }
    let names: Vec<&str> = offers.iter().map(|offer| offer.id.name.as_str()).collect();
    Err(Refusal::UnknownImage { name: name.clone().into(), hint: hint(name.as_str(), &names, "GET /images") })
}

/// The image for programs of `language`, which is the name of one.
///
/// # Errors
/// `Refusal::UnknownLanguage` likewise.
pub(super) fn find_language<'a>(language: &str, offers: &'a [Offer]) -> Result<&'a Offer, Refusal> {
    let languages = || offers.iter().filter(|offer| offer.language.is_some());
    if let Some(offer) = languages().find(|offer| offer.id.name.as_str() == language) {
        return Ok(offer);
    }
    let names: Vec<&str> = languages().map(|offer| offer.id.name.as_str()).collect();
    Err(Refusal::UnknownLanguage { name: super::cut(language), hint: hint(language, &names, "GET /languages") })
}

fn hint(name: &str, names: &[&str], list: &str) -> String {
    let near: Vec<&str> = names.iter().filter(|known| strsim::jaro_winkler(name, known) > 0.8).copied().collect();
    match (near.is_empty(), names.len()) {
        (false, _) => format!("did you mean {}?", near.join(" or ")),
        (true, 0) => "this server has none".into(),
        (true, 1..=10) => format!("this server has {}", names.join(", ")),
        (true, count) => format!("{list} lists the {count} this server has"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(names: &[&str]) -> Vec<Offer> {
        let offer = |name: &&str| Offer {
            id: ImageId { name: ImageName::parse(name).unwrap(), digest: Digest::new([0; 32]) },
            limits: ResourceLimits::default(),
            language: None,
        };
        names.iter().map(offer).collect()
    }

    #[test]
    fn an_unknown_image_is_told_with_the_nearest() {
        let hint = |name: &str, names: &[&str]| match find(&ImageName::parse(name).unwrap(), &offers(names)) {
            Err(Refusal::UnknownImage { hint, .. }) => hint,
            other => panic!("{other:?}"),
        };
        assert_eq!(hint("pyhton", &["host", "python", "ruby"]), "did you mean python?");
        assert_eq!(hint("fortran", &["host", "ruby"]), "this server has host, ruby");
        assert_eq!(hint("fortran", &[]), "this server has none");
        assert!(find(&ImageName::parse("ruby").unwrap(), &offers(&["ruby"])).is_ok());
    }

    #[test]
    fn a_digest_is_a_file_name() {
        let digest = Digest::new([0xab; 32]);
        assert_eq!(digest.hex().len(), 64);
        assert_eq!(Digest::try_from(digest.to_string()), Ok(digest));
        for text in ["", "sha256:", "sha256:../../etc", "md5:00"] {
            assert_eq!(Digest::try_from(text.to_owned()), Err(NotADigest));
        }
        assert!(Digest::try_from(format!("sha256:{}", "/".repeat(64))).is_err());
    }
}
