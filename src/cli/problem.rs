//! A problem's tests as they lie in directories: what a program reads, and the right answer.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Where packages of Polygon, DOMjudge, Kattis and the like have their tests, below each other, the samples first.
const FOLDERS: [&str; 5] = ["sample", "samples", "secret", "data", "tests"];
/// How an answer's file ends, best first.
const ANSWERS: [&str; 3] = ["out", "ans", "a"];

/// One test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestFiles {
    pub name: String,
    pub input: PathBuf,
    pub answer: Option<PathBuf>,
}

/// The tests in a directory, or the one whose input this file is.
///
/// # Errors
/// When there are none.
pub fn find(path: &Path) -> anyhow::Result<Vec<TestFiles>> {
    if path.is_file() {
        let stem = path.with_extension("");
        let name = stem.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let answer = ANSWERS.iter().map(|end| with_end(&stem, end)).find(|answer| answer.is_file());
        return Ok(vec![TestFiles { name, input: path.to_owned(), answer }]);
    }
    let mut tests = Vec::new();
    collect(path, "", &mut tests)?;
    anyhow::ensure!(
        !tests.is_empty(),
        "there are no tests in {}: a test is NAME.in, with NAME.out or NAME.ans beside it",
        path.display()
    );
    Ok(tests)
}

fn collect(directory: &Path, prefix: &str, tests: &mut Vec<TestFiles>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    let mut files = BTreeMap::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", directory.display()))?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name().and_then(|name| name.to_str())) {
            files.insert(name.to_owned(), path);
        }
    }
    let mut found: Vec<TestFiles> = files
        .iter()
        .filter_map(|(name, path)| {
            // Polygon's inputs have no ending: 01, with 01.a beside it.
            let stem = name.strip_suffix(".in").or_else(|| files.contains_key(&format!("{name}.a")).then_some(name))?;
            let answer = ANSWERS.iter().find_map(|end| files.get(&format!("{stem}.{end}"))).cloned();
            Some(TestFiles { name: format!("{prefix}{stem}"), input: path.clone(), answer })
        })
        .collect();
    found.sort_by(|one, other| natural(&one.name, &other.name));
    tests.extend(found);
    for folder in FOLDERS {
        let below = directory.join(folder);
        if below.is_dir() {
            collect(&below, &format!("{prefix}{folder}/"), tests)?;
        }
    }
    Ok(())
}

fn with_end(stem: &Path, end: &str) -> PathBuf {
    let mut path = stem.as_os_str().to_owned();
    path.push(format!(".{end}"));
    path.into()
}

/// 2 before 10: runs of digits are compared as numbers.
fn natural(one: &str, other: &str) -> Ordering {
    let parts = |text: &str| {
        let mut parts: Vec<(bool, String)> = Vec::new();
        for c in text.chars() {
            match parts.last_mut() {
                Some((digits, part)) if *digits == c.is_ascii_digit() => part.push(c),
                _ => parts.push((c.is_ascii_digit(), c.to_string())),
            }
        }
        let number = |part: &str| (part.trim_start_matches('0').len(), part.trim_start_matches('0').to_owned());
        let key = |(digits, part): (bool, String)| {
            if digits { (number(&part), part) } else { ((usize::MAX, part), String::new()) }
        };
        parts.into_iter().map(key).collect::<Vec<_>>()
    };
    parts(one).cmp(&parts(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        dir
    }

    fn names(files: &[&str]) -> Vec<(String, Option<String>)> {
        let dir = directory(files);
        let answer = |path: &PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
        find(dir.path()).unwrap().into_iter().map(|test| (test.name, test.answer.as_ref().map(answer))).collect()
    }

    #[test]
    fn tests_are_found_in_the_order_of_their_numbers() {
        let some = |text: &str| Some(text.to_owned());
        let flat = names(&["10.in", "2.in", "1.in", "1.out", "2.ans", "10.out", "10.ans", "readme.txt"]);
        assert_eq!(flat, [("1".into(), some("1.out")), ("2".into(), some("2.ans")), ("10".into(), some("10.out"))]);
        let package = names(&["data/secret/01.in", "data/secret/01.ans", "data/sample/1.in", "data/sample/1.ans"]);
        assert_eq!(
            package,
            [
                ("data/sample/1".into(), some("data/sample/1.ans")),
                ("data/secret/01".into(), some("data/secret/01.ans"))
            ]
        );
        assert_eq!(names(&["tests/01", "tests/01.a"]), [("tests/01".into(), some("tests/01.a"))]);
        assert_eq!(names(&["x.in"]), [("x".into(), None)]);
    }

    #[test]
    fn one_test_is_its_input() {
        let dir = directory(&["a.in", "a.ans"]);
        let tests = find(&dir.path().join("a.in")).unwrap();
        assert_eq!((tests[0].name.as_str(), tests[0].answer.is_some()), ("a", true));
        assert!(find(directory(&["x.txt"]).path()).unwrap_err().to_string().contains("no tests in"));
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        let mut names = ["b10", "a", "b9", "b09", "1", "01", "10", "2"];
        names.sort_by(|one, other| natural(one, other));
        assert_eq!(names, ["01", "1", "2", "10", "a", "b09", "b9", "b10"]);
    }
}
