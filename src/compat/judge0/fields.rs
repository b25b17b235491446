//! The fields of a submission, and what is wrong with them.

use std::io::{Cursor, sink};

use serde_json::{Map, Value};

use super::from_base64;
use super::languages::Here;
use super::submission::{Limits, Refusal, Terms};
use crate::archive;
use crate::callbacks::{HostError, Hosts};
use crate::task::ArchiveFormat;

/// Characters of `compiler_options` and of `command_line_arguments`.
const OPTIONS: usize = 512;

/// The fields of a submission, each read as Rails reads it: a number may come as a string, null is as if it were not there, and what
/// has no name here is passed over.
pub struct Fields {
    fields: Map<String, Value>,
    is_base64: bool,
    pub refusal: Refusal,
}

impl Fields {
    pub fn new(fields: Map<String, Value>, is_base64: bool) -> Self {
        Self { fields, is_base64, refusal: Refusal::default() }
    }

    pub fn refuse(&mut self, name: &str, why: impl Into<String>) {
        self.refusal.0.entry(name.into()).or_default().push(why.into());
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.fields.remove(name)? {
            Value::Null => None,
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            Value::Array(_) | Value::Object(_) => {
                self.refuse(name, "is not a text");
                None
            }
        }
    }

    pub fn content(&mut self, name: &str) -> Option<Vec<u8>> {
        let text = self.text(name)?;
        Some(if self.is_base64 { from_base64(&text) } else { text.into() })
    }

    pub fn language<'a>(&mut self, languages: &'a [Here]) -> Option<&'a Here> {
        let Some(text) = self.text("language_id").filter(|text| !text.trim().is_empty()) else {
            self.refuse("language_id", "can't be blank");
            return None;
        };
        let id = text.trim().parse::<u32>().ok();
        let found = languages.iter().find(|language| Some(language.id) == id);
        if found.is_none() {
            self.refuse(
                "language_id",
                format!("language with id {} doesn't exist", text.chars().take(20).collect::<String>()),
            );
        }
        found
    }

    /// Words for a shell; None of blanks.
    pub fn options(&mut self, name: &str) -> Option<String> {
        let text = self.text(name).filter(|text| !text.trim().is_empty())?;
        if text.chars().count() > OPTIONS {
            self.refuse(name, format!("is too long (maximum is {OPTIONS} characters)"));
        }
        Some(text)
    }

    /// Always base64.
    pub fn archive(&mut self) -> Option<Vec<u8>> {
        let text = self.text("additional_files").filter(|text| !text.trim().is_empty())?;
        Some(from_base64(&text))
    }

    /// The files of a zip.
    pub fn entries(&mut self, zip: Option<&[u8]>, bounds: archive::Bounds) -> Vec<String> {
        let Some(zip) = zip else { return Vec::new() };
        match archive::unpack(ArchiveFormat::Zip, Cursor::new(zip), None, bounds, &mut sink()) {
            Ok(entries) => entries.iter().map(|entry| entry.path.as_str().to_owned()).collect(),
            Err(error) => {
                self.refuse("additional_files", error.to_string());
                Vec::new()
            }
        }
    }

    fn number(&mut self, name: &str, default: f64, least: f64, most: f64) -> f64 {
        let Some(text) = self.text(name).filter(|text| !text.trim().is_empty()) else { return default };
        let Some(number) = text.trim().parse().ok().filter(|number: &f64| number.is_finite()) else {
            self.refuse(name, "is not a number");
            return default;
        };
        if number < least {
            self.refuse(name, format!("must be greater than or equal to {least}"));
        }
        if number > most {
            self.refuse(name, format!("must be less than or equal to {most}"));
        }
        number
    }

    fn whole(&mut self, name: &str, default: u64, least: u64, most: u64) -> u64 {
        self.number(name, default as f64, least as f64, most as f64) as u64
    }

    pub fn limits(&mut self, terms: &Terms<'_>) -> Limits {
        let (default, most) = (terms.defaults(), terms.most());
        Limits {
            number_of_runs: self.whole("number_of_runs", default.number_of_runs, 1, most.number_of_runs),
            cpu_time_limit: self.number("cpu_time_limit", default.cpu_time_limit, 0.0, most.cpu_time_limit),
            cpu_extra_time: self.number("cpu_extra_time", default.cpu_extra_time, 0.0, most.cpu_extra_time),
            wall_time_limit: self.number("wall_time_limit", default.wall_time_limit, 1.0, most.wall_time_limit),
            memory_limit: self.whole("memory_limit", default.memory_limit, 2048, most.memory_limit),
            stack_limit: self.whole("stack_limit", default.stack_limit, 0, most.stack_limit),
            max_processes_and_or_threads: self.whole(
                "max_processes_and_or_threads",
                default.max_processes_and_or_threads,
                1,
                most.max_processes_and_or_threads,
            ),
            max_file_size: self.whole("max_file_size", default.max_file_size, 0, most.max_file_size),
        }
    }

    pub fn flag(&mut self, name: &str) -> bool {
        let text = self.text(name);
        text.is_some_and(|text| !matches!(text.as_str(), "" | "0" | "f" | "F" | "false" | "FALSE" | "off" | "OFF"))
    }

    pub fn callback(&mut self, hosts: &Hosts) -> Option<String> {
        let url = self.text("callback_url").filter(|url| !url.trim().is_empty())?;
        let refusal = match hosts.url(url.trim()) {
            Ok(url) => return Some(url.into()),
            Err(HostError::Off) => "setting callback is not allowed".to_owned(),
            Err(error) => error.to_string(),
        };
        self.refuse("callback_url", refusal);
        None
    }

    /// What is asked for that this server does not do.
    pub fn what_is_not_here(&mut self) {
        for name in ["time", "memory"] {
            let name = format!("enable_per_process_and_thread_{name}_limit");
            if self.flag(&name) {
                self.refuse(&name, "this option cannot be enabled");
            }
        }
        if self.flag("enable_network") {
            self.refuse("enable_network", "enabling network is not allowed");
        }
    }
}
