//! The files of a group: a number, or lines of `key value`.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use super::{CgroupError, Result};

pub fn read(path: &Path) -> Result<String> {
    File::open(path).and_then(content).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

/// All of it, with as few system calls as that takes: most of these files are read for every task.
fn content(mut file: File) -> io::Result<String> {
    let (mut bytes, mut length) = (vec![0; 1024], 0);
    loop {
        match file.read(&mut bytes[length..])? {
            0 => break,
            read => length += read,
        }
        if length == bytes.len() {
            bytes.resize(2 * length, 0);
        }
    }
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

pub fn write(path: &Path, value: impl ToString) -> Result<()> {
    let value = value.to_string();
    fs::write(path, &value).map_err(|source| CgroupError::Write { path: path.to_owned(), value, source })
}

pub fn open_to_read(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| CgroupError::Open { path: path.to_owned(), source })
}

pub fn open_to_write(path: &Path) -> Result<File> {
    let failed = |source| CgroupError::Open { path: path.to_owned(), source };
    File::options().write(true).open(path).map_err(failed)
}

pub fn read_number(path: &Path) -> Result<u64> {
    let text = read(path)?;
    text.trim().parse().map_err(|_| CgroupError::Parse { path: path.to_owned(), text })
}

/// The value of `key` in a flat keyed file (`key value` lines); 0 where the kernel does not have the key.
pub fn read_keyed(path: &Path, key: &str) -> Result<u64> {
    read_keys(path, [key]).map(|[value]| value)
}

/// The same of several keys, as they are at one time.
pub fn read_keys<const N: usize>(path: &Path, keys: [&str; N]) -> Result<[u64; N]> {
    let text = read(path)?;
    let mut values = [0; N];
    for (key, value) in keys.iter().zip(&mut values) {
        let Some(found) = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')) else { continue };
        *value = found.parse().map_err(|_| CgroupError::Parse { path: path.to_owned(), text: text.clone() })?;
    }
    Ok(values)
}

pub fn read_pids(path: &Path) -> Result<Vec<i32>> {
    Ok(read(path)?.lines().filter_map(|line| line.parse().ok()).collect())
}

/// What the kernel says after `value` was written.
fn write_and_read(path: &Path, value: u64) -> Result<String> {
    let failed = |source| CgroupError::Write { path: path.to_owned(), value: value.to_string(), source };
    let mut file = File::options().read(true).write(true).open(path).map_err(failed)?;
    file.write_all(value.to_string().as_bytes()).map_err(failed)?;
    file.rewind().and_then(|()| content(file)).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

/// Writes a number and proves that the kernel took it; memory limits are rounded to pages.
pub fn enforce(path: &Path, wanted: u64) -> Result<()> {
    const PAGE: u64 = 4096;
    let found = write_and_read(path, wanted)?;
    match found.trim().parse::<u64>() {
        Ok(number) if number <= wanted && wanted - number < PAGE => Ok(()),
        _ => Err(CgroupError::NotInForce { path: path.to_owned(), wanted, found: found.trim().to_owned() }),
    }
}

/// The same for small counts, where no rounding is allowed.
pub fn enforce_exactly(path: &Path, wanted: u64) -> Result<()> {
    let found = write_and_read(path, wanted)?;
    if found.trim() == wanted.to_string() {
        return Ok(());
    }
    Err(CgroupError::NotInForce { path: path.to_owned(), wanted, found: found.trim().to_owned() })
}
