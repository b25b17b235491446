//! Why execve(2) failed, from a look at the file: the kernel says ENOENT for a script whose interpreter is missing as for a
//! command that is not there. The task's process looks itself, with the task's rights.

use std::ffi::{CString, OsStr};
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::wire::Unrunnable;
use crate::sandbox::outcome::errno_text;

/// What the kernel reads of a file to see what it is (BINPRM_BUF_SIZE).
const HEAD: u64 = 256;
/// How many interpreters the kernel follows, a script of a script.
const DEPTH: usize = 5;
/// No longer text of a client's is repeated.
const LONGEST: usize = 300;

/// `candidates` are the paths that were tried; `searched` is the PATH they come from, if the task's own environment has it.
pub fn explain(candidates: &[CString], searched: Option<&str>, errno: i32) -> Unrunnable {
    let paths = candidates.iter().map(|path| Path::new(OsStr::from_bytes(path.as_bytes())));
    let Some(path) = paths.into_iter().find(|path| path.symlink_metadata().is_ok()) else {
        return match (errno, searched) {
            (libc::ENOENT, Some(path)) => {
                let reason = format!("command not found in the PATH of its env, {}", shown(path.as_bytes()));
                Unrunnable { exit_code: 127, reason }
            }
            (libc::ENOENT, None) => Unrunnable { exit_code: 127, reason: "command not found in the image".into() },
            _ => Unrunnable { exit_code: 126, reason: format!("command cannot be executed: {}", plain(errno)) },
        };
    };
    if let (true, Ok(target)) = (path.metadata().is_err(), path.read_link()) {
        let target = shown(target.as_os_str().as_bytes());
        return Unrunnable { exit_code: 127, reason: format!("command not found: it is a link to {target}") };
    }
    // Where it was found is news only where it was looked for.
    let found = if candidates.len() > 1 { format!(" {}", shown(path.as_os_str().as_bytes())) } else { String::new() };
    let reason = match reason(path, errno, DEPTH) {
        Reason::NoProgram(why) => format!("command{found} is not a program: {why}"),
        Reason::Because(why) => format!("command{found} cannot be executed: {why}"),
    };
    Unrunnable { exit_code: 126, reason }
}

enum Reason {
    /// It has no form that the kernel knows.
    NoProgram(String),
    Because(String),
}

fn reason(path: &Path, errno: i32, depth: usize) -> Reason {
    let because = |why: &str| Reason::Because(why.into());
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return because("permission denied"),
        Err(_) => return because(&plain(errno)),
    };
    match () {
        () if metadata.is_dir() => return because("it is a directory"),
        () if !metadata.is_file() => return because("it is not a regular file"),
        () if errno == libc::EACCES && metadata.mode() & 0o111 == 0 => {
            return Reason::Because(format!(
                "permission denied: its mode is {:04o}, without the right to execute it",
                metadata.mode() & 0o7777
            ));
        }
        () if errno == libc::EACCES && is_noexec(path) => {
            return because("permission denied: nothing is executed from where it is (mounted noexec)");
        }
        () => {}
    }
    // One that may be executed and not read tells nothing.
    let Some((file, head)) = head(path) else { return because(&plain(errno)) };
    if let Some(line) = head.strip_prefix(b"#!") {
        return script(line, errno, depth);
    }
    match elf(&file, &metadata, &head) {
        Some(Elf::Foreign(machine)) if errno == libc::ENOEXEC => {
            Reason::NoProgram(format!("it is one for {machine}, and this machine is {}", std::env::consts::ARCH))
        }
        Some(Elf::Loader(loader)) if errno == libc::ENOENT => Reason::Because(format!(
            "its loader {} is not in the image; it is for another C library or another kind of machine",
            shown(&loader)
        )),
        _ if errno != libc::ENOEXEC => because(&plain(errno)),
        _ if head.is_empty() => Reason::NoProgram("it is empty".into()),
        _ if head.starts_with(b"MZ") => Reason::NoProgram("it is one for Windows".into()),
        _ => Reason::NoProgram("it needs a '#!' line or an executable format".into()),
    }
}

/// `line` is what follows `#!`.
fn script(line: &[u8], errno: i32, depth: usize) -> Reason {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let end = line.iter().position(|byte| *byte == b'\n');
    let line = &line[..end.unwrap_or(line.len())];
    let start = line.iter().position(|byte| !blank(byte)).unwrap_or(line.len());
    let line = &line[start..];
    let name = &line[..line.iter().position(|byte| blank(byte) || *byte == 0).unwrap_or(line.len())];
    if name.is_empty() {
        return Reason::NoProgram("its #! line names no interpreter".into());
    }
    if end.is_none() && name.len() == line.len() && errno == libc::ENOEXEC {
        return Reason::NoProgram("its #! line is longer than the kernel reads".into());
    }
    let (path, named) =
        (Path::new(OsStr::from_bytes(name)), format!("the interpreter {} named in its #! line", shown(name)));
    Reason::Because(match path.metadata() {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            let hint = match name {
                [.., b'\r'] => "; its lines end in \\r\\n, as on Windows, and have to end in \\n",
                _ if !name.contains(&b'/') => "; it takes a path, such as /usr/bin/env and the name",
                _ => "",
            };
            format!("{named} is not there{hint}")
        }
        Ok(_) if depth > 0 => {
            let (Reason::Because(why) | Reason::NoProgram(why)) = reason(path, errno, depth - 1);
            format!("{named} cannot be executed: {why}")
        }
        _ => format!("{named} cannot be executed: {}", plain(errno)),
    })
}

fn head(path: &Path) -> Option<(File, Vec<u8>)> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let mut head = Vec::new();
    (&file).take(HEAD).read_to_end(&mut head).ok()?;
    Some((file, head))
}

enum Elf {
    /// For this machine, loaded by this program.
    Loader(Vec<u8>),
    /// For that machine.
    Foreign(String),
}

/// What an ELF file (elf(5)) asks for.
fn elf(file: &File, metadata: &Metadata, head: &[u8]) -> Option<Elf> {
    /// PT_INTERP, p_type.
    const INTERPRETER: usize = 3;
    let is_64 = head.get(..5)?.strip_prefix(b"\x7fELF")? == [2];
    let is_little = *head.get(5)? == 1;
    let number = |bytes: &[u8], at: usize, size: usize| {
        let bytes = bytes.get(at..at + size)?;
        let digits: Box<dyn Iterator<Item = &u8>> =
            if is_little { Box::new(bytes.iter().rev()) } else { Box::new(bytes.iter()) };
        Some(digits.fold(0, |number, byte| number << 8 | usize::from(*byte)))
    };
    let machine = match number(head, 18, 2)? {
        3 => "x86".into(),
        40 => "arm".into(),
        62 => "x86_64".into(),
        183 => "aarch64".into(),
        243 => "riscv64".into(),
        other => format!("another machine (e_machine {other})"),
    };
    if machine != std::env::consts::ARCH {
        return Some(Elf::Foreign(machine));
    }
    // Where the program headers are, how large each is, and how many there are.
    let [table, size, count] = match is_64 {
        true => [number(head, 32, 8)?, number(head, 54, 2)?, number(head, 56, 2)?],
        false => [number(head, 28, 4)?, number(head, 42, 2)?, number(head, 44, 2)?],
    };
    let read = |at: usize, size: usize| {
        let is_within = at.checked_add(size)? as u64 <= metadata.len() && size <= 64 << 10;
        let mut bytes = vec![0; if is_within { size } else { return None }];
        file.read_exact_at(&mut bytes, at as u64).ok().map(|()| bytes)
    };
    let headers = read(table, size * count)?;
    let mut headers = headers.chunks_exact(size.max(1));
    let header = headers.find(|header| number(header, 0, 4) == Some(INTERPRETER))?;
    let [offset, length] = match is_64 {
        true => [number(header, 8, 8)?, number(header, 32, 8)?],
        false => [number(header, 4, 4)?, number(header, 16, 4)?],
    };
    let mut loader = read(offset, length)?;
    loader.truncate(loader.iter().position(|byte| *byte == 0).unwrap_or(loader.len()));
    (!Path::new(OsStr::from_bytes(&loader)).exists()).then_some(Elf::Loader(loader))
}

fn is_noexec(path: &Path) -> bool {
    statvfs(path).is_ok_and(|info| info.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

fn plain(errno: i32) -> String {
    match errno {
        libc::EACCES => "permission denied".into(),
        errno => errno_text(errno),
    }
}

/// A client's own bytes on one line: a carriage return as `\r`.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown = String::new();
    for c in text.chars() {
        if shown.len() >= LONGEST {
            shown.push('…');
            break;
        }
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// What is told of a file of these bytes that the kernel did not execute.
    #[track_caller]
    fn check(bytes: &[u8], mode: u32, errno: i32, exit_code: u8, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let path = CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
        let told = explain(&[path], None, errno);
        assert_eq!((told.exit_code, told.reason.as_str()), (exit_code, expected));
    }

    #[test]
    fn what_a_script_lacks_is_named() {
        let named = |name: &str| format!("command cannot be executed: the interpreter {name} named in its #! line");
        check(
            b"#!/bin/sh\r\necho\r\n",
            0o755,
            libc::ENOENT,
            126,
            &format!(
                "{} is not there; its lines end in \\r\\n, as on Windows, and have to end in \\n",
                named("/bin/sh\\r")
            ),
        );
        check(b"#! /no/perl -w\n", 0o755, libc::ENOENT, 126, &format!("{} is not there", named("/no/perl")));
        let env = format!("{} is not there; it takes a path, such as /usr/bin/env and the name", named("python3"));
        check(b"#!python3", 0o755, libc::ENOENT, 126, &env);
        check(
            b"#!/etc/passwd\n",
            0o755,
            libc::EACCES,
            126,
            &format!(
                "{} cannot be executed: permission denied: its mode is 0644, without the right to execute it",
                named("/etc/passwd")
            ),
        );
        check(
            b"#!/etc\n",
            0o755,
            libc::EACCES,
            126,
            &format!("{} cannot be executed: it is a directory", named("/etc")),
        );
        check(b"#!\necho", 0o755, libc::ENOEXEC, 126, "command is not a program: its #! line names no interpreter");
        let long = format!("#!/{}\n", "x".repeat(300));
        check(
            long.as_bytes(),
            0o755,
            libc::ENOEXEC,
            126,
            "command is not a program: its #! line is longer than the kernel reads",
        );
    }

    #[test]
    fn what_is_no_program_is_named() {
        let none = "command is not a program: it needs a '#!' line or an executable format";
        check(b"echo", 0o755, libc::ENOEXEC, 126, none);
        check(b"", 0o755, libc::ENOEXEC, 126, "command is not a program: it is empty");
        check(b"MZ\x90", 0o755, libc::ENOEXEC, 126, "command is not a program: it is one for Windows");
        let mode = "command cannot be executed: permission denied: its mode is 0644, without the right to execute it";
        check(b"#!/bin/sh\n", 0o644, libc::EACCES, 126, mode);
        let foreign = [b"\x7fELF\x02\x01".as_slice(), &[0; 12], &[243, 0]].concat();
        let text =
            format!("command is not a program: it is one for riscv64, and this machine is {}", std::env::consts::ARCH);
        check(&foreign, 0o755, libc::ENOEXEC, 126, &text);
        // A header that points anywhere is no reason to fail.
        let mut bent = std::fs::read(std::env::current_exe().unwrap()).unwrap()[..64].to_vec();
        bent[32..40].fill(0xff);
        check(&bent, 0o755, libc::ENOENT, 126, "command cannot be executed: no such file or directory");
    }

    #[test]
    fn what_is_not_there_says_where_it_was_looked_for() {
        let told = |path: Option<&str>| explain(&[c"/no/a".to_owned(), c"/no/b".to_owned()], path, libc::ENOENT).reason;
        assert_eq!(told(None), "command not found in the image");
        assert_eq!(told(Some("/no")), "command not found in the PATH of its env, /no");
        let dir = tempfile::tempdir().unwrap();
        symlink("/no/where", dir.path().join("l")).unwrap();
        let link = CString::new(dir.path().join("l").into_os_string().into_encoded_bytes()).unwrap();
        let told = explain(&[link], None, libc::ENOENT);
        assert_eq!((told.exit_code, told.reason.as_str()), (127, "command not found: it is a link to /no/where"));
    }
}
