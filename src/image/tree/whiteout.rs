//! What a layer takes away of those below it (image-spec, layer.md, "Whiteouts").

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Result, TreeError};

#[derive(Debug, PartialEq, Eq)]
pub enum Whiteout {
    /// `.wh.NAME`: NAME beside it.
    Of(PathBuf),
    /// `.wh..wh..opq`: everything in its directory.
    Everything,
    /// Another mark of a storage driver, which means nothing elsewhere.
    Other,
}

impl Whiteout {
    /// What `name` stands for, if it is no plain name; `path` is for the error.
    pub fn parse(name: &Path, path: &Path) -> Result<Option<Self>> {
        let Some(hidden) = name.as_os_str().as_bytes().strip_prefix(b".wh.") else { return Ok(None) };
        match hidden {
            b".wh..opq" => Ok(Some(Self::Everything)),
            b"" | b"." | b".." => Err(TreeError::LeadsOut(path.to_owned())),
            mark if mark.starts_with(b".wh.") => Ok(Some(Self::Other)),
            name => Ok(Some(Self::Of(PathBuf::from(std::ffi::OsStr::from_bytes(name))))),
        }
    }

    pub fn name(&self) -> &[u8] {
        match self {
            Self::Of(_) => b"one",
            Self::Everything => b"everything",
            Self::Other => b"other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_told_from_names() {
        let parse = |name: &str| Whiteout::parse(Path::new(name), Path::new(name)).ok();
        assert_eq!(parse("a"), Some(None));
        assert_eq!(parse(".wh.a"), Some(Some(Whiteout::Of("a".into()))));
        assert_eq!(parse(".wh..a"), Some(Some(Whiteout::Of(".a".into()))));
        assert_eq!(parse(".wh..wh..opq"), Some(Some(Whiteout::Everything)));
        assert_eq!(parse(".wh..wh.plnk"), Some(Some(Whiteout::Other)));
        assert_eq!([parse(".wh."), parse(".wh.."), parse(".wh...")], [None, None, None]);
    }
}
