//! What keeper and front tell the sender, and what it answers.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The keeper's, first of all.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// The uid and gid to become.
    pub id: u32,
    /// As in the configuration.
    pub hosts: Vec<String>,
    /// As in the configuration.
    pub name_server: String,
}

/// Who is asked for the addresses of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameServer {
    /// Those of /etc/resolv.conf.
    Auto,
    At(SocketAddr),
}

impl FromStr for NameServer {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(address)) => Ok(Self::At(address)),
            _ => Err("expected \"auto\" or an address with a port, such as 192.0.2.1:53".into()),
        }
    }
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::At(address) => address.fmt(f),
        }
    }
}

/// The front's: one request to send. They are answered in any order.
#[derive(Debug, Serialize, Deserialize)]
pub struct Post {
    pub number: u64,
    pub method: Method,
    pub url: String,
    pub headers: Headers,
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    Post,
    Put,
}

/// Names and values.
pub type Headers = Vec<(String, String)>;

/// What became of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Posted {
    pub number: u64,
    pub result: Result<(), Refusal>,
}

/// Why it did not arrive, or was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: String,
    /// Another try would come to the same.
    pub is_final: bool,
}
