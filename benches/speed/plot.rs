//! The picture: the p50 and p99 of each way to run a command.

use std::path::Path;

use plotters::prelude::*;
use serde_json::{Map, Value};

/// Cases with a place in the picture: those that more than one sandbox ran.
const CASES: [&str; 2] = ["true, beside others", "python3 -c 'print(1)'"];
const COLOUR: RGBColor = RGBColor(0x2f, 0x6f, 0xb0);
const OTHERS: RGBColor = RGBColor(0x9a, 0xa5, 0xb1);

/// Bars from nothing to the p50, with a line to the p99, in milliseconds; written to `path`.
pub fn latencies(cases: &Map<String, Value>, path: &Path) {
    let bars: Vec<(String, f64, f64)> = CASES
        .iter()
        .filter_map(|case| Some((case, cases.get(*case)?.as_object()?)))
        .flat_map(|(case, ways)| {
            ways.iter().map(move |(way, told)| {
                let number = |key: &str| told[key].as_f64().unwrap_or(0.0);
                (format!("{way}: {}", case.trim_end_matches(", beside others")), number("p50"), number("p99"))
            })
        })
        .collect();
    let most = bars.iter().map(|(_, _, p99)| *p99).fold(1.0, f64::max);
    let (width, row, left, top) = (900, 34, 320, 60);
    let height = top + row * bars.len() as i32 + 20;
    let root = SVGBackend::new(path, (width as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    root.draw(&Text::new("From a command to its end, ms: p50 (bar) and p99 (line)", (20, 18), text(20))).unwrap();
    let scale = f64::from(width - left - 90) / most;
    for (index, (name, p50, p99)) in bars.iter().enumerate() {
        let y = top + row * index as i32;
        let at = |value: f64| left + (value * scale) as i32;
        let colour = if name.starts_with("Faber") { COLOUR } else { OTHERS };
        root.draw(&Text::new(name.as_str(), (20, y + 4), text(15))).unwrap();
        root.draw(&Rectangle::new([(left, y), (at(*p50), y + row - 12)], colour.filled())).unwrap();
        let middle = y + (row - 12) / 2;
        root.draw(&PathElement::new([(at(*p50), middle), (at(*p99), middle)], colour.stroke_width(2))).unwrap();
        root.draw(&Text::new(format!("{p50:.1} / {p99:.1}"), (at(*p99) + 8, y + 4), text(15))).unwrap();
    }
    root.present().unwrap();
}
