//! Compares a program's output with what was expected of it, and says where they first differ.
//!
//! Both are read once and side by side, in bounded memory whatever they hold: lines and tokens may be of any length.
//! As long as the bytes are equal nothing needs to be understood; only where they part does the mode decide whether
//! the current line or token is the same nevertheless, and then both go on behind it.

use std::fmt;
use std::io::{self, BufRead, ErrorKind};

use serde::{Deserialize, Serialize};

/// How many bytes of a line or token are looked at beyond comparing them: a longer token is no number.
const ITEM_BYTES: usize = 400;
/// How many of the bytes that both have in common are kept, at least; twice as many at most. More than [`ITEM_BYTES`], so
/// that what was dropped is known to be too long.
const COMMON_BYTES: usize = 512;
/// The most characters of an excerpt in a message.
const SHOWN_CHARS: usize = 40;
/// A difference at most this far into a line or token is shown from its beginning.
const NEAR_BYTES: usize = 24;
/// A later one is shown with this much of what is before it.
const CONTEXT_BYTES: usize = 12;

/// What counts as the same output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub enum Compare {
    /// The same bytes.
    Exact,
    /// The same lines; blanks (space, tab, CR, VT, FF) at the end of a line and blank lines at the end do not count.
    #[default]
    Lines,
    /// The same tokens, that is what is between ASCII white space.
    Tokens,
    /// The same tokens, where two decimal numbers (as `f64`) are also the same if they differ by no more than this, or
    /// by no more than this times the expected one. `inf` and `nan` are the same as themselves, in any case. From
    /// [`Compare::parse_float`].
    Float(f64),
}

/// As it is written: a word, or an object with the tolerance.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Form {
    Exact,
    Lines,
    Tokens,
    Float(f64),
}

impl TryFrom<Form> for Compare {
    type Error = &'static str;
    fn try_from(form: Form) -> Result<Self, Self::Error> {
        match form {
            Form::Exact => Ok(Self::Exact),
            Form::Lines => Ok(Self::Lines),
            Form::Tokens => Ok(Self::Tokens),
            Form::Float(eps) => {
                Self::parse_float(eps).ok_or("float: expected a tolerance that is finite and not negative")
            }
        }
    }
}

impl From<Compare> for Form {
    fn from(compare: Compare) -> Self {
        match compare {
            Compare::Exact => Self::Exact,
            Compare::Lines => Self::Lines,
            Compare::Tokens => Self::Tokens,
            Compare::Float(eps) => Self::Float(eps),
        }
    }
}

impl Compare {
    /// [`Compare::Float`] with a tolerance that is finite and not negative.
    pub fn parse_float(eps: f64) -> Option<Compare> {
        (eps.is_finite() && eps >= 0.0).then_some(Compare::Float(eps))
    }

    /// Whether the byte ends a line or token.
    fn is_separator(self, byte: u8) -> bool {
        match self {
            Compare::Exact => false,
            Compare::Lines => byte == b'\n',
            Compare::Tokens | Compare::Float(_) => is_space(byte),
        }
    }
}

/// Reads both until they differ, or end: `None` if they are the same.
pub fn compare(how: Compare, expected: impl BufRead, actual: impl BufRead) -> io::Result<Option<Difference>> {
    Comparison::new(how, expected, actual).run()
}

/// Where the output first differs from what was expected. Displayed in one line of at most 200 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    place: Place,
    /// `None` if nothing more was expected.
    expected: Option<Excerpt>,
    /// `None` if the output ends here.
    actual: Option<Excerpt>,
}

/// Counted from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Byte {
        number: u64,
        line: u64,
    },
    Line(u64),
    /// The line is that of the expected token, or of the actual one if none was expected.
    Token {
        number: u64,
        line: u64,
    },
}

/// Some bytes of a line or token.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Excerpt {
    bytes: Vec<u8>,
    cut_before: bool,
    cut_after: bool,
}

/// One comparison under way.
struct Comparison<E, A> {
    expected: Stream<E>,
    actual: Stream<A>,
    position: Position,
}

impl<E: BufRead, A: BufRead> Comparison<E, A> {
    fn new(how: Compare, expected: E, actual: A) -> Self {
        let position = Position { how, number: 1, common: Common::default() };
        Self { expected: Stream { source: expected, line: 1 }, actual: Stream { source: actual, line: 1 }, position }
    }

    fn run(&mut self) -> io::Result<Option<Difference>> {
        loop {
            self.pass_equal()?;
            if self.expected.peek()?.is_none() && self.actual.peek()?.is_none() {
                return Ok(None);
            }
            let difference = match self.position.how {
                Compare::Exact => self.compare_bytes(),
                Compare::Lines => self.compare_lines(),
                Compare::Tokens | Compare::Float(_) => self.compare_tokens(),
            };
            if let Some(difference) = difference? {
                return Ok(Some(difference));
            }
        }
    }

    /// Moves both to the first byte that differs, or to where one ends.
    fn pass_equal(&mut self) -> io::Result<()> {
        loop {
            let (expected, actual) = (self.expected.fill()?, self.actual.fill()?);
            let equal = equal_bytes(expected, actual);
            if equal == 0 {
                return Ok(());
            }
            self.position.pass(&expected[..equal]);
            self.expected.advance(equal)?;
            self.actual.advance(equal)?;
        }
    }

    fn compare_bytes(&mut self) -> io::Result<Option<Difference>> {
        let place = Place::Byte { number: self.position.number, line: self.expected.line };
        let expected = self.expected.take(|_| true)?;
        let actual = self.actual.take(|_| true)?;
        let shown = |excerpt: Excerpt| (!excerpt.bytes.is_empty()).then_some(excerpt);
        Ok(Some(Difference { place, expected: shown(expected), actual: shown(actual) }))
    }

    /// Lines that part are the same only if nothing but blanks is left of both. One that has ended goes on with empty
    /// lines, so that blank lines at the end of the other do not count.
    fn compare_lines(&mut self) -> io::Result<Option<Difference>> {
        let (expected, actual) = (self.expected.rest_of_line()?, self.actual.rest_of_line()?);
        if expected.is_none() && actual.is_none() {
            self.expected.pass_newline()?;
            self.actual.pass_newline()?;
            self.position.next();
            return Ok(None);
        }
        let common = &self.position.common;
        Ok(Some(Difference {
            place: Place::Line(self.position.number),
            expected: self.expected.show_line(common, expected)?,
            actual: self.actual.show_line(common, actual)?,
        }))
    }

    /// Between tokens, moves both to the next one; in a token, reads what is left of it.
    fn compare_tokens(&mut self) -> io::Result<Option<Difference>> {
        if self.position.common.is_empty() {
            self.expected.skip(is_space)?;
            self.actual.skip(is_space)?;
            if self.expected.peek()? == self.actual.peek()? {
                return Ok(None);
            }
        }
        let expected = self.expected.take(|byte| !is_space(byte))?;
        let actual = self.actual.take(|byte| !is_space(byte))?;
        if self.is_same_token(&expected, &actual) {
            self.position.next();
            return Ok(None);
        }
        let common = &self.position.common;
        let shown = |rest: Excerpt| (!common.is_empty() || !rest.bytes.is_empty()).then(|| common.excerpt(rest));
        let (expected, actual) = (shown(expected), shown(actual));
        let line = if expected.is_some() { self.expected.line } else { self.actual.line };
        Ok(Some(Difference { place: Place::Token { number: self.position.number, line }, expected, actual }))
    }

    /// Whether two tokens that part after what they have in common are the same, given what is left of them.
    fn is_same_token(&self, expected: &Excerpt, actual: &Excerpt) -> bool {
        if expected.bytes.is_empty() && actual.bytes.is_empty() {
            return true;
        }
        let Compare::Float(eps) = self.position.how else { return false };
        let common = &self.position.common;
        match (common.whole_token(expected), common.whole_token(actual)) {
            (Some(expected), Some(actual)) => is_same_number(eps, &expected, &actual),
            _ => false,
        }
    }
}

/// One of the two inputs.
struct Stream<R> {
    source: R,
    /// The line of the next byte.
    line: u64,
}

impl<R: BufRead> Stream<R> {
    /// Some of the next bytes: none only at the end.
    fn fill(&mut self) -> io::Result<&[u8]> {
        while let Err(error) = self.source.fill_buf() {
            if error.kind() != ErrorKind::Interrupted {
                return Err(error);
            }
        }
        self.source.fill_buf()
    }

    /// Moves on by so many of the bytes that [`Stream::fill`] returned.
    fn advance(&mut self, count: usize) -> io::Result<()> {
        self.line += self.fill()?.iter().take(count).filter(|&&byte| byte == b'\n').count() as u64;
        self.source.consume(count);
        Ok(())
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.fill()?.first().copied())
    }

    fn skip(&mut self, skipped: impl Fn(u8) -> bool) -> io::Result<()> {
        loop {
            let count = self.fill()?.iter().take_while(|&&byte| skipped(byte)).count();
            if count == 0 {
                return Ok(());
            }
            self.advance(count)?;
        }
    }

    /// Reads on while bytes are wanted, up to [`ITEM_BYTES`].
    fn take(&mut self, wanted: impl Fn(u8) -> bool) -> io::Result<Excerpt> {
        let mut bytes = Vec::new();
        while bytes.len() < ITEM_BYTES {
            let next = self.fill()?.iter().copied().take(ITEM_BYTES - bytes.len());
            let before = bytes.len();
            bytes.extend(next.take_while(|&byte| wanted(byte)));
            if bytes.len() == before {
                break;
            }
            self.advance(bytes.len() - before)?;
        }
        Ok(Excerpt { bytes, cut_before: false, cut_after: self.peek()?.is_some_and(wanted) })
    }

    /// What is left of the line, or `None` if that is only blanks: then the next byte is its newline, if it has one.
    fn rest_of_line(&mut self) -> io::Result<Option<Excerpt>> {
        let rest = self.take(|byte| byte != b'\n')?;
        if rest.bytes.iter().any(|&byte| !is_blank(byte)) {
            return Ok(Some(rest));
        }
        self.skip(is_blank)?;
        Ok(self.peek()?.is_some_and(|byte| byte != b'\n').then_some(rest))
    }

    fn pass_newline(&mut self) -> io::Result<()> {
        let count = usize::from(self.peek()? == Some(b'\n'));
        self.advance(count)
    }

    /// The current line for a message, or `None` if it and all that follow are blank.
    fn show_line(&mut self, common: &Common, rest: Option<Excerpt>) -> io::Result<Option<Excerpt>> {
        if common.blank && rest.is_none() {
            self.skip(is_space)?;
            if self.peek()?.is_none() {
                return Ok(None);
            }
        }
        let mut line = common.excerpt(rest.unwrap_or_default());
        while line.bytes.last().is_some_and(|&byte| is_blank(byte)) {
            line.bytes.pop();
        }
        Ok(Some(line))
    }
}

/// How far both have come together.
struct Position {
    how: Compare,
    /// Of the current byte, line or token.
    number: u64,
    common: Common,
}

impl Position {
    /// Both have these bytes next.
    fn pass(&mut self, equal: &[u8]) {
        let how = self.how;
        if how == Compare::Exact {
            self.number += equal.len() as u64;
            return;
        }
        for piece in equal.split_inclusive(|&byte| how.is_separator(byte)) {
            match piece.split_last() {
                Some((&last, item)) if how.is_separator(last) => {
                    self.common.push(item);
                    if how == Compare::Lines || !self.common.is_empty() {
                        self.next();
                    }
                }
                _ => self.common.push(piece),
            }
        }
    }

    /// The current line or token is the same in both.
    fn next(&mut self) {
        self.number += 1;
        self.common.clear();
    }
}

/// The bytes at the beginning of the current line or token that both have in common.
struct Common {
    /// All of them, or at least the last [`COMMON_BYTES`].
    bytes: Vec<u8>,
    /// Whether all of them are blanks.
    blank: bool,
}

impl Default for Common {
    fn default() -> Self {
        Self { bytes: Vec::new(), blank: true }
    }
}

impl Common {
    fn push(&mut self, bytes: &[u8]) {
        self.blank = self.blank && bytes.iter().all(|&byte| is_blank(byte));
        let last = &bytes[bytes.len().saturating_sub(COMMON_BYTES)..];
        if self.bytes.len() + last.len() > 2 * COMMON_BYTES {
            self.bytes.drain(..self.bytes.len().saturating_sub(COMMON_BYTES));
        }
        self.bytes.extend_from_slice(last);
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.blank = true;
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What to show of a line or token that goes on like this: all from its beginning, or some before the difference.
    fn excerpt(&self, mut rest: Excerpt) -> Excerpt {
        let mut before = self.bytes.as_slice();
        if before.len() > NEAR_BYTES {
            rest.cut_before = true;
            before = &before[before.len() - CONTEXT_BYTES..];
            // Not from the middle of a UTF-8 character, whose other bytes are 10xxxxxx.
            let split = before.iter().take(3).take_while(|&&byte| byte & 0xc0 == 0x80).count();
            before = &before[split..];
        }
        rest.bytes.splice(..0, before.iter().copied());
        rest
    }

    /// The token that goes on like this, unless it is too long for a number.
    fn whole_token(&self, rest: &Excerpt) -> Option<String> {
        if rest.cut_after || self.bytes.len() + rest.bytes.len() > ITEM_BYTES {
            return None;
        }
        String::from_utf8([self.bytes.as_slice(), &rest.bytes].concat()).ok()
    }
}

/// Space, tab, CR, VT, FF.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c)
}

/// As C's `isspace`: `u8::is_ascii_whitespace` leaves VT out.
fn is_space(byte: u8) -> bool {
    byte == b'\n' || is_blank(byte)
}

/// How many bytes both begin with.
fn equal_bytes(one: &[u8], other: &[u8]) -> usize {
    let shorter = one.len().min(other.len());
    // One `memcmp` for what is nearly always the case.
    if one[..shorter] == other[..shorter] {
        return shorter;
    }
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// Compares two tokens as numbers; `false` if one is none. `f64::from_str` takes decimals, `inf`, `infinity` and `nan`:
/// no hexadecimal, no underscores. One too large for `f64` is the same only if it is spelled the same.
fn is_same_number(eps: f64, expected: &str, actual: &str) -> bool {
    let (Ok(one), Ok(other)) = (expected.parse::<f64>(), actual.parse::<f64>()) else { return false };
    let unsigned = |token: &str| token.strip_prefix('+').unwrap_or(token).to_ascii_lowercase();
    if unsigned(expected) == unsigned(actual) {
        return true;
    }
    let distance = (one - other).abs();
    // Infinite beside anything else: eps times infinity would accept it.
    distance.is_finite() && (distance <= eps || distance <= eps * one.abs())
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.place {
            Place::Byte { number, line } => write!(f, "byte {number} (line {line})")?,
            Place::Line(number) => write!(f, "line {number}")?,
            Place::Token { number, line } => write!(f, "token {number} (line {line})")?,
        }
        match &self.expected {
            Some(expected) => write!(f, ": expected {expected}")?,
            None => write!(f, ": expected the end")?,
        }
        match &self.actual {
            Some(actual) => write!(f, ", got {actual}"),
            None => write!(f, ", but the output ends"),
        }
    }
}

/// In quotes, on one line: what is neither UTF-8 nor printable is escaped. What was cut away is "…" outside the quotes.
impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut shown = String::new();
        let mut room = SHOWN_CHARS;
        let mut cut_after = self.cut_after;
        for escaped in escaped(&self.bytes) {
            match room.checked_sub(escaped.chars().count()) {
                Some(left) => room = left,
                None => {
                    cut_after = true;
                    break;
                }
            }
            shown.push_str(&escaped);
        }
        let mark = |cut| if cut { "…" } else { "" };
        write!(f, "{}\"{shown}\"{}", mark(self.cut_before), mark(cut_after))
    }
}

/// Each character as it is shown: as in Rust source, with bytes that are not UTF-8 as `\xff`.
fn escaped(bytes: &[u8]) -> impl Iterator<Item = String> {
    bytes.utf8_chunks().flat_map(|chunk| {
        let valid = chunk.valid().chars().map(|char| match char {
            '\'' => char.to_string(),
            _ => char.escape_debug().to_string(),
        });
        valid.chain(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{BufReader, Cursor, Read};

    const SAME: &str = "the same";

    fn said(difference: Option<Difference>) -> String {
        difference.map_or(SAME.into(), |difference| difference.to_string())
    }

    #[track_caller]
    fn check(how: Compare, expected: impl AsRef<[u8]>, actual: impl AsRef<[u8]>, message: &str) {
        assert_eq!(said(compare(how, expected.as_ref(), actual.as_ref()).unwrap()), message);
    }

    #[test]
    fn exact_is_the_same_bytes() {
        let check = |expected: &str, actual: &str, message| check(Compare::Exact, expected, actual, message);
        check("", "", SAME);
        check("a\r\n b", "a\r\n b", SAME);
        check("a\nbc\n", "a\nbd\n", r#"byte 4 (line 2): expected "c\n", got "d\n""#);
        check("a\n", "a", r#"byte 2 (line 1): expected "\n", but the output ends"#);
        check("a", "a\n", r#"byte 2 (line 1): expected the end, got "\n""#);
        check("a\n", "a\r\n", r#"byte 2 (line 1): expected "\n", got "\r\n""#);
        check("", "x", r#"byte 1 (line 1): expected the end, got "x""#);
        check("é", "è", r#"byte 2 (line 1): expected "\xa9", got "\xa8""#);
    }

    #[test]
    fn lines_count_without_blanks_and_blank_lines_at_the_end() {
        let check = |expected: &str, actual: &str, message| check(Compare::Lines, expected, actual, message);
        check("", "", SAME);
        check("", "\n \n\t", SAME);
        check("a\nb\n", "a \t\r\nb", SAME);
        check("a\n\n\n", "a\n", SAME);
        check("a\n", "a\x0b\x0c\n\n \n", SAME);
        check("a b \n", "a b\t\n", SAME);
        check("1 2\n\n12 7\n", "1 2\n\n12 8\n", r#"line 3: expected "12 7", got "12 8""#);
        check("a", "a b", r#"line 1: expected "a", got "a b""#);
        check("a  b", "a  ", r#"line 1: expected "a  b", got "a""#);
        check("a b", "a\tb", r#"line 1: expected "a b", got "a\tb""#);
        check(" a", "a", r#"line 1: expected " a", got "a""#);
        check("a\rb", "ab", r#"line 1: expected "a\rb", got "ab""#);
        check("A", "a", r#"line 1: expected "A", got "a""#);
        check("1\n2\n3\nx\n", "1\n2\n3\n", r#"line 4: expected "x", but the output ends"#);
        check("1\n2\n3\n", "1\n2\n3\nx\n", r#"line 4: expected the end, got "x""#);
        check("1\n \n \n", "1\nx", r#"line 2: expected the end, got "x""#);
        check("1\n\n\n2", "1\nx", r#"line 2: expected "", got "x""#);
        check("1\n\n\n2", "1", r#"line 4: expected "2", but the output ends"#);
        check("1\n", "1\n\n\n2", r#"line 4: expected the end, got "2""#);
        check("x", "", r#"line 1: expected "x", but the output ends"#);
    }

    #[test]
    fn tokens_count_without_the_space_between_them() {
        let check = |expected: &str, actual: &str, message| check(Compare::Tokens, expected, actual, message);
        check("", " \n", SAME);
        check("1 2\n3\n", "1\n2   3", SAME);
        check("\x0b1\x0c2", "1\r\n2\t", SAME);
        check("a b", "ab", r#"token 1 (line 1): expected "a", got "ab""#);
        check("1 2\n3 4 0.5\n", "1 2 3\n4 0.6", r#"token 5 (line 2): expected "0.5", got "0.6""#);
        check("1\n2\n\n3", "1 2", r#"token 3 (line 4): expected "3", but the output ends"#);
        check("1 2", "1\n2\n\n3", r#"token 3 (line 4): expected the end, got "3""#);
        check("1", "1.0", r#"token 1 (line 1): expected "1", got "1.0""#);
        check("é\u{a0}a", "é\u{2003}a", r#"token 1 (line 1): expected "é\u{a0}a", got "é\u{2003}a""#);
    }

    #[test]
    fn numbers_may_differ_by_the_tolerance() {
        let same = |eps, expected: &str, actual: &str| {
            let how = Compare::parse_float(eps).unwrap();
            compare(how, expected.as_bytes(), actual.as_bytes()).unwrap().is_none()
        };
        let huge = "9".repeat(400);
        for (eps, expected, actual) in [
            (0.0, "1", "1.0"),
            (0.0, "1 2", "+1e0\n2."),
            (0.0, "-0", "0"),
            (0.0, ".5", "0.50"),
            (0.125, "1", "1.125"),
            (0.125, "8", "9"),
            (0.125, "9", "8"),
            (1e-6, "1000000000", "1000000500"),
            (1e-6, "0", "-0.000001"),
            (0.0, "nan NaN", "NAN nan"),
            (0.0, "inf -Infinity", "+INF -infinity"),
            (0.0, "x 1_000 0x10", "x 1_000 0x10"),
            (0.0, &huge, &huge),
            (0.0, &huge[1..], &format!("+{}", &huge[1..])),
            (10.0, "1e308", "-1e307"),
        ] {
            assert!(same(eps, expected, actual), "{expected} and {actual} differ");
        }
        for (eps, expected, actual) in [
            (0.0, "1", "1.0000001"),
            (0.125, "1", "1.126"),
            (0.125, "7", "8"),
            (0.125, "1", "1.0 1"),
            (0.125, "1", ""),
            (1e300, "nan", "1"),
            (1e300, "nan", "inf"),
            (1e300, "nan", "-nan"),
            (1e300, "inf", "1e308"),
            (1e300, "1e308", "inf"),
            (1e300, "inf", "1e999"),
            (1e300, "1e999", "1"),
            (1e300, "1", "1e999"),
            (1e300, "1e998", "1e999"),
            (1e300, "inf", "-inf"),
            (1e300, "inf", "infinity"),
            (1e300, "1000", "1_000"),
            (1e300, "16", "0x10"),
            (1e300, "1", "1f"),
            (1e300, "1", "1e"),
            (1e300, "1", "."),
            (1e300, "1", "++1"),
            (1e300, "1", "１"),
            (1e300, "x", "y"),
            (0.0, &huge, &format!("{}8", &huge[1..])),
            (1e300, &format!("{:0<398}", "0."), &format!("{:0<401}", "0.")),
            (1e300, &format!("{:0<401}", "0."), "-0.0 0"),
            (1e300, &format!("{:0<2000}1", "0."), &format!("{:0<2000}2", "0.")),
        ] {
            assert!(!same(eps, expected, actual), "{expected} and {actual} are the same");
        }
    }

    #[test]
    fn a_number_too_far_off_is_named_with_its_token() {
        let how = Compare::Float(0.01);
        check(how, "1 2\n3 4 0.5\n", "1.001 2 3\n4 0.6", r#"token 5 (line 2): expected "0.5", got "0.6""#);
        check(how, "1 2", "+1 2.001 3", r#"token 3 (line 1): expected the end, got "3""#);
        check(how, "x 2", "y 2", r#"token 1 (line 1): expected "x", got "y""#);
    }

    #[test]
    fn a_tolerance_is_finite_and_not_negative() {
        assert_eq!(Compare::parse_float(1e-9), Some(Compare::Float(1e-9)));
        assert_eq!(Compare::parse_float(0.0), Some(Compare::Float(0.0)));
        for eps in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e-9] {
            assert_eq!(Compare::parse_float(eps), None);
        }
    }

    #[test]
    fn excerpts_are_escaped() {
        check(Compare::Lines, "a\"b\\", "it's", r#"line 1: expected "a\"b\\", got "it's""#);
        check(Compare::Lines, b"\xff\xfea", "\x1b[0m\0", r#"line 1: expected "\xff\xfea", got "\u{1b}[0m\0""#);
        check(Compare::Lines, "日本", "\u{202e}x", r#"line 1: expected "日本", got "\u{202e}x""#);
    }

    #[test]
    fn long_excerpts_are_cut_around_the_difference() {
        let (a40, a60) = ("a".repeat(40), "a".repeat(60));
        check(Compare::Lines, &a40, "b", &format!(r#"line 1: expected "{a40}", got "b""#));
        check(Compare::Lines, &a60, "b", &format!(r#"line 1: expected "{a40}"…, got "b""#));
        let far = |end: &str| format!("{}{end}", "0123456789".repeat(500));
        check(Compare::Lines, far("x"), far("y"), r#"line 1: expected …"890123456789x", got …"890123456789y""#);
        check(
            Compare::Tokens,
            far(""),
            far("y"),
            r#"token 1 (line 1): expected …"890123456789", got …"890123456789y""#,
        );
        let accents = |end: &str| format!("é{}{end}", "日".repeat(30));
        check(Compare::Lines, accents("1"), accents("2"), r#"line 1: expected …"日日日日1", got …"日日日日2""#);
        check(Compare::Lines, accents("x1"), accents("x2"), r#"line 1: expected …"日日日x1", got …"日日日x2""#);
        let spaces = " ".repeat(1000);
        check(Compare::Lines, format!("x{spaces}y"), "x", r#"line 1: expected "x"…, got "x""#);
        check(Compare::Lines, format!("x{spaces}\n"), "x", SAME);
    }

    /// Gives a few bytes at a time, and is interrupted before each.
    struct Slow<'a> {
        bytes: &'a [u8],
        sizes: std::iter::Cycle<std::iter::Copied<std::slice::Iter<'a, usize>>>,
        size: usize,
    }

    impl<'a> Slow<'a> {
        fn new(bytes: &'a [u8], sizes: &'a [usize]) -> Self {
            Self { bytes, sizes: sizes.iter().copied().cycle(), size: 0 }
        }
    }

    impl Read for Slow<'_> {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            unreachable!("only the buffer is read")
        }
    }

    impl BufRead for Slow<'_> {
        fn fill_buf(&mut self) -> io::Result<&[u8]> {
            if self.size == 0 && !self.bytes.is_empty() {
                self.size = self.sizes.next().unwrap_or(1).min(self.bytes.len());
                return Err(ErrorKind::Interrupted.into());
            }
            Ok(&self.bytes[..self.size])
        }

        fn consume(&mut self, count: usize) {
            self.bytes = &self.bytes[count..];
            self.size -= count;
        }
    }

    #[test]
    fn an_error_of_reading_is_an_error() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        for how in [Compare::Exact, Compare::Lines, Compare::Tokens] {
            let error = compare(how, BufReader::new(b"ab".chain(Broken)), &b"abc"[..]).unwrap_err();
            assert_eq!(error.to_string(), "broken");
        }
    }

    const MIB: u64 = 1 << 20;

    fn endless(byte: u8, count: u64, after: &str) -> impl BufRead {
        BufReader::with_capacity(1 << 16, io::repeat(byte).take(count).chain(Cursor::new(after.to_string())))
    }

    #[track_caller]
    fn check_long(how: Compare, expected: impl BufRead, actual: impl BufRead, message: &str) {
        let mut comparison = Comparison::new(how, expected, actual);
        assert_eq!(said(comparison.run().unwrap()), message);
        let kept = comparison.position.common.bytes.capacity();
        assert!(kept <= 4 * COMMON_BYTES, "{kept} bytes kept");
    }

    #[test]
    fn a_token_of_64_mib_takes_bounded_memory() {
        let count = 64 * MIB;
        check_long(Compare::Tokens, endless(b'7', count, "\n"), endless(b'7', count, ""), SAME);
        let end = format!(r#"byte {} (line 1): expected "\n", but the output ends"#, count + 1);
        check_long(Compare::Exact, endless(b'7', count, "\n"), endless(b'7', count, ""), &end);
    }

    #[test]
    fn endless_lines_and_blanks_take_bounded_memory() {
        for how in [Compare::Lines, Compare::Tokens, Compare::Float(0.1)] {
            check_long(how, endless(b'7', MIB, "\n"), endless(b'7', MIB, ""), SAME);
            check_long(how, endless(b' ', MIB, "\n"), &b""[..], SAME);
        }
        let tail = r#"line 1: expected …"777777777777x", got …"777777777777""#;
        check_long(Compare::Lines, endless(b'7', MIB, "x\n"), endless(b'7', MIB, "\n"), tail);
        let blanks = r#"line 1: expected "", got ""…"#;
        check_long(Compare::Lines, &b"\n1"[..], endless(b' ', MIB, "x"), blanks);
        let lines = format!(r#"token 1 (line {}): expected "x", but the output ends"#, MIB + 1);
        check_long(Compare::Tokens, endless(b'\n', MIB, "x"), &b""[..], &lines);
    }

    #[test]
    fn nothing_is_read_far_behind_a_difference() {
        for how in [Compare::Exact, Compare::Lines, Compare::Tokens, Compare::Float(0.1)] {
            let mut actual = BufReader::with_capacity(1 << 16, io::repeat(b'7').take(MIB));
            assert!(compare(how, &b"8"[..], &mut actual).unwrap().is_some());
            assert!(actual.into_inner().limit() > MIB / 2);
        }
    }

    /// The lines without what does not count.
    fn plain_lines(text: &[u8]) -> Vec<&[u8]> {
        let mut lines: Vec<&[u8]> = text
            .split(|&byte| byte == b'\n')
            .map(|line| &line[..line.iter().rposition(|&byte| !is_blank(byte)).map_or(0, |last| last + 1)])
            .collect();
        while lines.last().is_some_and(|line| line.is_empty()) {
            lines.pop();
        }
        lines
    }

    fn quoted(bytes: &[u8]) -> String {
        Excerpt { bytes: bytes.to_vec(), ..Excerpt::default() }.to_string()
    }

    fn plain_message(place: String, expected: Option<&&[u8]>, actual: Option<&&[u8]>) -> String {
        match (expected, actual) {
            (Some(expected), Some(actual)) => {
                format!("{place}: expected {}, got {}", quoted(expected), quoted(actual))
            }
            (Some(expected), None) => format!("{place}: expected {}, but the output ends", quoted(expected)),
            (None, Some(actual)) => format!("{place}: expected the end, got {}", quoted(actual)),
            (None, None) => SAME.into(),
        }
    }

    /// The first place where the lists differ; one that has ended goes on with what is empty.
    fn first_difference(expected: &[&[u8]], actual: &[&[u8]]) -> Option<usize> {
        let at = |list: &[&[u8]], index: usize| list.get(index).map_or(Vec::new(), |item| item.to_vec());
        (0..expected.len().max(actual.len())).find(|&index| at(expected, index) != at(actual, index))
    }

    fn in_memory_lines(expected: &[u8], actual: &[u8]) -> String {
        let (expected, actual) = (plain_lines(expected), plain_lines(actual));
        first_difference(&expected, &actual).map_or(SAME.into(), |index| {
            plain_message(format!("line {}", index + 1), expected.get(index), actual.get(index))
        })
    }

    fn tokens(text: &[u8]) -> Vec<&[u8]> {
        text.split(|&byte| is_space(byte)).filter(|token| !token.is_empty()).collect()
    }

    fn line_of(text: &[u8], token: &[u8]) -> usize {
        let at = token.as_ptr() as usize - text.as_ptr() as usize;
        text[..at].iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    fn in_memory_tokens(expected: &[u8], actual: &[u8]) -> String {
        let (wanted, got) = (tokens(expected), tokens(actual));
        first_difference(&wanted, &got).map_or(SAME.into(), |index| {
            let (wanted, got) = (wanted.get(index), got.get(index));
            let line = wanted.map_or_else(|| got.map_or(0, |got| line_of(actual, got)), |one| line_of(expected, one));
            plain_message(format!("token {} (line {line})", index + 1), wanted, got)
        })
    }

    /// Two texts that are often nearly the same: both of the same few pieces, of which a few are changed.
    fn texts() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        const PIECES: [&[u8]; 14] =
            [b"a", b"1", b"1.0", b"+1", b"1.05", b"nan", b"\xc3", b"\xa9", b" ", b"\t", b"\n", b"\n", b"\r\n", b"\x0b"];
        let piece = || prop::sample::select(PIECES.as_slice());
        let changes = prop::collection::vec((any::<prop::sample::Index>(), piece(), 0..3u8), 0..4);
        (prop::collection::vec(piece(), 1..14), changes).prop_map(|(pieces, changes)| {
            let mut other = pieces.clone();
            for (index, piece, change) in changes {
                let index = index.index(other.len());
                match change {
                    0 => other[index] = piece,
                    1 => other.insert(index, piece),
                    _ if other.len() > 1 => drop(other.remove(index)),
                    _ => {}
                }
            }
            (pieces.concat(), other.concat())
        })
    }

    const MODES: [Compare; 4] = [Compare::Exact, Compare::Lines, Compare::Tokens, Compare::Float(0.01)];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn lines_and_tokens_are_compared_as_in_memory((expected, actual) in texts()) {
            let said = |how| said(compare(how, &expected[..], &actual[..]).unwrap());
            // Of what is long only a part is shown.
            let shown = |message: String| match expected.len().max(actual.len()) <= NEAR_BYTES {
                true => message,
                false => message.split(':').next().unwrap_or_default().to_owned(),
            };
            prop_assert_eq!(shown(said(Compare::Lines)), shown(in_memory_lines(&expected, &actual)));
            prop_assert_eq!(shown(said(Compare::Tokens)), shown(in_memory_tokens(&expected, &actual)));
            prop_assert_eq!(said(Compare::Exact) == SAME, expected == actual);
        }

        #[test]
        fn the_pieces_in_which_input_arrives_do_not_matter(
            (expected, actual) in texts(),
            long in prop::sample::select(&[0, 1, 10, 13, 390, 400, 1100][..]),
            sizes in prop::collection::vec(1..700usize, 1..6),
        ) {
            let common = vec![b'1'; long];
            let (expected, actual) = ([&common[..], &expected].concat(), [&common[..], &actual].concat());
            for how in MODES {
                let whole = compare(how, &expected[..], &actual[..]).unwrap();
                let pieces = compare(how, Slow::new(&expected, &sizes), Slow::new(&actual, &[1])).unwrap();
                prop_assert_eq!(&whole, &pieces);
                let bytes = compare(how, Slow::new(&expected, &[1]), Slow::new(&actual, &[1])).unwrap();
                prop_assert_eq!(&whole, &bytes);
            }
        }

        #[test]
        fn a_message_is_one_short_line_whatever_is_compared(
            expected in prop::collection::vec(any::<u8>(), 0..300),
            actual in prop::collection::vec(any::<u8>(), 0..300),
            chars in any::<(String, String)>(),
        ) {
            for how in MODES {
                for (expected, actual) in [(&expected[..], &actual[..]), (chars.0.as_bytes(), chars.1.as_bytes())] {
                    let said = said(compare(how, expected, actual).unwrap());
                    prop_assert!(said.chars().count() <= 200 && !said.contains(char::is_control), "{said}");
                }
            }
        }
    }
}
