//! The files of a group: a number, or lines of `key value`.

use std::fs;
use std::path::Path;

use super::{CgroupError, Result};

pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

pub fn write(path: &Path, value: impl ToString) -> Result<()> {
    let value = value.to_string();
    fs::write(path, &value).map_err(|source| CgroupError::Write { path: path.to_owned(), value, source })
}

pub fn read_number(path: &Path) -> Result<u64> {
    let text = read(path)?;
    text.trim().parse().map_err(|_| CgroupError::Parse { path: path.to_owned(), text })
}

/// The value of `key` in a flat keyed file (`key value` lines); 0 where the kernel does not have the key.
pub fn read_keyed(path: &Path, key: &str) -> Result<u64> {
    let text = read(path)?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    match value.map(str::parse) {
        None => Ok(0),
        Some(Ok(number)) => Ok(number),
        Some(Err(_)) => Err(CgroupError::Parse { path: path.to_owned(), text }),
    }
}

pub fn read_pids(path: &Path) -> Result<Vec<i32>> {
    Ok(read(path)?.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Writes a number and proves that the kernel took it; memory limits are rounded to pages.
pub fn enforce(path: &Path, wanted: u64) -> Result<()> {
    const PAGE: u64 = 4096;
    write(path, wanted)?;
    let found = read(path)?;
    match found.trim().parse::<u64>() {
        Ok(number) if number <= wanted && wanted - number < PAGE => Ok(()),
        _ => Err(CgroupError::NotInForce { path: path.to_owned(), wanted, found: found.trim().to_owned() }),
    }
}

/// The same for small counts, where no rounding is allowed.
pub fn enforce_exactly(path: &Path, wanted: u64) -> Result<()> {
    write(path, wanted)?;
    let found = read(path)?;
    if found.trim() == wanted.to_string() {
        return Ok(());
    }
    Err(CgroupError::NotInForce { path: path.to_owned(), wanted, found: found.trim().to_owned() })
}
