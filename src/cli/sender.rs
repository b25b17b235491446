//! `faber sender`: the process that sends callbacks, without privileges and without files. It ends when the front is gone.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::Context;

use crate::callbacks::{Prepared, Setup};
use crate::frame;
use crate::sandbox::confine;

pub fn run() -> anyhow::Result<ExitCode> {
    crate::keeper::ignore_signals()?;
    let socket = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?);
    let Some(setup) = frame::receive::<Setup>(&socket).context("hear from the keeper")? else {
        anyhow::bail!("the sender is started by `faber serve`")
    };
    // Before anything else: until here there is one thread, and nothing from the network was read.
    super::front::give_up_privileges(setup.id).context("give up privileges")?;
    let prepared = Prepared::new(&setup)?;
    confine::confine_sender().context("confine this process")?;
    prepared.serve(socket)?;
    Ok(ExitCode::SUCCESS)
}
