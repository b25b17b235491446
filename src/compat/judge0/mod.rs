//! Judge0 CE's API, version 1.13.1 (judge0/judge0): submissions, alone and in batches, and what it tells of itself. A submission is
//! a request whose answer is fetched later, and beside it is kept what was submitted.

mod fields;
mod info;
mod languages;
mod outcome;
mod submission;
mod told;

pub use info::{Statistics, about, config_info, statuses};
pub use languages::{Here, ImageHere, here};
#[cfg(test)]
pub use languages::{LANGUAGES, Program};
pub use submission::{Accepted, Refusal, Submission, Tasks, Terms, batch, check_count, one};
pub use told::{Fields, NotUtf8, Stage, Told};

/// The version whose API this is. Its own client knows this one and the next.
pub const VERSION: &str = "1.13.1";
/// Submissions in one batch.
pub const BATCH: usize = 20;
/// Of one page of the index, unless another number is asked for.
pub const PAGE: usize = 20;

use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, STANDARD};
use base64::{Engine as _, alphabet};

/// A submission's name: the 32 digits of a job's id in the form of a UUID of version 4, as which typed clients read it. The first
/// two digits of an id are 0 for the next two thousand years, and give their room to what such a UUID has to say.
pub fn token(id: &str) -> String {
    let digits = id.get(2..).unwrap_or_default();
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    format!("{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(12, 15), part(15, 18), part(18, 30))
}

/// The id that a token stands for.
pub fn id_of(token: &str) -> Option<String> {
    let parts: Vec<&str> = token.split('-').collect();
    let [first, second, third, fourth, fifth] = parts[..] else { return None };
    let lengths = parts.iter().map(|part| part.len());
    if !lengths.eq([8, 4, 4, 4, 12]) || !token.is_ascii() {
        return None;
    }
    let (third, fourth) = (third.strip_prefix('4')?, fourth.strip_prefix('8')?);
    Some(format!("00{first}{second}{third}{fourth}{fifth}"))
}

/// Without padding, and whatever the bits are that are left over.
const LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, NO_PAD.with_decode_allow_trailing_bits(true));

/// What Ruby's decode64 makes of it: what is of the alphabet, up to the padding.
fn from_base64(text: &str) -> Vec<u8> {
    let is_its = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/');
    let mut plain: String = text.chars().take_while(|c| *c != '=').filter(is_its).collect();
    // Six bits are no byte.
    if plain.len() % 4 == 1 {
        plain.pop();
    }
    LENIENT.decode(plain).unwrap_or_default()
}

/// What Ruby's encode64 makes of it: a line for each 45 bytes.
fn to_mime(bytes: &[u8]) -> String {
    bytes.chunks(45).map(|line| STANDARD.encode(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_uuid_and_stands_for_its_id() {
        let id = "000643f1a2b3c4d50123456789abcdef";
        assert_eq!(token(id), "0643f1a2-b3c4-4d50-8123-456789abcdef");
        assert_eq!(id_of(&token(id)).as_deref(), Some(id));
        for wrong in ["", id, "0643f1a2-b3c4-5d50-8123-456789abcdef", "0643f1a2-b3c4-4d50-9123-456789abcdef", "----"] {
            assert_eq!(id_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn base64_is_as_ruby_has_it() {
        assert_eq!(from_base64("aGk=\n"), b"hi");
        assert_eq!(
            (from_base64("aG\nk"), from_base64("aGl=aaaa"), from_base64("!")),
            (b"hi".into(), b"hi".into(), vec![])
        );
        assert_eq!(to_mime(b"hi"), "aGk=\n");
        assert_eq!(to_mime(&[b'a'; 46]), format!("{}\nYQ==\n", "YWFh".repeat(15)));
        assert_eq!(to_mime(b""), "");
    }
}
