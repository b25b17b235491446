//! `faber image inspect`: all of one image.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use comfy_table::{Table, presets};

use super::store::{StoreArgs, mib};
use crate::config::Size;
use crate::image::{Catalog, Image, Language, Root, Store, User, sbom};
use crate::task::{ImageName, ResourceLimits};

#[derive(Debug, Args)]
pub struct InspectArgs {
    #[arg(value_name = "NAME")]
    name: String,
    /// Print what it is made of, each package with version and digest, as CycloneDX JSON
    #[arg(long, conflicts_with = "json")]
    sbom: bool,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let store = Store::new(&args.store.config()?.data_dir);
    let image = Catalog::new(store.clone()).image(&ImageName::parse(&args.name)?)?;
    let text = match () {
        () if args.sbom => {
            let Root::Tree(_) = image.root else {
                anyhow::bail!("{} is the machine's own files: its package manager knows them", image.name);
            };
            sbom(&image, &store.lock(&image.digest)?)?
        }
        () if args.store.json => serde_json::to_string_pretty(&image)?,
        () => table(&image),
    };
    super::print(&text)
}

fn table(image: &Image) -> String {
    let Image { name, description, digest, path, env, workdir, user, limits: defaults, language, prepare, root } =
        image;
    let lines = |lines: Vec<String>| lines.join("\n");
    let pairs = |pairs: &std::collections::BTreeMap<String, String>, between: &str| {
        lines(pairs.iter().map(|(name, value)| format!("{name}{between}{value}")).collect())
    };
    let mut rows = vec![
        ("name", name.to_string()),
        ("description", description.clone()),
        ("digest", digest.to_string()),
        ("path", path.clone()),
        ("env", pairs(env, "=")),
        ("workdir", workdir.clone().unwrap_or_default()),
        ("user", if *user == User::FABER { String::new() } else { format!("{}:{}", user.uid, user.gid) }),
        ("limits", limits(defaults)),
    ];
    if let Some(Language { file, compile, run }) = language {
        rows.extend([("file", file.clone()), ("compile", compile.join(" ")), ("run", run.join(" "))]);
    }
    rows.extend(prepare.as_ref().map(|prepare| ("prepared", prepare.run.join(" "))));
    if let Root::Tree(contents) = root {
        rows.push(("size", mib(contents.size)));
        rows.push(("versions", pairs(&contents.versions, " ")));
        rows.push(("packages", format!("{} of Debian's; --sbom lists all", contents.packages.len())));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([name, value.as_str()]);
    }
    table.to_string()
}

/// What tasks of an image get in place of the server's defaults, a line each.
fn limits(limits: &ResourceLimits) -> String {
    let size = |bytes: u64| Size(bytes).to_string();
    let span = |nanos: u64| humantime::format_duration(Duration::from_nanos(nanos)).to_string();
    let number = |number: u64| number.to_string();
    let ResourceLimits { memory_limit, cpu_time_limit, wall_time_limit, .. } = limits;
    let all = [
        ("memory", memory_limit.map(size)),
        ("cpu_time", cpu_time_limit.map(span)),
        ("wall_time", wall_time_limit.map(span)),
        ("processes", limits.max_processes.map(number)),
        ("file_descriptors", limits.max_file_descriptors.map(number)),
        ("output", limits.max_output_size.map(size)),
    ];
    let set = all.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?)));
    set.collect::<Vec<_>>().join("\n")
}
