//! What a former version kept open to everybody (trees, files and staging in the data directory itself, names that were
//! links to trees) gets its places of today. Only renames and small files: whatever ends it, the next one goes on.
//!
//! A server of that version which still runs goes on with what it has mounted, and finds no other image of the store until
//! it is started anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{IMAGE_JSON, Result, Store, Tree, at, open, read_image};

impl Store {
    /// What is moved last.
    fn former_trees(&self) -> PathBuf {
        self.dir.join("trees")
    }

    pub(super) fn is_of_a_former_version(&self) -> bool {
        fs::symlink_metadata(self.former_trees()).is_ok_and(|meta| meta.is_dir())
    }

    pub(super) fn upgrade(&self) -> Result<()> {
        self.upgrade_names()?;
        let (files, old) = (self.files(), self.dir.join("files"));
        match fs::rename(&old, &files) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // There are some of today: the trees have theirs by links.
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                remove(&old)?;
            }
            done => done.map_err(at("move", &old))?,
        }
        // Killed builds had theirs beside the directories.
        for entry in fs::read_dir(&files).map_err(at("read", &files))?.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                fs::remove_file(entry.path()).map_err(at("remove", &entry.path()))?;
            }
        }
        for gone in ["staging", "lock"] {
            remove(&self.dir.join(gone))?;
        }
        self.upgrade_trees()?;
        open::sync_file_system(&self.own()).map_err(at("write out", &self.own()))
    }

    fn upgrade_names(&self) -> Result<()> {
        for name in self.entries()? {
            let Ok(target) = fs::read_link(&name) else { continue };
            let Some(digest) = target.strip_prefix("../trees").ok().and_then(Path::file_name) else { continue };
            let tree = self.former_trees().join(digest);
            if tree.join(IMAGE_JSON).exists() {
                self.name(&read_image(&tree.join(IMAGE_JSON))?)?;
            } else {
                fs::remove_file(&name).map_err(at("remove", &name))?;
            }
        }
        Ok(())
    }

    fn upgrade_trees(&self) -> Result<()> {
        let (trees, former) = (self.trees(), self.former_trees());
        for entry in fs::read_dir(&former).map_err(at("read", &former))?.flatten() {
            let (old, new) = (entry.path(), trees.join(entry.file_name()));
            if new.exists() {
                remove(&old)?;
                continue;
            }
            Tree::prepare(&old)?;
            fs::rename(&old, &new).map_err(at("move", &old))?;
        }
        fs::remove_dir(&former).map_err(at("remove", &former))
    }
}

/// A file, or a directory with everything in it; links are not followed.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}
