//! Other systems' APIs as translations to tasks and back: values only. Each has its own words, error forms and languages; nothing
//! else in Faber knows them. `docs/compatibility-apis.md` says what is the same, what differs and what is not there.

pub mod fusion;
pub mod gojudge;
pub mod jobe;
pub mod judge0;
pub mod librechat;
pub mod piston;

use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use base64::{Engine as _, alphabet};
use semver::Version;

/// Base64 without padding, and whatever the bits are that are left over.
const LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, NO_PAD.with_decode_allow_trailing_bits(true));

/// Bytes of base64, with or without padding and white space.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let plain: String = text.trim_end_matches(['=', '\r', '\n']).split_ascii_whitespace().collect();
    LENIENT.decode(plain).ok()
}

/// The version of an image whose packages have these: the highest.
fn version(packages: &[String]) -> Version {
    packages.iter().map(|version| numbers(version)).max().unwrap_or(Version::new(0, 0, 0))
}

/// The numbers that a Debian version begins with: no epoch, no revision (deb-version(7)).
fn numbers(version: &str) -> Version {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut numbers = upstream.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    Version::new(next(), next(), next())
}

/// A path of which no character stands for others.
fn literally(path: &str) -> String {
    path.chars().fold(String::new(), |mut glob, c| {
        match c {
            '*' | '?' | '[' | ']' | '{' | '}' | '!' => glob.extend(['[', c, ']']),
            _ => glob.push(c),
        }
        glob
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// The languages with their images that the document has below a heading.
    fn told(heading: &str) -> BTreeSet<(&'static str, String)> {
        let text = include_str!("../../docs/compatibility-apis.md");
        let (_, section) = text.split_once(&format!("\n## {heading}\n")).unwrap();
        let rows =
            section.split("\n## ").next().unwrap().lines().skip_while(|line| !line.starts_with("| language | image"));
        let cells = rows.skip(2).take_while(|line| line.starts_with('|')).flat_map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            [(cells[1], cells[2]), (cells[4], cells[5])]
        });
        cells
            .filter(|(language, _)| !language.is_empty())
            .map(|(language, image)| (language.split('`').nth(1).unwrap(), image.to_owned()))
            .collect()
    }

    #[test]
    fn the_document_has_every_language() {
        let fusion =
            super::fusion::LANGUAGES.iter().filter_map(|(language, image)| Some((*language, (*image)?.to_owned())));
        assert_eq!(told("SandboxFusion"), fusion.collect());
        let piston = super::piston::LANGUAGES.iter().map(|(language, image, _)| (*language, (*image).to_owned()));
        assert_eq!(told("Piston, version 2"), piston.collect());
        let jobe = super::jobe::LANGUAGES.map(|(language, image)| (language, image.to_owned()));
        assert_eq!(told("Jobe"), jobe.into());
        let librechat = super::librechat::LANGUAGES.map(|(language, images, _)| (language, images.join(", or ")));
        assert_eq!(told("LibreChat"), librechat.into());
        let judge0 = super::judge0::LANGUAGES.each_ref().map(|known| known.id.to_string());
        let images = super::judge0::LANGUAGES.iter().map(|known| match known.program {
            super::judge0::Program::Of { image, .. } => image,
            _ => "the default image",
        });
        let judge0 = judge0.iter().map(String::as_str).zip(images.map(str::to_owned));
        assert_eq!(told("Judge0 CE, version 1.13.1"), judge0.collect());
    }

    #[test]
    fn a_path_is_taken_literally() {
        assert_eq!(super::literally("a/b[1]*.txt"), "a/b[[]1[]][*].txt");
    }
}
