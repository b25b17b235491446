//! The arrows of the house: who may name whom.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// The lines of code in which `name` is used, outside of `homes` (paths below src).
fn strangers(name: &str, homes: &[&str]) -> Vec<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for path in sources(&src).iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let below = path.strip_prefix(&src).unwrap();
        if homes.iter().any(|home| below.starts_with(home)) {
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        found.extend(code.filter(|line| line.contains(name)).map(|line| format!("{}: {line}", below.display())));
    }
    found
}

#[track_caller]
fn only(name: &str, homes: &[&str]) {
    assert_eq!(strangers(name, homes), Vec::<String>::new(), "{name} is for {homes:?} alone");
}

#[test]
fn dependencies_point_one_way() {
    only("libcontainer::", &["sandbox"]);
    only("axum::", &["api"]);
    only("crate::api", &["cli", "api", "fuzzing.rs"]);
    only("crate::builder", &["cli", "builder"]);
    only("crate::cli", &["cli"]);
    only("crate::sandbox", &["builder", "cli", "fuzzing.rs", "keeper", "needs.rs", "runner", "sandbox"]);
    only("crate::scheduler", &["api", "cli", "execution", "jobs", "judge", "scheduler", "sessions"]);
    only("crate::sessions", &["api", "cli", "sessions"]);
    only("crate::execution", &["api", "cli", "execution", "judge"]);
    only("crate::judge", &["api", "cli", "judge", "mcp", "fuzzing.rs"]);
    only("crate::jobs", &["api", "cli", "jobs"]);
    only("crate::graph", &["execution", "graph", "fuzzing.rs"]);
    only("crate::compat", &["api", "compat"]);
    only("crate::mcp", &["api", "cli", "mcp"]);
    only("rmcp::", &["api/mcp.rs", "cli/mcp.rs", "mcp"]);
    only("crate::blobs", &["api", "blobs", "cli", "execution"]);
    only("crate::keeper", &["cli", "keeper", "fuzzing.rs"]);
    only(
        "tokio::",
        &["api", "callbacks", "cli", "execution", "jobs", "judge", "scheduler", "sessions", "image/oci/registry.rs"],
    );
    only("crate::callbacks", &["api", "callbacks", "cli", "compat", "config", "jobs", "keeper"]);
    only("reqwest::", &["callbacks", "cli/client.rs", "cli/jobs.rs"]);
    only("hickory_resolver::", &["callbacks"]);
    only("oci_client::", &["image/oci"]);
    only("redb::", &["jobs/embedded.rs"]);
    only("sd_notify::", &["keeper/manager.rs"]);
    only("anyhow", &["cli"]);
    only("unsafe {", &["sandbox"]);
}

#[test]
fn the_domain_knows_nobody() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/task");
    for path in sources(&src) {
        let text = fs::read_to_string(&path).unwrap();
        for name in ["tokio", "nix::", "rustix", "std::fs", "std::net", "crate::"] {
            let used = text
                .lines()
                .any(|line| line.starts_with("use ") && line.contains(name) && !line.contains("crate::task"));
            assert!(!used, "{} names {name}", path.display());
        }
    }
}

/// What definitions copy lies beside them, and the Debian package names its files one by one.
#[test]
fn the_package_has_what_definitions_copy() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(project.join("Cargo.toml")).unwrap();
    let beside = sources(&project.join("images")).into_iter().filter(|path| {
        let name = path.file_name().unwrap();
        path.parent() != Some(&project.join("images")) && name != "image.toml" && name != "image.lock"
    });
    let missing: Vec<_> = beside
        .map(|path| path.strip_prefix(project).unwrap().display().to_string())
        .filter(|path| !manifest.contains(&format!("[\"{path}\", ")))
        .collect();
    assert_eq!(missing, Vec::<String>::new(), "files that are in no asset of package.metadata.deb");
}
