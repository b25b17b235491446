//! Two builds side by side: what changed beyond the noise.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::Run;
use crate::common::support::Server;
use crate::common::{Client, Percentiles, SETTINGS, ms};
use crate::load::saturate;
use crate::server::cpu_time;

/// A figure of both builds, round by round.
struct Figure {
    name: &'static str,
    unit: &'static str,
    rounds: Vec<[f64; 2]>,
}

/// Measures this build and the one at `other` in turns, round by round, and tells where they differ.
pub fn compare(run: &Run, other: &Path) {
    let other = std::path::absolute(other).unwrap();
    // The program to start is an argument of the shell that starts it.
    let instead = format!("set -- '{}' \"${{@:2}}\"", other.display());
    let servers = [instead.as_str(), ""].map(|instead| Server::start_after(instead, &["--open-mode"], &SETTINGS));
    let clients = servers.each_ref().map(|server| Client::new(server, &json!({ "command": "true" })));
    let rounds = run.args.times(12, 2);
    let figure = |name, unit| Figure { name, unit, rounds: Vec::new() };
    let mut figures = [
        figure("`true`, one client, p50", "ms"),
        figure("`true`, one client, p99", "ms"),
        figure("`true`, 8 clients, requests", "/s"),
        figure("`true`, 8 clients, p99", "ms"),
        figure("CPU time of a request", "ms"),
    ];
    run.bar.set_length(rounds as u64);
    for round in 0..=rounds {
        run.begins("rounds");
        let mut alone: [Vec<Duration>; 2] = Default::default();
        for _ in 0..200 {
            for (client, took) in clients.iter().zip(&mut alone) {
                took.push(client.ask());
            }
        }
        let alone = alone.map(|mut took| Percentiles::of(&mut took));
        let many = servers.each_ref().map(|server| {
            let before = cpu_time(server);
            let load = saturate(server, 8, 2);
            let cpu = ms(cpu_time(server) - before) / (load.per_second * 2.0);
            (load, cpu)
        });
        // The first warms up.
        if round > 0 {
            figures[0].rounds.push(alone.each_ref().map(|p| ms(p.p50)));
            figures[1].rounds.push(alone.each_ref().map(|p| ms(p.p99)));
            figures[2].rounds.push(many.each_ref().map(|(load, _)| load.per_second));
            figures[3].rounds.push(many.each_ref().map(|(load, _)| load.p99));
            figures[4].rounds.push(many.each_ref().map(|(_, cpu)| *cpu));
        }
    }
    run.bar.finish_and_clear();
    println!("{:32} {:>10} {:>10} {:>8}", "", "base", "this", "");
    for figure in &figures {
        figure.tell();
    }
}

impl Figure {
    /// The medians, and whether the rounds agree on who is ahead, one in ten excepted: 11 of 12 coins fall alike once in 150
    /// times, 6 of 6 once in 30.
    fn tell(&self) {
        let median = |which: usize| {
            let mut values: Vec<f64> = self.rounds.iter().map(|round| round[which]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (base, this) = (median(0), median(1));
        let more = self.rounds.iter().filter(|[base, this]| this > base).count();
        let agree = more.max(self.rounds.len() - more);
        let change = (this / base - 1.0) * 100.0;
        let verdict =
            if agree + self.rounds.len() / 10 >= self.rounds.len() { "beyond the noise" } else { "within the noise" };
        println!(
            "{:32} {base:>7.2} {:2} {this:>7.2} {:2} {change:>+6.1} %  {verdict} ({agree} of {} rounds)",
            self.name,
            self.unit,
            self.unit,
            self.rounds.len()
        );
    }
}
