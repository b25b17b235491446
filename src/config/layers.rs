//! How a configuration comes together, and where each value came from.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, DEFAULTS, default_data_dir};

/// Where a faber.toml is looked for when none is named; the first that exists is read.
const PLACES: [&str; 2] = ["faber.toml", "/etc/faber/faber.toml"];
const PREFIX: &str = "FABER_";

/// What the commands that ask a server read of the environment, and is no configuration: which server, and with which key.
pub const SERVER: &str = "FABER_URL";
pub const API_KEY: &str = "FABER_API_KEY";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File(PathBuf),
    Environment(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not TOML")]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("unknown key {key} ({origin}); `faber config` lists the known ones")]
    Unknown { key: String, origin: Origin },
    #[error("{key} ({origin}): {message}")]
    Value { key: String, origin: Origin, message: String },
    #[error("{key}: {message}")]
    Refused { key: String, message: String },
    #[error(
        "no API key is configured, so nobody could be served: make one with `faber key new` and put its hash into \
         faber.toml, or allow everybody with --open-mode"
    )]
    NobodyMay,
}

/// A value given on the command line.
#[derive(Debug, Clone)]
pub struct Flag {
    pub key: &'static str,
    pub flag: &'static str,
    pub value: Value,
}

/// A configuration with the origin of every key in it.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    values: Table,
    origins: BTreeMap<String, Origin>,
}

impl Config {
    /// The defaults alone.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn built_in() -> Self {
        Layers::defaults().finish().expect("the defaults are valid: tested").config
    }
}

impl Loaded {
    /// Reads every layer: `file` or else the usual places, this process's environment, `flags`.
    pub fn read(file: Option<&Path>, flags: Vec<Flag>) -> Result<Self, ConfigError> {
        let found = file.or_else(|| PLACES.into_iter().map(Path::new).find(|path| path.exists()));
        let text = found.map(|path| Ok((path.to_owned(), read(path)?))).transpose()?;
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
            .filter(|(name, _)| name.starts_with(PREFIX) && ![SERVER, API_KEY].contains(&name.as_str()));
        Self::merge(text, environment.collect(), flags)
    }

    fn merge(
        file: Option<(PathBuf, String)>,
        environment: Vec<(String, String)>,
        flags: Vec<Flag>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::defaults();
        if let Some((path, text)) = file {
            let table =
                text.parse().map_err(|source| ConfigError::Toml { path: path.clone(), source: Box::new(source) })?;
            layers.overlay("", table, &Origin::File(path))?;
        }
        for (name, value) in environment {
            let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
            layers.set_text(&key, &value, Origin::Environment(name))?;
        }
        for Flag { key, flag, value } in flags {
            layers.set(key, value, Origin::Flag(flag))?;
        }
        layers.finish()
    }

    /// Every key with its value, in TOML's form, and its origin; in the order of their names.
    pub fn lines(&self) -> impl Iterator<Item = (&str, String, &Origin)> {
        self.origins.iter().map(|(key, origin)| {
            let value = find(&self.values, key).map(ToString::to_string).unwrap_or_default();
            (key.as_str(), value, origin)
        })
    }
}

struct Layers {
    values: Table,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    fn defaults() -> Self {
        let mut values: Table = DEFAULTS.parse().expect("the defaults are TOML: tested");
        values.insert("data_dir".into(), Value::String(default_data_dir().display().to_string()));
        let mut origins = BTreeMap::new();
        each_leaf("", &values, &mut |key| {
            origins.insert(key, Origin::Default);
        });
        Self { values, origins }
    }

    fn overlay(&mut self, prefix: &str, table: Table, origin: &Origin) -> Result<(), ConfigError> {
        for (name, value) in table {
            let key = join(prefix, &name);
            match value {
                Value::Table(inner) if !self.origins.contains_key(&key) => self.overlay(&key, inner, origin)?,
                value => self.set(&key, value, origin.clone())?,
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: Value, origin: Origin) -> Result<(), ConfigError> {
        let slot = self.slot(key, &origin)?;
        *slot = value;
        self.origins.insert(key.to_owned(), origin);
        Ok(())
    }

    /// The same from text: of the type the default has; a list as TOML writes it, or separated by commas.
    fn set_text(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let bad =
            |message: &str| ConfigError::Value { key: key.into(), origin: origin.clone(), message: message.into() };
        let value = match self.slot(key, &origin)? {
            Value::Boolean(_) => Value::Boolean(text.parse().map_err(|_| bad("expected true or false"))?),
            Value::Integer(_) => Value::Integer(text.parse().map_err(|_| bad("expected a number"))?),
            Value::Array(_) if text.trim_start().starts_with('[') => {
                let table: Table =
                    format!("list = {text}").parse().map_err(|_| bad("expected a list, as TOML has it"))?;
                table["list"].clone()
            }
            Value::Array(_) => Value::Array(text.split(',').map(|item| Value::String(item.trim().into())).collect()),
            _ => Value::String(text.to_owned()),
        };
        self.set(key, value, origin)
    }

    fn slot(&mut self, key: &str, origin: &Origin) -> Result<&mut Value, ConfigError> {
        let unknown = || ConfigError::Unknown { key: key.to_owned(), origin: origin.clone() };
        if !self.origins.contains_key(key) {
            return Err(unknown());
        }
        let (sections, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &mut self.values;
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            table = table.get_mut(section).and_then(Value::as_table_mut).ok_or_else(unknown)?;
        }
        table.get_mut(name).ok_or_else(unknown)
    }

    fn finish(self) -> Result<Loaded, ConfigError> {
        let Self { values, origins } = self;
        let config: Config = serde_path_to_error::deserialize(values.clone()).map_err(|error| {
            let path = error.path().to_string();
            // What is inside of a list belongs to the list's key.
            let origin = origins.iter().find(|(key, _)| path.starts_with(*key)).map(|(_, origin)| origin.clone());
            let message = error.inner().message().trim().to_owned();
            ConfigError::Value { key: path, origin: origin.unwrap_or(Origin::Default), message }
        })?;
        config.check()?;
        Ok(Loaded { config, values, origins })
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

fn each_leaf(prefix: &str, table: &Table, visit: &mut impl FnMut(String)) {
    for (name, value) in table {
        match value {
            Value::Table(inner) => each_leaf(&join(prefix, name), inner, visit),
            _ => visit(join(prefix, name)),
        }
    }
}

fn find<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, rest)) => find(table.get(section)?.as_table()?, rest),
        None => table.get(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(file: &str, environment: &[(&str, &str)], flags: Vec<Flag>) -> Result<Loaded, ConfigError> {
        let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Loaded::merge(Some(("f.toml".into(), file.into())), environment, flags)
    }

    fn origin(loaded: &Loaded, key: &str) -> String {
        loaded.origins[key].to_string()
    }

    #[track_caller]
    fn refused(file: &str, environment: &[(&str, &str)], expected: &str) {
        let error = merge(file, environment, Vec::new()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn later_layers_win_and_say_so() {
        let flag = Flag { key: "auth.open_mode", flag: "--open-mode", value: Value::Boolean(true) };
        let file = "[server]\nlisten = '127.0.0.1:1'\nbody_limit = '1M'\n[limits.max]\nmemory = '1G'";
        let environment = [("FABER_SERVER__LISTEN", "127.0.0.1:2"), ("FABER_RATE_LIMIT__ENABLED", "false")];
        let loaded = merge(file, &environment, vec![flag]).unwrap();
        assert_eq!(loaded.config.server.listen.port(), 2);
        assert_eq!(loaded.config.server.body_limit.0, 1 << 20);
        assert!(loaded.config.auth.open_mode && !loaded.config.rate_limit.enabled);
        assert_eq!(origin(&loaded, "server.listen"), "environment variable FABER_SERVER__LISTEN");
        assert_eq!(origin(&loaded, "limits.max.memory"), "f.toml");
        assert_eq!(origin(&loaded, "auth.open_mode"), "--open-mode");
        assert_eq!(origin(&loaded, "log.level"), "default");
    }

    #[test]
    fn lists_come_from_the_environment_too() {
        let environment = [("FABER_SERVER__TRUSTED_PROXIES", "10.0.0.0/8, ::1")];
        assert_eq!(merge("", &environment, Vec::new()).unwrap().config.server.trusted_proxies.len(), 2);
        let keys = format!("[{{ name = 'a', hash = 'sha256:{}' }}]", "0".repeat(64));
        assert_eq!(merge("", &[("FABER_AUTH__KEYS", &keys)], Vec::new()).unwrap().config.auth.keys[0].name, "a");
    }

    #[test]
    fn what_is_not_known_or_not_a_value_is_refused_by_name() {
        refused("[server]\nport = 1", &[], "unknown key server.port (f.toml)");
        refused("serve = 1", &[], "unknown key serve (f.toml)");
        refused(
            "",
            &[("FABER_SERVER_LISTEN", "x")],
            "unknown key server_listen (environment variable FABER_SERVER_LISTEN)",
        );
        refused("", &[("FABER_RATE_LIMIT__ENABLED", "no")], "expected true or false");
        refused("[server]\nbody_limit = 'much'", &[], "server.body_limit (f.toml): expected a size");
        refused("[server]\nlisten = 'here'", &[], "server.listen (f.toml)");
        refused("[server]\nlisten = ", &[], "f.toml is not TOML");
        refused("[limits.default]\nwall_time = 5", &[], "limits.default.wall_time (f.toml): expected a time span");
        refused("[auth]\nkeys = [{ name = 'a', hash = 'secret' }]", &[], "expected sha256:");
        refused("[execution]\nmemory_budget = '1M'", &[], "execution.memory_budget: expected at least 4MiB");
        refused("[limits.max]\noutput = '129M'", &[], "limits.max.output: expected at most 128MiB");
        refused(
            "[server]\nbuffers = '1M'",
            &[],
            "server.buffers: expected at least four times server.body_limit, which is 10MiB",
        );
        refused("[limits.max]\nprocesses = 0", &[], "limits.max.processes: expected at least 1");
        refused("[rate_limit]\nper_ip_per_minute = 0", &[], "rate_limit.per_ip_per_minute");
        refused("[log]\nformat = 'xml'", &[], "log.format (f.toml)");
    }

    #[test]
    fn the_example_file_shows_every_key_with_its_default() {
        let example = include_str!("../../faber.toml");
        let uncommented: Vec<&str> = example
            .lines()
            .filter_map(|line| line.strip_prefix("#").filter(|l| !l.starts_with(' ')).or(Some(line)))
            .collect();
        let mut shown: Table = uncommented.join("\n").parse().unwrap();
        shown.remove("data_dir");
        let defaults: Table = DEFAULTS.parse().unwrap();
        assert_eq!(shown, {
            let mut defaults = defaults;
            defaults.remove("data_dir");
            defaults
        });
        // As it stands, it changes nothing.
        let loaded = merge(example, &[], Vec::new()).unwrap();
        assert_eq!(loaded.config, merge("", &[], Vec::new()).unwrap().config);
    }
}
