//! Faber's own part of a tree: the mount points, and an /etc that every image has.

use std::io::Read;
use std::path::Path;

use rustix::fs::OFlags;

use super::attributes::{DIRECTORY, READABLE};
use super::unpacking::Unpacking;
use super::{Kind, Result, TreeError, below, packages};
use crate::image::{MOUNT_POINTS, SKELETON};

/// What an image may have its own of.
const IMAGES_OWN: [&str; 3] = ["passwd", "group", "nsswitch.conf"];
/// No table of users is larger.
const ACCOUNTS_BYTES: u64 = 1 << 20;

impl Unpacking<'_> {
    pub(super) fn mount_points(&mut self) -> Result<()> {
        MOUNT_POINTS.iter().try_for_each(|name| {
            let spot = self.spot(Path::new(name))?;
            self.directory(spot, &DIRECTORY)
        })
    }

    /// Makes the directory `path`, unless it is there; below a link to nothing it cannot be made.
    pub fn make_directory(&mut self, path: &Path) -> Result<()> {
        let path = below::normal(path)?;
        if below::open(&self.root, &path, OFlags::PATH, self.kind.resolve()).is_ok() {
            return Ok(());
        }
        match self.spot(&path) {
            Ok(spot) => self.directory(spot, &DIRECTORY),
            Err(TreeError::LeadsNowhere(_) | TreeError::LeadsOut(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn skeleton(&mut self) -> Result<()> {
        self.mount_points()?;
        for (name, content) in SKELETON {
            let path = Path::new("etc").join(name);
            let own = (self.kind == Kind::Layers && IMAGES_OWN.contains(name)).then(|| self.text(&path)).flatten();
            match own {
                Some(own) => self.introduce(&path, content, own)?,
                None => self.write(&path, content)?,
            }
        }
        if self.kind == Kind::Layers {
            let status = self.text_of(Path::new(packages::FILE), packages::BYTES);
            self.packages = status.map(|status| packages::packages(&status)).unwrap_or_default();
        }
        Ok(())
    }

    /// Adds the line of Faber's user to an image's own table of users or groups, unless it has that number already.
    fn introduce(&mut self, path: &Path, ours: &str, mut own: String) -> Result<()> {
        let number = |line: &str| line.split(':').nth(2).map(str::to_owned);
        let Some(line) = ours.lines().find(|line| line.starts_with("faber:")) else { return Ok(()) };
        if own.lines().any(|known| number(known) == number(line)) {
            return Ok(());
        }
        if !own.is_empty() && !own.ends_with('\n') {
            own.push('\n');
        }
        self.write(path, &format!("{own}{line}\n"))
    }

    fn write(&mut self, path: &Path, content: &str) -> Result<()> {
        let spot = self.spot(path)?;
        self.make_room(&spot)?;
        self.file(spot, content.len() as u64, &mut content.as_bytes(), &READABLE)
    }

    fn text(&self, path: &Path) -> Option<String> {
        self.text_of(path, ACCOUNTS_BYTES)
    }

    /// A text file of the tree, if it is there and is one.
    fn text_of(&self, path: &Path, most: u64) -> Option<String> {
        let (file, mut text) = (below::file(&self.root, path).ok()?, String::new());
        let length = file.take(most + 1).read_to_string(&mut text).ok()?;
        (length as u64 <= most).then_some(text)
    }
}
