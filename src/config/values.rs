//! The kinds of values a configuration has beside numbers and booleans: each with one way in, and written as read.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::callbacks::{Host, NameServer};
use crate::task::Cpus;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes, read as container engines do: `64M` and `64MiB` are 64·2²⁰; a bare number is bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A share of the machine's memory, or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    Bytes(Size),
    /// 1 to 100.
    Percent(u8),
}

/// A time span, read and written by humantime: `30s`, `5m`, `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// How many tasks run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrency {
    /// The number of processors this process may use.
    Auto,
    Tasks(u16),
}

impl Concurrency {
    pub fn of(tasks: usize) -> Self {
        Self::Tasks(u16::try_from(tasks).unwrap_or(u16::MAX).clamp(1, 1024))
    }
}

/// How many tasks of one client run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// As many as run at all.
    All,
    Tasks(u16),
}

/// How many processors' time may be used at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// What there is.
    All,
    Of(Cpus),
}

/// How much of the time tasks may stall for want of memory before others wait: percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    Off,
    /// 0 to 100.
    Percent(u8),
}

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl std::str::FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parser = parse_size::Config::new().with_binary();
        parser.parse_size(text).map(Self).map_err(|_| "expected a size, such as 512MiB, 64M or 1048576".into())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Memory {
    /// In bytes, on a machine with `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(size) => size.0,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

impl std::str::FromStr for Memory {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let Some(percent) = text.strip_suffix('%') else { return text.parse().map(Self::Bytes) };
        match percent.trim().parse() {
            Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
            _ => Err("expected a size, or a percentage of the memory from 1% to 100%".into()),
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(size) => size.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Span {
    pub fn nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map(Self).map_err(|_| "expected a time span, such as 30s, 500ms or 5m".into())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl std::str::FromStr for Concurrency {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(tasks @ 1..=1024)) => Ok(Self::Tasks(tasks)),
            _ => Err("expected \"auto\" or a number from 1 to 1024".into()),
        }
    }
}

impl fmt::Display for Concurrency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Tasks(tasks) => tasks.fmt(f),
        }
    }
}

impl std::str::FromStr for Places {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("all", _) => Ok(Self::All),
            (_, Ok(tasks @ 1..=1024)) => Ok(Self::Tasks(tasks)),
            _ => Err("expected \"all\" or a number from 1 to 1024".into()),
        }
    }
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Tasks(tasks) => tasks.fmt(f),
        }
    }
}

impl std::str::FromStr for Share {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        const LEAST: f64 = 0.01;
        match (text, text.parse::<f64>()) {
            ("all", _) => Ok(Self::All),
            // Rounding is to a thousandth, which the least is ten of.
            (_, Ok(cpus)) if (LEAST..=1024.0).contains(&cpus) => {
                Ok(Self::Of(Cpus(NonZeroU32::new((cpus * 1000.0).round() as u32).unwrap_or(NonZeroU32::MIN))))
            }
            _ => Err("expected \"all\" or a number of processors from 0.01 to 1024, such as \"0.5\"".into()),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Of(Cpus(thousandths)) => (f64::from(thousandths.get()) / 1000.0).fmt(f),
        }
    }
}

impl std::str::FromStr for Pressure {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_suffix('%').map(|percent| percent.trim().parse())) {
            ("off", _) => Ok(Self::Off),
            (_, Some(Ok(percent @ 0..=100))) => Ok(Self::Percent(percent)),
            _ => Err("expected \"off\" or a percentage from 0% to 100%".into()),
        }
    }
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// These all are strings in a file; a bare number is taken for its digits.
macro_rules! as_string {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Text)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_string!(Size, Memory, Span, Concurrency, Places, Share, Pressure, Host, NameServer);

struct Text;

impl de::Visitor<'_> for Text {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a number")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<String, E> {
        Ok(number.to_string())
    }
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<String, E> {
        Ok(number.to_string())
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<String, E> {
        Ok(number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_written_as_read() {
        let size = |text: &str| text.parse::<Size>().unwrap().0;
        assert_eq!((size("64M"), size("64MiB"), size("64MB")), (64 << 20, 64 << 20, 64 << 20));
        assert_eq!((size("1048576"), size("1.5G"), size("1k")), (1 << 20, 3 << 29, 1024));
        assert_eq!(Size(512 << 20).to_string(), "512MiB");
        assert_eq!(Size(1000).to_string(), "1000");
        assert!("much".parse::<Size>().is_err() && "-1".parse::<Size>().is_err());
    }

    #[test]
    fn percentages_are_of_the_machine() {
        assert_eq!("50%".parse::<Memory>().unwrap().of(1000), 500);
        assert_eq!("2K".parse::<Memory>().unwrap().of(1000), 2048);
        assert!("0%".parse::<Memory>().is_err() && "101%".parse::<Memory>().is_err());
    }

    #[test]
    fn concurrency_is_auto_or_a_number() {
        assert_eq!("auto".parse(), Ok(Concurrency::Auto));
        assert_eq!("8".parse(), Ok(Concurrency::Tasks(8)));
        assert!("0".parse::<Concurrency>().is_err());
    }

    #[test]
    fn places_are_all_or_a_number() {
        assert_eq!(("all".parse(), "3".parse()), (Ok(Places::All), Ok(Places::Tasks(3))));
        assert!("0".parse::<Places>().is_err() && "auto".parse::<Places>().is_err());
    }

    #[test]
    fn shares_are_of_processors() {
        let cpus = |text: &str| text.parse::<Share>().map(|share| share.to_string());
        assert_eq!(cpus("all").unwrap(), "all");
        assert_eq!((cpus("0.5").unwrap(), cpus("2").unwrap()), ("0.5".into(), "2".into()));
        assert!(["0", "-1", "0.001", "NaN", "inf", "many"].iter().all(|text| cpus(text).is_err()));
    }

    #[test]
    fn pressure_is_off_or_a_percentage() {
        assert_eq!("off".parse(), Ok(Pressure::Off));
        assert_eq!("0%".parse(), Ok(Pressure::Percent(0)));
        assert!("101%".parse::<Pressure>().is_err() && "40".parse::<Pressure>().is_err());
    }
}
