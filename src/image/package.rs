//! Names of packages, in each registry's own form. None of them can be taken for an option of the program it is given to.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A string of one kind: made from text that `$accepts`, else refused with `$expected`.
macro_rules! checked {
    ($(#[$doc:meta])* $name:ident, $accepts:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = &'static str;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                let accepts: fn(&str) -> bool = $accepts;
                if text.len() <= 200 && accepts(&text) { Ok(Self(text)) } else { Err($expected) }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked!(
    /// The name of a Debian suite, such as `trixie`.
    Suite,
    |text| is_plain(text, "-"),
    "expected the name of a Debian suite, such as trixie"
);
checked!(
    /// The name of a Debian package (Debian Policy 5.6.1).
    Package,
    |text| is_plain(text, "+-."),
    "expected the name of a Debian package"
);
checked!(
    /// A Python package with the versions that will do (PEP 508, without markers and addresses): `numpy`, `numpy==2.1.0`.
    PipRequirement,
    |text| text.starts_with(|c: char| c.is_ascii_alphanumeric()) && consists_of(text, "._-[],=<>~!*+ "),
    "expected a Python package, such as requests or requests==2.32.0"
);
checked!(
    /// An npm package with the versions that will do: `lodash`, `lodash@4.17.21`, `@types/node@22`. `{cpu}` in it is npm's
    /// name of the processor (package.json, `cpu`): `x64`, `arm64`.
    NpmPackage,
    |text| text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '@')
        && consists_of(&text.replace("{cpu}", ""), "._-@/^~=<>*")
        && !text.contains("..")
        && text.matches('/').count() <= usize::from(text.starts_with('@')),
    "expected an npm package, such as lodash or lodash@4"
);
checked!(
    /// The name of a crate.
    CrateName,
    |text| text.starts_with(|c: char| c.is_ascii_alphabetic()) && consists_of(text, "_-"),
    "expected the name of a crate"
);
checked!(
    /// The versions of a crate that will do, as in Cargo.toml.
    CrateVersion,
    |text| text.starts_with(|c: char| c.is_ascii_digit() || "=~^<>*".contains(c)) && consists_of(text, "._-=<>~^*+, "),
    "expected the version of a crate, such as 1 or =1.0.3"
);

/// What a program needs of a crate: `"1"`, or `{ version = "1", features = ["derive"] }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Crate {
    Version(CrateVersion),
    Table(CrateTable),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CrateTable {
    version: CrateVersion,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    features: Vec<String>,
    #[serde(default = "yes")]
    default_features: bool,
}

fn yes() -> bool {
    true
}

impl PipRequirement {
    /// Without its versions and extras.
    pub fn name(&self) -> &str {
        self.0.split(|c: char| "[=<>~! ,".contains(c)).next().unwrap_or_default()
    }
}

impl NpmPackage {
    /// `@scope/name@range` in its two parts, for this machine.
    pub fn name_and_range(&self) -> (String, &str) {
        let (name, range) = match self.0.char_indices().skip(1).find(|(_, c)| *c == '@') {
            Some((at, _)) => (&self.0[..at], &self.0[at + 1..]),
            None => (&self.0[..], "*"),
        };
        (name.replace("{cpu}", npm_cpu()), range)
    }
}

/// npm's name of this machine's processor (Node.js, `process.arch`).
pub fn npm_cpu() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Suite {
    /// Debian 13, what definitions start from unless they say something else.
    pub fn trixie() -> Self {
        Self("trixie".into())
    }
}

fn is_plain(text: &str, also: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(plain) && text.len() <= 100 && text.chars().all(|c| plain(c) || also.contains(c))
}

fn consists_of(text: &str, also: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_names_are_names_and_never_options_or_addresses() {
        let pip = |text: &str| PipRequirement::try_from(text.to_owned()).is_ok();
        assert!(pip("requests") && pip("numpy==2.1.0") && pip("uvicorn[standard]>=0.30,<1"));
        assert!(!pip("-r x") && !pip("x @ https://y") && !pip("../x") && !pip("x;y"));
        let npm = |text: &str| NpmPackage::try_from(text.to_owned()).is_ok();
        assert!(npm("lodash") && npm("lodash@^4.17.21") && npm("@types/node@22"));
        assert!(!npm("--x") && !npm("../x") && !npm("a/b") && !npm("git+ssh://x") && !npm("x@file:y") && !npm("{x}"));
        let parts = |text: &str| {
            let package = NpmPackage::try_from(text.to_owned()).unwrap();
            let (name, range) = package.name_and_range();
            (name, range.to_owned())
        };
        assert_eq!(parts("lodash"), ("lodash".into(), "*".into()));
        assert_eq!(parts("lodash@^4"), ("lodash".into(), "^4".into()));
        assert_eq!(parts("@types/node@22"), ("@types/node".into(), "22".into()));
        assert_eq!(parts("x-{cpu}@1"), (format!("x-{}", npm_cpu()), "1".into()));
        assert_eq!(PipRequirement::try_from("a[b]>=1".to_owned()).unwrap().name(), "a");
        let version = |text: &str| CrateVersion::try_from(text.to_owned()).is_ok();
        assert!(version("1") && version("=1.0.3") && !version("\"]"));
    }
}
