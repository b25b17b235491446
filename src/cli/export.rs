//! `faber image export`: an image of Faber's for other tools.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::long::{INTERRUPTED, Looker};
use super::store::{StoreArgs, mib};
use crate::image::{ExportError, Exported, Store, Watch, export};
use crate::task::ImageName;

#[derive(Debug, Args)]
#[command(after_help = "\
The archive has one layer, and ENV, WORKDIR and USER as tasks have them. The same
image is the same bytes. Exit status 130 when interrupted: then no file is left.

Example:
  faber image export python python.tar && podman load -i python.tar
  podman run --rm localhost/python python3 -c 'print(1)'")]
pub struct ExportArgs {
    /// The image
    #[arg(value_name = "NAME")]
    name: String,
    /// The OCI archive to write
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn run(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    let (name, store) = (ImageName::parse(&args.name)?, Store::new(&args.store.config_of_owner()?.data_dir));
    let looker = Looker::new(name.as_str())?;
    let watch = Watch { progress: &|step| looker.says(step), stopped: &|| looker.stopped() };
    let done = export(&store, &name, &args.file, &watch);
    looker.bar.finish_and_clear();
    match done {
        Ok(Exported { size, digest }) if args.store.json => {
            super::print(&format!("{{\"size\": {size}, \"digest\": \"{digest}\"}}"))
        }
        Ok(Exported { size, digest }) => {
            super::print(&format!("{}: {}, podman load -i takes it; {digest}", args.file.display(), mib(size)))
        }
        Err(ExportError::Interrupted) => {
            eprintln!("faber: interrupted: nothing was written");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error.into()),
    }
}
