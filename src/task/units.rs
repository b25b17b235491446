//! Sizes and times as messages tell them: `512 MiB`, `1.5 s`.

use std::fmt;

/// Bytes. What is no round number of a unit is told exactly too, since a bound and what is just beyond it have to differ.
pub struct Bytes(pub u64);

/// Nanoseconds.
pub struct Time(pub u64);

/// So many bytes are easily read as they are.
const PLAIN: u64 = 1_000_000;
/// So many of a unit are.
const MOST: u64 = 10_000;
const SIZES: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
const TIMES: [(&str, u64); 3] = [("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1_000)];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        // Quarters of a unit have two decimals, and are exact.
        let is_exact = |unit: u64| (unit..unit.saturating_mul(MOST)).contains(&bytes) && bytes.is_multiple_of(unit / 4);
        if let Some((name, unit)) = SIZES.into_iter().find(|(_, unit)| is_exact(*unit)) {
            return write!(f, "{} {name}", bytes as f64 / unit as f64);
        }
        let Some((name, unit)) = SIZES.into_iter().find(|(_, unit)| bytes >= (*unit).max(PLAIN)) else {
            return write!(f, "{bytes} {}", if bytes == 1 { "byte" } else { "bytes" });
        };
        write!(f, "{bytes} bytes ({:.1} {name})", bytes as f64 / unit as f64)
    }
}

/// `3 of 10 bytes`, `1 MiB of 2 GiB`.
pub fn part_of(part: u64, whole: u64) -> String {
    let (part_text, whole_text) = (Bytes(part).to_string(), Bytes(whole).to_string());
    match (part_text.strip_suffix(" bytes"), whole_text.ends_with(" bytes")) {
        (Some(part), true) => format!("{part} of {whole_text}"),
        _ => format!("{part_text} of {whole_text}"),
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(nanos) = *self;
        let Some((name, unit)) = TIMES.into_iter().find(|(_, unit)| nanos >= *unit) else {
            return write!(f, "{nanos} ns");
        };
        // Exactly, without zeros at the end.
        let digits = unit.ilog10() as usize;
        let rest = format!("{:0digits$}", nanos % unit);
        match rest.trim_end_matches('0') {
            "" => write!(f, "{} {name}", nanos / unit),
            rest => write!(f, "{}.{rest} {name}", nanos / unit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_units_and_exact() {
        let text = |bytes| Bytes(bytes).to_string();
        assert_eq!([text(0), text(1), text(1000)], ["0 bytes", "1 byte", "1000 bytes"]);
        assert_eq!([text(512 << 20), text(3 << 29), text(1200 << 20)], ["512 MiB", "1.5 GiB", "1200 MiB"]);
        assert_eq!(text((64 << 20) + 1), "67108865 bytes (64.0 MiB)");
        assert_eq!([text(1025), part_of(1, 1999)], ["1025 bytes", "1 byte of 1999 bytes"]);
        assert_eq!([part_of(0, 1999), part_of(2000, 1 << 30)], ["0 of 1999 bytes", "2000 bytes of 1 GiB"]);
        assert_eq!(text(100_000_000), "100000000 bytes (95.4 MiB)");
        assert_eq!(text(u64::MAX), "18446744073709551615 bytes (16777216.0 TiB)");
    }

    #[test]
    fn times_are_in_units_and_exact() {
        let text = |nanos| Time(nanos).to_string();
        assert_eq!([text(0), text(999), text(1_000_000_000)], ["0 ns", "999 ns", "1 s"]);
        assert_eq!([text(1_500_000_000), text(200_000_000), text(60_000_000_000)], ["1.5 s", "200 ms", "60 s"]);
        assert_eq!([text(1_000_000_001), text(1_050)], ["1.000000001 s", "1.05 µs"]);
    }
}
