//! Latency against load: the same command by more and more clients at once, in every way there is.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use plotters::prelude::*;
use serde_json::{Value, json};

use crate::Run;
use crate::common::support::Server;
use crate::common::{Client, Percentiles, ms};
use crate::floor::Floor;
use crate::ways::{self, Job, Way};

const MOST: usize = 64;
const LOADS: [usize; 7] = [1, 2, 4, 8, 16, 32, MOST];
/// Clients, p50 in milliseconds, runs a second.
type Curve = Vec<(usize, f64, f64)>;
/// How long each load lasts.
const LASTS: Duration = Duration::from_secs(4);

/// Measures all ways under all loads, and draws them to `path`. Of the floor, which starts before there are threads, there are three: for one
/// client, and for two.
pub fn all(run: &mut Run, server: &Server, floors: Vec<Floor>, path: &Path) {
    let job = Job { name: "true", command: vec!["true"], files: vec![] };
    let floors = Mutex::new(floors);
    let task = job.task();
    let faber = |_: usize| ways::faber(Client::new(server, &task));
    let bare = |_: usize| ways::bare(&job);
    let floor = |_: usize| -> Box<dyn Way> { Box::new(floors.lock().unwrap().pop().expect("one for each client")) };
    type Make<'a> = &'a (dyn Fn(usize) -> Box<dyn Way> + Sync);
    let mut all: Vec<(String, Curve)> = Vec::new();
    let mut measure = |run: &Run, name: &str, make: Make<'_>| {
        let mut curve = Vec::new();
        for clients in LOADS {
            run.begins(&format!("{name}, {clients} clients"));
            let (mut took, lasted) = load(clients, make);
            let p50 = ms(Percentiles::of(&mut took).p50);
            curve.push((clients, p50, took.len() as f64 / lasted.as_secs_f64()));
        }
        let told: Vec<String> = curve.iter().map(|(n, p50, rate)| format!("{n}: {p50:.1} ms, {rate:.0}/s")).collect();
        run.tell(format!("{name}: {}", told.join("; ")));
        all.push((name.to_owned(), curve));
    };
    measure(run, "bare spawn", &bare);
    measure(run, "Faber, over HTTP", &faber);
    // Each is asked through a socket of its own.
    let one_by_one = |clients: usize| {
        let (mut took, lasted) = load(clients, &floor);
        (clients, ms(Percentiles::of(&mut took).p50), took.len() as f64 / lasted.as_secs_f64())
    };
    let curve = vec![one_by_one(1), one_by_one(2)];
    for way in ways::others(&job).0.iter().map(|way| way.name().to_owned()).collect::<Vec<_>>() {
        let other = |_: usize| {
            let mut found = ways::others(&job).0.into_iter().filter(|other| other.name() == way);
            found.next().expect("it ran before")
        };
        measure(run, &way, &other);
    }
    all.push(("floor".to_owned(), curve));
    let raw: Vec<Value> = all.iter().map(|(name, curve)| json!({ "way": name, "clients_p50ms_rate": curve })).collect();
    run.raw.insert("load".into(), json!(raw));
    draw(&all, path);
}

/// Every client asks as fast as it is answered.
fn load(clients: usize, make: &(dyn Fn(usize) -> Box<dyn Way> + Sync)) -> (Vec<Duration>, Duration) {
    let all = Mutex::new(Vec::new());
    let ready = std::sync::Barrier::new(clients + 1);
    let mut started = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (all, ready) = (&all, &ready);
            scope.spawn(move || {
                let way = make(client);
                way.once();
                ready.wait();
                let until = Instant::now() + LASTS;
                let mut own = Vec::new();
                while Instant::now() < until {
                    own.push(way.once().wall);
                }
                all.lock().unwrap().append(&mut own);
            });
        }
        ready.wait();
        started = Instant::now();
    });
    let lasted = started.elapsed();
    (all.into_inner().unwrap(), lasted)
}

fn draw(all: &[(String, Curve)], path: &Path) {
    const COLOURS: [RGBColor; 5] = [
        RGBColor(0x55, 0x55, 0x55),
        RGBColor(0x2f, 0x6f, 0xb0),
        RGBColor(0xc0, 0x6a, 0x2b),
        RGBColor(0x7a, 0x4f, 0xa0),
        RGBColor(0x3c, 0x8d, 0x5a),
    ];
    let root = SVGBackend::new(path, (900, 480)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let most = all.iter().flat_map(|(_, curve)| curve).map(|(_, p50, _)| *p50).fold(2.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .margin(20)
        .caption("`true`: p50 in ms against clients at once", ("sans-serif", 20))
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((1f64..MOST as f64).log_scale(), (0.5..most * 1.2).log_scale())
        .unwrap();
    chart.configure_mesh().x_desc("clients").y_desc("ms").draw().unwrap();
    for ((name, curve), colour) in all.iter().zip(COLOURS.iter().cycle()) {
        let points: Vec<(f64, f64)> = curve.iter().map(|(clients, p50, _)| (*clients as f64, *p50)).collect();
        let line = chart.draw_series([PathElement::new(points, colour.stroke_width(2))]).unwrap();
        line.label(name.as_str()).legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().position(SeriesLabelPosition::UpperLeft).border_style(BLACK).draw().unwrap();
    root.present().unwrap();
}
