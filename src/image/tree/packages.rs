//! What Debian's package manager says is installed.

use std::collections::BTreeMap;

/// Where Debian keeps the list of its packages (dpkg(1)).
pub const FILE: &str = "var/lib/dpkg/status";
/// No list of packages is larger.
pub const BYTES: u64 = 64 << 20;

/// Names and versions of what is installed (deb-control(5) paragraphs).
pub fn packages(status: &str) -> BTreeMap<String, String> {
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
    };
    let paragraphs = status.split("\n\n");
    let installed = paragraphs.filter(|p| field(p, "Status").is_some_and(|status| status.ends_with(" installed")));
    installed.filter_map(|p| Some((field(p, "Package")?, field(p, "Version")?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_packages_are_read() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1\n\nPackage: b\nStatus: deinstall ok config-files\nVersion: 2\n";
        assert_eq!(packages(status), BTreeMap::from([("a".to_owned(), "1".to_owned())]));
    }
}
