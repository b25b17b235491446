//! What a former version kept open to everybody (trees, files and staging in the data directory itself, names that were
//! links to trees) gets its places of today. Only renames and small files: whatever ends it, the next one goes on.
//!
//! A server of that version which still runs goes on with what it has mounted, and finds no other image of the store until
//! it is started anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{IMAGE_JSON, Result, Store, StoreError, Tree, at, open, read_image};

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
                self.set_aside(&old)?;
            }
            done => done.map_err(at("move", &old))?,
        }
        // Killed builds had theirs beside the directories.
        for entry in fs::read_dir(&files).map_err(at("read", &files))?.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                fs::remove_file(entry.path()).map_err(at("remove", &entry.path()))?;
            }
        }
        self.set_aside(&self.dir.join("staging"))?;
        if let Err(error) = fs::remove_file(self.dir.join("lock"))
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(at("remove", &self.dir.join("lock"))(error));
        }
        self.upgrade_trees()?;
        open::sync_file_system(&self.own()).map_err(at("write out", &self.own()))
    }

    fn upgrade_names(&self) -> Result<()> {
        for name in self.entries()? {
            let Ok(target) = fs::read_link(&name) else { continue };
            let Some(digest) = target.strip_prefix("../trees").ok().and_then(Path::file_name) else { continue };
            match read_image(&self.former_trees().join(digest).join(IMAGE_JSON)) {
                Ok(image) => self.name(&image)?,
                // It was no image that anybody could use.
                Err(StoreError::Json { .. }) => fs::remove_file(&name).map_err(at("remove", &name))?,
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    fs::remove_file(&name).map_err(at("remove", &name))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn upgrade_trees(&self) -> Result<()> {
        let (trees, former) = (self.trees(), self.former_trees());
        for entry in fs::read_dir(&former).map_err(at("read", &former))?.flatten() {
            let (old, new) = (entry.path(), trees.join(entry.file_name()));
            if new.exists() {
                self.set_aside(&old)?;
                continue;
            }
            Tree::prepare(&old)?;
            fs::rename(&old, &new).map_err(at("move", &old))?;
        }
        fs::remove_dir(&former).map_err(at("remove", &former))
    }

    /// Moves a directory to where the next writer removes it: a server may not be able to, since its capabilities are few.
    fn set_aside(&self, path: &Path) -> Result<()> {
        let staging = self.staging();
        let aside = TempDir::new_in(&staging).map_err(at("create a directory in", &staging))?.keep();
        match fs::rename(path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::remove_dir(&aside).map_err(at("remove", &aside))
            }
            done => done.map_err(at("move", path)),
        }
    }
}
