//! Pressure stall information: how long tasks did nothing but wait for memory (accounting/psi.rst).

use std::path::PathBuf;

/// How much stalling is too much for another task to begin.
#[derive(Debug)]
pub struct Stall {
    /// The memory.pressure file of all containers.
    pub file: PathBuf,
    /// Percent of the last ten seconds in which all of them stalled at once.
    pub most: u8,
}

impl Stall {
    /// What cannot be read keeps nobody waiting.
    pub fn is_over(&self) -> bool {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        full_avg10(&text).is_some_and(|percent| percent >= f64::from(self.most))
    }
}

fn full_avg10(text: &str) -> Option<f64> {
    let full = text.lines().find_map(|line| line.strip_prefix("full "))?;
    full.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_in_which_all_stalled_is_read() {
        let text = "some avg10=12.50 avg60=1.00 avg300=0.00 total=9\nfull avg10=3.25 avg60=0.50 avg300=0.00 total=5\n";
        assert_eq!(full_avg10(text), Some(3.25));
        assert_eq!(full_avg10("some avg10=1.00"), None);
    }
}
