//! Where the log goes: standard error, in the configured form.
//!
//! Writing neither blocks nor fails, whoever reads: a line for which there is no room, or nobody to read it, is lost, and the
//! next one that gets through comes after the count of the lost ones. O_NONBLOCK belongs to an open file description, which
//! may be shared with whoever started Faber; so a pipe or a terminal is opened anew (/proc/self/fd/2, proc(5)) and takes the
//! place of standard error, for all that is started from here. A socket is sent to with MSG_DONTWAIT (send(2)). A file is
//! written as it is: a disk is waited for.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, OnceLock};
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fstat, open};
use rustix::net::{SendFlags, send};
use rustix::stdio::{dup2_stderr, stderr};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

use crate::config::{Log, LogFormat, LogLevel};

/// Changes the level of what is started.
static LEVEL: OnceLock<Box<dyn Fn(LogLevel) + Send + Sync>> = OnceLock::new();

fn filter(level: LogLevel) -> EnvFilter {
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    // Other crates are heard from `info` on only when they warn; rmcp warns of what clients do wrong.
    EnvFilter::new(format!("warn,rmcp=error,faber={level}"))
}

/// From now on this is told, and what is graver.
pub fn set_level(level: LogLevel) {
    LEVEL.get().into_iter().for_each(|set| set(level));
}

pub fn start(config: &Log) {
    let (is_json, is_terminal) = (config.format == LogFormat::Json, io::stderr().is_terminal());
    let sink = Mutex::new(Sink::stderr(is_json));
    let (filter, handle) = reload::Layer::new(filter(config.level));
    let _ = LEVEL.set(Box::new(move |level| _ = handle.reload(self::filter(level))));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(sink).with_target(false);
    match config.format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
        LogFormat::Pretty => registry.with(lines.with_ansi(is_terminal)).init(),
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a bug of Faber's")));
}

/// For a process without a log: the hook that is there by default waits for a reader.
pub fn panics_only() {
    std::panic::set_hook(Box::new(|panic| _ = Sink::stderr(false).write(format!("faber: {panic}\n").as_bytes())));
}

/// Standard error, a line with each write.
struct Sink {
    kind: Kind,
    is_json: bool,
    /// Lines, since one was written.
    lost: u64,
    /// Only the beginning of the last line was written.
    torn: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// write(2) does not wait, or waits for a disk alone.
    Ready,
    Socket,
    /// A pipe or a terminal that cannot be opened anew: others may fill it between poll(2) and write(2).
    Shared,
}

impl Sink {
    fn stderr(is_json: bool) -> Self {
        Self { kind: take_stderr(), is_json, lost: 0, torn: false }
    }

    /// Whether all of the line was written.
    fn write_line(&mut self, line: &[u8]) -> bool {
        if self.torn && self.put(b"\n").is_err() {
            return false;
        }
        self.torn = false;
        let mut left = line;
        while !left.is_empty() {
            match self.put(left) {
                Ok(written) if written > 0 => left = &left[written..],
                _ => {
                    self.torn = left.len() < line.len();
                    return false;
                }
            }
        }
        true
    }

    fn put(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        rustix::io::retry_on_intr(|| match self.kind {
            Kind::Ready => rustix::io::write(stderr(), bytes),
            Kind::Socket => send(stderr(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Kind::Shared => {
                let mut fds = [PollFd::from_borrowed_fd(stderr(), PollFlags::OUT)];
                match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
                    0 => Err(rustix::io::Errno::AGAIN),
                    // A pipe that is writable has room for so much (pipe(7)).
                    _ => rustix::io::write(stderr(), &bytes[..bytes.len().min(libc::PIPE_BUF)]),
                }
            }
        })
    }

    fn count_of_lost(&self) -> String {
        let (now, lost) = (humantime::format_rfc3339_micros(SystemTime::now()), self.lost);
        let message = format!("{lost} lines of the log were lost");
        match self.is_json {
            true => {
                format!("{{\"timestamp\":\"{now}\",\"level\":\"WARN\",\"message\":\"{message}\",\"lost\":{lost}}}\n")
            }
            false => format!("{now}  WARN {message}\n"),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lost > 0 && self.write_line(self.count_of_lost().as_bytes()) {
            self.lost = 0;
        }
        // Not before its count: a reader would take the gap for silence.
        if self.lost > 0 || !self.write_line(line) {
            self.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes standard error one that can be written to without waiting, where that is possible.
fn take_stderr() -> Kind {
    let kind = fstat(stderr()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match kind {
        Ok(FileType::Socket) => return Kind::Socket,
        Ok(FileType::Fifo) => {}
        Ok(FileType::CharacterDevice) if io::stderr().is_terminal() => {}
        _ => return Kind::Ready,
    }
    if fcntl_getfl(stderr()).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK)) {
        return Kind::Ready;
    }
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match open("/proc/self/fd/2", flags, Mode::empty()).and_then(|own| dup2_stderr(&own)) {
        Ok(()) => Kind::Ready,
        Err(_) => Kind::Shared,
    }
}
