//! What the operator sets: defaults, then faber.toml, then the environment, then flags; later ones win.
//!
//! [`Config`] is typed and checked; how it comes together, and from where, is in [`layers`].

mod layers;
mod values;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use layers::{API_KEY, ConfigError, Flag, Loaded, Origin, SERVER};
pub use values::{Concurrency, Memory, Places, Pressure, Share, Size, Span};

use crate::callbacks;
use crate::task::{Bounds, ClientShare, Groups, ImageName, Limits, MINIMUM, Resources, TransferBounds};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub data_dir: PathBuf,
    pub server: Server,
    pub auth: Auth,
    pub rate_limit: RateLimit,
    pub execution: Execution,
    pub shares: Shares,
    pub limits: LimitsConfig,
    pub outputs: Outputs,
    pub archives: Archives,
    pub blobs: Blobs,
    pub jobs: Jobs,
    pub sessions: Sessions,
    pub cache: Cache,
    pub judge: Judge,
    pub compat: Compat,
    pub mcp: Mcp,
    pub log: Log,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub listen: SocketAddr,
    pub body_limit: Size,
    pub swagger: bool,
    pub trusted_proxies: Vec<Proxy>,
    pub shutdown_grace: Span,
    pub buffers: Memory,
    pub connections_per_ip: std::num::NonZeroU32,
    pub cors_origins: Vec<CorsOrigin>,
}

/// Whose pages may ask from a browser: an origin such as `https://example.com`, or `*` for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CorsOrigin(String);

/// An address, or a network in CIDR form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Proxy(IpNet);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    pub open_mode: bool,
    pub keys: Vec<ApiKey>,
}

/// An API key as it is kept: by name and hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    pub name: String,
    pub hash: KeyHash,
    /// In place of `shares`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub places: Option<Places>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Share>,
}

/// `sha256:` and 64 hexadecimal digits. A fast hash is enough: keys are random, not chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash([u8; 32]);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub enabled: bool,
    pub per_ip_per_minute: std::num::NonZeroU32,
    pub per_key_per_hour: std::num::NonZeroU32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Execution {
    pub default_image: ImageName,
    pub concurrency: Concurrency,
    pub queue_length: u32,
    pub queue_timeout: Span,
    pub memory_budget: Memory,
    pub memory_pressure: Pressure,
    pub cpus: Share,
    pub cgroup: bool,
    pub max_tasks: u32,
    pub prepared: u32,
}

/// What one client's tasks may have at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shares {
    pub places: Places,
    /// Percent are of the memory budget.
    pub memory: Memory,
    pub cpus: Share,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    pub default: LimitValues,
    pub max: LimitValues,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitValues {
    pub memory: Memory,
    pub cpu_time: Span,
    pub wall_time: Span,
    pub processes: u64,
    pub file_descriptors: u64,
    pub output: Size,
    pub workspace: Size,
}

/// What may come out of one task, and pass from task to task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outputs {
    pub count: u32,
    pub each: Size,
    pub total: Size,
    pub inline_limit: Size,
    pub spool: Memory,
}

/// What an archive may hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archives {
    pub entries: u32,
    pub total: Size,
}

/// Bytes by digest, below the data directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blobs {
    pub each: Size,
    pub total: Size,
    pub per_key: Size,
    pub lifetime: Span,
}

/// Requests that are answered later, below the data directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jobs {
    pub count: u32,
    pub total: Size,
    pub per_key: Size,
    pub response: Size,
    pub lifetime: Span,
    /// Where callbacks may go; none: there are no callbacks.
    pub callback_hosts: Vec<callbacks::Host>,
    /// How often one is tried.
    pub callback_attempts: u32,
    /// Who is asked for the addresses of their names.
    pub name_server: callbacks::NameServer,
}

/// Containers that stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sessions {
    pub count: u16,
    pub per_key: u16,
    pub idle_timeout: Span,
    pub max_idle_timeout: Span,
    pub lifetime: Span,
    pub max_lifetime: Span,
}

/// What compilations, and steps that ask for it, leave for the next time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    pub size: Size,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    pub max_cases: u32,
}

/// Other systems' endpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compat {
    pub sandbox_fusion: bool,
    pub piston: bool,
    pub go_judge: bool,
    pub jobe: bool,
    pub librechat: bool,
    pub judge0: bool,
    /// Whether a version of a language that is not here stands for the one that is.
    pub nearest_version: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mcp {
    pub enabled: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    pub level: LogLevel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Pretty,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Bodies and outputs travel between Faber's processes, whose messages end at twice that.
const LARGEST_MESSAGE: Size = Size(128 << 20);

/// The defaults, in the form of a file: what faber.toml shows, every key.
const DEFAULTS: &str = include_str!("defaults.toml");

impl Config {
    /// How many tasks run at once.
    pub fn concurrency(&self) -> usize {
        match self.execution.concurrency {
            Concurrency::Tasks(tasks) => tasks.into(),
            Concurrency::Auto => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Runners: as many run as may, and as many hold a container for what comes next.
    pub fn slots(&self) -> usize {
        self.concurrency() * 2
    }

    /// Bytes: the sum of the running tasks' memory limits.
    pub fn memory_budget(&self) -> u64 {
        self.execution.memory_budget.of(machine_memory())
    }

    /// What the tasks of a key may have at once; without one, of any other client.
    pub fn share(&self, key: Option<&ApiKey>) -> ClientShare {
        let places = key.and_then(|key| key.places).unwrap_or(self.shares.places);
        let memory = key.and_then(|key| key.memory).unwrap_or(self.shares.memory);
        let cpus = match key.and_then(|key| key.cpus).unwrap_or(self.shares.cpus) {
            Share::All => None,
            Share::Of(cpus) => Some(cpus),
        };
        let places = match places {
            Places::All => usize::MAX,
            Places::Tasks(tasks) => tasks.into(),
        };
        ClientShare { places, memory: memory.of(self.memory_budget()), cpus }
    }

    /// Whether some client has a share of the processors, which takes cgroup v2.
    pub fn shares_processors(&self) -> bool {
        std::iter::once(None).chain(self.auth.keys.iter().map(Some)).any(|key| self.share(key).cpus.is_some())
    }

    /// How tasks are held to what they may use.
    pub fn resources(&self) -> Resources {
        let cpus = match self.execution.cpus {
            Share::All => None,
            Share::Of(cpus) => Some(cpus),
        };
        let groups = if self.execution.cgroup { Groups::Used } else { Groups::Unused };
        Resources { groups, cpus, prepared: self.execution.prepared as usize }
    }

    /// Bytes: what all requests together may hold in the front.
    pub fn buffers(&self) -> u64 {
        self.server.buffers.of(machine_memory())
    }

    /// Bytes: what may be on its way from task to task and to the clients.
    pub fn spool(&self) -> u64 {
        self.outputs.spool.of(machine_memory())
    }

    /// What sends callbacks is told, if they may go anywhere; its user is the keeper's to say.
    pub fn sender(&self) -> Option<callbacks::Setup> {
        let Jobs { callback_hosts, name_server, .. } = &self.jobs;
        let hosts: Vec<String> = callback_hosts.iter().map(callbacks::Host::to_string).collect();
        (!hosts.is_empty()).then(|| callbacks::Setup { id: 0, hosts, name_server: name_server.to_string() })
    }

    /// What tasks may ask. Nobody may ask for more memory than all tasks together may have.
    pub fn bounds(&self) -> Bounds {
        let mut max = self.limits.max.limits();
        max.memory = max.memory.min(self.memory_budget());
        let Outputs { count, each, total, .. } = &self.outputs;
        let outputs = TransferBounds { count: *count, each: each.0, total: total.0 };
        Bounds { default: self.limits.default.limits(), max, outputs }
    }

    /// This one with what of `new` may change while it serves: keys, rate limits, shares, what tasks may ask, whose pages may ask,
    /// the log's level. And the keys in which the two differ all the same, which take a restart.
    pub fn renewed(&self, new: &Self) -> (Self, Vec<String>) {
        let mut next = self.clone();
        next.auth = new.auth.clone();
        next.rate_limit = new.rate_limit.clone();
        next.shares = new.shares.clone();
        next.limits = new.limits.clone();
        next.log.level = new.log.level;
        next.server.cors_origins = new.server.cors_origins.clone();
        let tables = |config: &Self| serde_json::to_value(config).unwrap_or_default();
        let (here, there) = (tables(&next), tables(new));
        let mut left = Vec::new();
        for (section, value) in here.as_object().into_iter().flatten() {
            match (value.as_object(), &there[section]) {
                (Some(keys), other) => {
                    let differ = keys.iter().filter(|(key, value)| other[key.as_str()] != **value);
                    left.extend(differ.map(|(key, _)| format!("{section}.{key}")));
                }
                (None, other) if value != other => left.push(section.clone()),
                (None, _) => {}
            }
        }
        (next, left)
    }

    /// Whether anybody may be served at all.
    ///
    /// # Errors
    /// With neither keys nor open mode; the text says what to do.
    pub fn check_auth(&self) -> Result<(), ConfigError> {
        if self.auth.open_mode || !self.auth.keys.is_empty() { Ok(()) } else { Err(ConfigError::NobodyMay) }
    }

    /// What single values cannot show.
    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key: &str, message: String| Err(ConfigError::Refused { key: key.into(), message });
        let names: BTreeSet<&str> = self.auth.keys.iter().map(|key| key.name.as_str()).collect();
        if names.len() < self.auth.keys.len() || names.contains("") {
            return refuse("auth.keys", "every key needs a name of its own".into());
        }
        if self.jobs.callback_attempts == 0 {
            return refuse("jobs.callback_attempts", "expected at least 1".into());
        }
        if self.execution.max_tasks == 0 {
            return refuse("execution.max_tasks", "expected at least 1".into());
        }
        for (key, size) in
            [("server.body_limit", self.server.body_limit), ("limits.max.output", self.limits.max.output)]
        {
            if size > LARGEST_MESSAGE {
                return refuse(key, format!("expected at most {LARGEST_MESSAGE}"));
            }
        }
        // One client has half of them at most, and a body is there twice while it is read.
        if self.buffers() / 4 < self.server.body_limit.0 {
            return refuse(
                "server.buffers",
                format!("expected at least four times server.body_limit, which is {}", self.server.body_limit),
            );
        }
        if self.memory_budget() < MINIMUM.memory {
            return refuse("execution.memory_budget", format!("expected at least {}", Size(MINIMUM.memory)));
        }
        for (name, values) in [("limits.default", &self.limits.default), ("limits.max", &self.limits.max)] {
            if let Some((field, least)) = values.limits().below_minimum() {
                return refuse(
                    &format!("{name}.{field}"),
                    format!("expected at least {least}, which a task needs to start"),
                );
            }
        }
        Ok(())
    }
}

impl LimitValues {
    fn limits(&self) -> Limits {
        Limits {
            memory: self.memory.of(machine_memory()),
            cpu_time: self.cpu_time.nanos(),
            wall_time: self.wall_time.nanos(),
            processes: self.processes,
            file_descriptors: self.file_descriptors,
            output: self.output.0,
            workspace: self.workspace.0,
            ..MINIMUM
        }
    }
}

impl Proxy {
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl CorsOrigin {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for CorsOrigin {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        const EXPECTED: &str = "expected \"*\" or an origin as browsers send it, such as https://example.com:8443: in lower case, \
                                without a path";
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:[]".contains(c);
        let is_origin = host.is_some_and(|host| !host.is_empty() && host.chars().all(plain));
        if text == "*" || is_origin { Ok(Self(text)) } else { Err(EXPECTED) }
    }
}

impl From<CorsOrigin> for String {
    fn from(origin: CorsOrigin) -> String {
        origin.0
    }
}

impl TryFrom<String> for Proxy {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(Self).map_err(|_| "expected an IP address or a network such as 10.0.0.0/8".into())
    }
}

impl From<Proxy> for String {
    fn from(proxy: Proxy) -> String {
        proxy.0.to_string()
    }
}

impl KeyHash {
    /// The hash of a key.
    pub fn of(key: &str) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(key.as_bytes()).into())
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What stands for the key within the server: the same wherever it is in the list.
    pub fn id(&self) -> u64 {
        self.0.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

impl TryFrom<String> for KeyHash {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        const EXPECTED: &str = "expected sha256: and 64 hexadecimal digits, as `faber key new` prints it";
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64 && digits.is_ascii());
        let digits = digits.ok_or(EXPECTED)?;
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| EXPECTED)?;
        }
        Ok(Self(bytes))
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> String {
        hash.0.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
    }
}

/// Bytes of RAM (sysinfo(2)).
pub fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion, reason = "the field's width differs between architectures")]
    let total = u64::from(info.totalram);
    total.saturating_mul(info.mem_unit.into())
}

/// Where images and the like are kept: the system's place for root, the user's own for others.
fn default_data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/faber");
    }
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    data.or_else(home).unwrap_or_else(|| PathBuf::from("/var/tmp")).join("faber")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_hash_is_read_and_written() {
        let hash = KeyHash::of("secret");
        let text = String::from(hash);
        assert_eq!(text, "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b");
        assert_eq!(KeyHash::try_from(text), Ok(hash));
        assert!(KeyHash::try_from("sha256:12".to_owned()).is_err());
        assert!(KeyHash::try_from("secret".to_owned()).is_err());
    }

    #[test]
    fn what_takes_a_restart_stays_and_is_named() {
        let config = |text: &str| -> Config {
            let defaults: toml::Table = toml::from_str(DEFAULTS).unwrap();
            let mut table = defaults;
            for (section, values) in toml::from_str::<toml::Table>(text).unwrap() {
                for (key, value) in values.as_table().unwrap() {
                    table[&section].as_table_mut().unwrap().insert(key.clone(), value.clone());
                }
            }
            table.try_into().unwrap()
        };
        let old = config("");
        let new = config(
            "auth = { open_mode = true }\nlog = { level = 'debug', format = 'json' }\nserver = { buffers = '1GiB' }",
        );
        let (next, left) = old.renewed(&new);
        assert!(next.auth.open_mode && next.log.level == LogLevel::Debug);
        assert!(next.server == old.server && next.log.format == LogFormat::Pretty);
        assert_eq!(left, ["server.buffers", "log.format"]);
        assert_eq!(next.renewed(&next), (next.clone(), Vec::new()));
    }

    #[test]
    fn an_origin_is_as_browsers_send_it() {
        let is_one = |text: &str| CorsOrigin::try_from(text.to_owned()).is_ok();
        assert!(["*", "https://a.example", "http://localhost:3000", "http://[::1]:8080"].into_iter().all(is_one));
        assert!(
            !["", "a.example", "https://a.example/", "https://A.example", "null", "https://*.a", "https://"]
                .into_iter()
                .any(is_one)
        );
    }

    #[test]
    fn a_proxy_is_an_address_or_a_network() {
        let proxy = |text: &str| Proxy::try_from(text.to_owned());
        assert!(proxy("10.0.0.0/8").unwrap().contains([10, 1, 2, 3].into()));
        assert!(!proxy("10.0.0.1").unwrap().contains([10, 0, 0, 2].into()));
        assert!(proxy("").is_err() && proxy("proxy.example").is_err());
    }
}
