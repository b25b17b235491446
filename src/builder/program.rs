//! A program of the machine, run to its end or until the build is cancelled.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};

use super::{BuilderError, Result, at};

/// What is kept of what a program says: its last words are what matter.
const SAID: usize = 64 << 10;

/// Runs `command`; each line that it writes to standard error is shown to `heard`.
///
/// # Errors
/// With its last words when it did not succeed, and when `cancel` became readable: then it is ended.
pub fn finish(
    program: &'static str,
    command: &mut Command,
    cancel: BorrowedFd<'_>,
    mut heard: impl FnMut(&str),
) -> Result<()> {
    let child = command.stderr(Stdio::piped()).spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BuilderError::NoProgram(program),
        _ => BuilderError::Io { step: "start a program of the machine", source },
    })?;
    let mut child = Running(child);
    let mut said = Vec::new();
    while let Some(bytes) = child.listen(cancel).map_err(at("listen to a program of the machine"))? {
        let before = said.len() - said.rsplit(|byte| *byte == b'\n').next().map_or(0, <[u8]>::len);
        said.extend(bytes);
        let end = said.iter().rposition(|byte| *byte == b'\n').map_or(before, |at| at + 1);
        String::from_utf8_lossy(&said[before..end.max(before)]).lines().for_each(&mut heard);
        if said.len() > 2 * SAID {
            said.drain(..SAID);
        }
    }
    if child.0.wait().map_err(at("wait for a program of the machine"))?.success() {
        return Ok(());
    }
    Err(BuilderError::Program { program, said: last_words(&String::from_utf8_lossy(&said)) })
}

/// A child that does not outlive this.
struct Running(Child);

impl Running {
    /// The next bytes of its standard error; None at their end.
    fn listen(&mut self, cancel: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
        let Some(stderr) = self.0.stderr.as_mut() else { return Ok(None) };
        let mut fds =
            [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::IN), PollFd::from_borrowed_fd(cancel, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => return Ok(Some(Vec::new())),
            other => other?,
        };
        if !fds[1].revents().is_empty() {
            return Err(io::Error::other("interrupted"));
        }
        let mut bytes = vec![0; 8 << 10];
        let length = stderr.read(&mut bytes)?;
        bytes.truncate(length);
        Ok((length > 0).then_some(bytes))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The last lines of what a program said, as far as they are worth reading.
pub fn last_words(said: &str) -> String {
    const LINES: usize = 5;
    const LINE: usize = 300;
    let lines: Vec<String> =
        said.lines().map(str::trim).filter(|line| !line.is_empty()).map(|l| l.chars().take(LINE).collect()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, cancelled: bool) -> (Result<()>, Vec<String>) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        if cancelled {
            rustix::io::write(&writer, &[1]).unwrap();
        }
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        let done = finish("sh", command.args(["-c", script]), reader.as_fd(), |line| lines.push(line.to_owned()));
        (done, lines)
    }

    #[test]
    fn lines_are_heard_once_and_the_last_are_told() {
        let (done, lines) = shell("printf 'a\nb' >&2; sleep 0.1; printf 'c\n\nd\n' >&2", false);
        done.unwrap();
        assert_eq!(lines, ["a", "bc", "", "d"]);
        let (done, _) = shell("echo why >&2; exit 3", false);
        assert_eq!(done.unwrap_err().to_string(), "sh failed: why");
        let (done, _) = shell("exec sleep 60", true);
        assert!(crate::chain::chain(&done.unwrap_err()).contains("interrupted"));
    }
}
