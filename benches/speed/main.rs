//! What a task costs over HTTP, beside a bare spawn of the same command and beside other ways to isolate it, all in turns in
//! one run: whatever disturbs the machine disturbs all of them.

#[path = "../common/mod.rs"]
mod common;

mod breakdown;
mod cases;
mod compare;
mod curve;
mod floor;
mod images;
mod live;
mod load;
mod others;
mod plot;
mod server;
mod transfer;
mod ways;

use std::fs;

use clap::Parser;
use common::support::Server;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "Measures Faber over HTTP, against bare spawns and other sandboxes in the same run")]
pub struct Args {
    /// A smaller number of everything: less than a minute
    #[arg(long)]
    quick: bool,
    /// Latency against load of every way, drawn to this file, and nothing else
    #[arg(long, value_name = "SVG")]
    load: Option<std::path::PathBuf>,
    /// Another faber, to be compared with this one, and nothing else
    #[arg(long, value_name = "BINARY")]
    against: Option<std::path::PathBuf>,
    /// What cargo bench passes on
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    /// How often: as said, or a share of it in a hurry.
    fn times(&self, times: usize, share: usize) -> usize {
        if self.quick { times / share } else { times }
    }
}

/// What is measured, and what there is to be told of it.
pub struct Run {
    pub args: Args,
    pub bar: ProgressBar,
    pub raw: serde_json::Map<String, Value>,
    /// A bare spawn of `true`, the unit of everything. Milliseconds.
    pub bare: f64,
    pub targets: Vec<Target>,
    /// Why some sandboxes are not measured.
    pub refusals_told: bool,
    pub floor: std::rc::Rc<floor::Floor>,
}

/// One of the aims of this project: what was measured, what must be, what would be good.
pub struct Target {
    what: &'static str,
    found: f64,
    must: f64,
    aim: f64,
    unit: &'static str,
    /// Whether more is better.
    more: bool,
}

impl Run {
    /// A target of at most these values.
    pub fn at_most(&mut self, what: &'static str, found: f64, must: f64, aim: f64, unit: &'static str) {
        self.targets.push(Target { what, found, must, aim, unit, more: false });
    }

    pub fn at_least(&mut self, what: &'static str, found: f64, must: f64, aim: f64, unit: &'static str) {
        self.targets.push(Target { what, found, must, aim, unit, more: true });
    }

    /// Tells without disturbing the progress bar.
    pub fn tell(&self, line: impl AsRef<str>) {
        self.bar.suspend(|| println!("{}", line.as_ref()));
    }

    pub fn begins(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        self.bar.inc(1);
    }
}

fn main() {
    let args = Args::parse();
    let floor = floor::Floor::start().into();
    let floors = if args.load.is_some() { (0..3).map(|_| floor::Floor::start()).collect() } else { Vec::new() };
    let bar = ProgressBar::new(25)
        .with_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}, {elapsed}").unwrap());
    let raw = serde_json::Map::new();
    let mut run = Run { args, bar, raw, bare: f64::NAN, targets: Vec::new(), refusals_told: false, floor };
    run.tell(common::machine());
    if let Some(other) = run.args.against.clone() {
        return compare::compare(&run, &other);
    }
    let server = Server::start(&["--open-mode"], &common::SETTINGS);
    if let Some(path) = run.args.load.clone() {
        curve::all(&mut run, &server, floors, &path);
        let told = json!({ "machine": common::machine(), "load": run.raw["load"] });
        run.bar.finish_and_clear();
        return fs::write(common::out().join("load.json"), told.to_string()).unwrap();
    }
    cases::all(&mut run, &server);
    breakdown::breakdown(&mut run, &server);
    transfer::all(&mut run, &server);
    live::all(&mut run, &server);
    load::all(&mut run, &server);
    server::all(&mut run, &server);
    drop(server);
    images::all(&mut run);
    others::all(&mut run);
    server::start(&mut run);
    run.bar.finish_and_clear();
    tell_targets(&run);
    save(&run);
}

fn tell_targets(run: &Run) {
    println!("\n{:48} {:>10} {:>12} {:>12}", "against what it must and should be", "", "must", "aim");
    for Target { what, found, must, aim, unit, more } in &run.targets {
        let holds = |bound: f64| if *more { *found >= bound } else { *found <= bound };
        let verdict = if holds(*aim) {
            "as good as it should be"
        } else if holds(*must) {
            "as good as it must be"
        } else {
            "MISSED"
        };
        let sign = if *more { "≥" } else { "≤" };
        println!("{what:48} {found:>7.2} {unit:3} {sign} {must:>7.2} {unit:3} {sign} {aim:>6.2} {unit:3}  {verdict}");
    }
}

fn save(run: &Run) {
    let out = common::out();
    let target = |t: &Target| json!({ "what": t.what, "found": t.found, "must": t.must, "aim": t.aim, "unit": t.unit });
    let targets: Vec<Value> = run.targets.iter().map(target).collect();
    let all = json!({ "machine": common::machine(), "cases": run.raw, "targets": targets });
    let path = out.join("speed.json");
    fs::write(&path, serde_json::to_string_pretty(&all).unwrap()).unwrap();
    let plot = out.join("speed.svg");
    plot::latencies(&run.raw, &plot);
    println!("\nraw data: {}, plot: {}", common::shown(&path), common::shown(&plot));
}
