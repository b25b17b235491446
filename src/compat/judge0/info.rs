//! What it tells of itself.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::outcome::STATUSES;
use super::submission::{Limits, Terms};
use super::told::{Told, time};
use super::{BATCH, VERSION};
use crate::callbacks::PATIENCE;
use crate::task::Bytes;

/// As `GET /statuses` tells them.
pub fn statuses() -> Value {
    STATUSES.iter().zip(1..).map(|(description, id)| json!({ "id": id, "description": description })).collect()
}

/// Clients ask whose version this is, and some take no other.
pub fn about() -> Value {
    let faber = concat!("Faber ", env!("CARGO_PKG_VERSION"));
    json!({ "version": VERSION, "homepage": "", "source_code": "", "maintainer": faber })
}

/// `queue` is how many submissions are kept of one client, `tries` how often a callback is tried.
pub fn config_info(terms: &Terms<'_>, queue: u32, tries: u32) -> Value {
    let Limits {
        number_of_runs,
        cpu_time_limit,
        cpu_extra_time,
        wall_time_limit,
        memory_limit,
        stack_limit,
        max_processes_and_or_threads,
        max_file_size,
    } = terms.defaults();
    let most = terms.most();
    let calls_back = !terms.hosts.0.is_empty();
    json!({
        "maintenance_mode": false,
        "enable_wait_result": true,
        "enable_compiler_options": true,
        "allowed_languages_for_compile_options": [],
        "enable_command_line_arguments": true,
        "enable_submission_delete": true,
        "enable_callbacks": calls_back,
        "callbacks_max_tries": if calls_back { tries } else { 0 },
        "callbacks_timeout": if calls_back { PATIENCE.as_secs_f64() } else { 0.0 },
        "enable_additional_files": true,
        "max_queue_size": queue,
        "cpu_time_limit": cpu_time_limit,
        "max_cpu_time_limit": most.cpu_time_limit,
        "cpu_extra_time": cpu_extra_time,
        "max_cpu_extra_time": most.cpu_extra_time,
        "wall_time_limit": wall_time_limit,
        "max_wall_time_limit": most.wall_time_limit,
        "memory_limit": memory_limit,
        "max_memory_limit": most.memory_limit,
        "stack_limit": stack_limit,
        "max_stack_limit": most.stack_limit,
        "max_processes_and_or_threads": max_processes_and_or_threads,
        "max_max_processes_and_or_threads": most.max_processes_and_or_threads,
        "enable_per_process_and_thread_time_limit": false,
        "allow_enable_per_process_and_thread_time_limit": false,
        "enable_per_process_and_thread_memory_limit": false,
        "allow_enable_per_process_and_thread_memory_limit": false,
        "max_file_size": max_file_size,
        "max_max_file_size": most.max_file_size,
        "number_of_runs": number_of_runs,
        "max_number_of_runs": most.number_of_runs,
        "redirect_stderr_to_stdout": false,
        "max_extract_size": terms.archives.bytes >> 10,
        "enable_batched_submissions": true,
        "max_submission_batch_size": BATCH,
        "submission_cache_duration": 0.0,
        "use_docs_as_homepage": false,
        "allow_enable_network": false,
        "enable_network": false,
        "disable_implicit_base64_encoding": true,
    })
}

/// Submissions, counted.
#[derive(Default)]
pub struct Statistics {
    total: u64,
    bytes: u64,
    languages: BTreeMap<(u32, String), u64>,
    statuses: BTreeMap<(usize, &'static str), u64>,
    /// By their day, counted from 1970.
    days: BTreeMap<u64, u64>,
}

const DAY: u64 = 24 * 60 * 60 * 1000;

impl Statistics {
    /// One that was made then and takes so many bytes.
    pub fn add(&mut self, told: &Told, created: u64, bytes: u64) {
        self.total += 1;
        self.bytes += bytes;
        let (id, name) = told.language();
        *self.languages.entry((id, name.to_owned())).or_default() += 1;
        *self.statuses.entry(told.status()).or_default() += 1;
        *self.days.entry(created / DAY).or_default() += 1;
    }

    /// As `GET /statistics` tells them; they are counted each time.
    pub fn json(&self, now: u64) -> Value {
        let languages = self.languages.iter().map(|((id, name), count)| (*count, "language", json!(id), name.as_str()));
        let statuses = self.statuses.iter().map(|((id, name), count)| (*count, "status", json!(id), *name));
        let [languages, statuses] = [most_first(languages.collect()), most_first(statuses.collect())];
        let today = now / DAY;
        let count = |day: u64| self.days.get(&day).copied().unwrap_or_default();
        let date = |day: u64| time(day * DAY).chars().take(10).collect::<String>();
        let days: serde_json::Map<String, Value> =
            (1..=30).map(|back| today - back).map(|day| (date(day), count(day).into())).collect();
        json!({
            "created_at": time(now),
            "cached_until": time(now),
            "submissions": { "total": self.total, "today": count(today), "last_30_days": days },
            "languages": languages,
            "statuses": statuses,
            "database": { "size_pretty": Bytes(self.bytes).to_string(), "size_in_bytes": self.bytes },
        })
    }
}

fn most_first(mut counts: Vec<(u64, &str, Value, &str)>) -> Value {
    counts.sort_by_key(|(count, ..)| std::cmp::Reverse(*count));
    let one =
        |(count, what, id, name): (u64, &str, Value, &str)| json!({ what: { "id": id, "name": name }, "count": count });
    counts.into_iter().map(one).collect()
}
