//! Bytes as they are told in JSON: kept as they are, once, and put into words when the answer is written, in parts if they are
//! many. 16 MiB of NULs are 96 MiB of JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// How output becomes a string.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "utf8")]
#[serde(rename_all = "lowercase")]
pub enum OutputEncoding {
    /// What is not UTF-8 comes as U+FFFD.
    #[default]
    Utf8,
    /// Everything comes as base64.
    Base64,
    /// A string where it is UTF-8, else an object with base64.
    Auto,
}

/// Bytes as they are returned: a string where they are text, else an object with their base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    bytes: Bytes,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// What is not UTF-8 as U+FFFD.
    Plain,
    Base64,
    /// `{"base64": …}`.
    Object,
    /// In the place of one that is told apart, by number.
    Apart(usize),
}

/// For the document alone: what a [`Text`] is in JSON.
#[derive(Deserialize, ToSchema)]
#[schema(as = Text, example = "hello world\n")]
#[serde(untagged)]
pub enum TextSchema {
    /// As it is, or as base64 where `output_encoding` is that.
    Plain(String),
    /// With `output_encoding` auto, where the bytes are not UTF-8.
    Binary {
        #[schema(example = "AAEC/w==")]
        base64: String,
    },
}

/// So much of a text is looked at together.
const PLAIN: usize = 512;
/// What of a text is put into words at once, in bytes: divisible by three, so that base64 has no padding between.
const PART: usize = 12 << 10;

impl OutputEncoding {
    /// None for nothing.
    pub fn encode(self, bytes: Vec<u8>) -> Option<Text> {
        if bytes.is_empty() {
            return None;
        }
        let form = match self {
            Self::Utf8 => Form::Plain,
            Self::Base64 => Form::Base64,
            Self::Auto if std::str::from_utf8(&bytes).is_ok() => Form::Plain,
            Self::Auto => Form::Object,
        };
        Some(Text { bytes: bytes.into(), form })
    }
}

impl Text {
    /// All of it as a string; None where it comes as an object.
    pub fn plain(&self) -> Option<String> {
        match self.form {
            Form::Plain => Some(String::from_utf8_lossy(&self.bytes).into_owned()),
            Form::Base64 => Some(to_base64(&self.bytes)),
            Form::Object | Form::Apart(_) => None,
        }
    }

    pub fn utf8(bytes: Bytes) -> Self {
        Self { bytes, form: Form::Plain }
    }

    pub fn base64(bytes: Bytes) -> Self {
        Self { bytes, form: Form::Base64 }
    }

    /// What it is of.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How many bytes it is of.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Takes it out, and leaves what is a [`MARK`] in JSON.
    pub fn set_apart(&mut self, number: usize) -> Self {
        std::mem::replace(self, Self { bytes: Bytes::new(), form: Form::Apart(number) })
    }

    /// Appends the part of its JSON that begins with its byte `at`; where the next one begins, None at the end.
    pub fn write_part(&self, at: usize, json: &mut Vec<u8>) -> Option<usize> {
        let (opening, closing): (&[u8], &[u8]) = match self.form {
            Form::Object => (b"{\"base64\":\"", b"\"}"),
            _ => (b"\"", b"\""),
        };
        if at == 0 {
            json.extend_from_slice(opening);
        }
        let end = self.bytes.len().min(at + PART);
        let is_last = end == self.bytes.len();
        let part = &self.bytes[at..end];
        let told = match self.form {
            Form::Plain => write_lossy(part, is_last, json),
            _ => {
                json.extend_from_slice(to_base64(part).as_bytes());
                part.len()
            }
        };
        if is_last {
            json.extend_from_slice(closing);
            return None;
        }
        Some(at + told)
    }
}

/// Appends the part as the inside of a string, but for a character's beginning at its end unless it is the last. How much that was.
fn write_lossy(part: &[u8], is_last: bool, json: &mut Vec<u8>) -> usize {
    let mut told = 0;
    for chunk in part.utf8_chunks() {
        escape(chunk.valid(), json);
        let invalid = chunk.invalid();
        told += chunk.valid().len();
        let is_begun = told + invalid.len() == part.len()
            && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        if is_begun && !is_last {
            break;
        }
        if !invalid.is_empty() {
            json.extend_from_slice("\u{fffd}".as_bytes());
        }
        told += invalid.len();
    }
    told
}

/// Most text has nothing that is written otherwise, which is seen at many bytes at once.
fn escape(text: &str, json: &mut Vec<u8>) {
    let mut rest = text;
    while !rest.is_empty() {
        let mut end = rest.len().min(PLAIN);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (part, after) = rest.split_at(end);
        if part.bytes().fold(true, |plain, byte| plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\')) {
            json.extend_from_slice(part.as_bytes());
        } else {
            let start = json.len();
            // Writing into memory does not fail.
            if serde_json::to_writer(&mut *json, part).is_ok() {
                json.remove(start);
                json.pop();
            }
        }
        rest = after;
    }
}

/// What stands in JSON for a text that is told apart begins with this, an escape that serde_json never writes; its number and a
/// quotation mark follow.
pub const MARK: &str = "\"\\/";

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::{Error, SerializeMap};
        match self.form {
            Form::Plain => serializer.serialize_str(&String::from_utf8_lossy(&self.bytes)),
            Form::Base64 => serializer.serialize_str(&to_base64(&self.bytes)),
            Form::Object => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &to_base64(&self.bytes))?;
                map.end()
            }
            Form::Apart(number) => {
                RawValue::from_string(format!("{MARK}{number}\"")).map_err(S::Error::custom)?.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match TextSchema::deserialize(deserializer)? {
            TextSchema::Plain(text) => Ok(Self::utf8(text.into())),
            TextSchema::Binary { base64 } => {
                let bytes = STANDARD.decode(base64).map_err(serde::de::Error::custom)?;
                Ok(Self { bytes: bytes.into(), form: Form::Object })
            }
        }
    }
}

impl utoipa::PartialSchema for Text {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        TextSchema::schema()
    }
}

impl ToSchema for Text {
    fn name() -> std::borrow::Cow<'static, str> {
        TextSchema::name()
    }
}

/// RFC 4648 §4, padded.
pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_comes_in_the_encoding_that_was_asked_for() {
        use OutputEncoding::{Auto, Base64, Utf8};
        let json = |encoding: OutputEncoding, bytes: &[u8]| {
            encoding.encode(bytes.to_vec()).map(|text| serde_json::to_string(&text).unwrap())
        };
        let is = |text: &str| Some(text.to_owned());
        assert_eq!(json(Utf8, b"a\xffb"), is("\"a\u{fffd}b\""));
        assert_eq!(json(Base64, b"a\xffb"), is("\"Yf9i\""));
        assert_eq!(json(Auto, b"a\xffb"), is(r#"{"base64":"Yf9i"}"#));
        assert_eq!(json(Auto, b"ab"), is("\"ab\""));
        assert_eq!(json(Base64, b""), None);
    }

    #[test]
    fn parts_come_to_the_same_as_the_whole() {
        let kinds: [&[u8]; 6] =
            [b"a", b"\0", "\u{20ac}".as_bytes(), b"\xe2\x82", b"\xff", "\"\\/0\u{1f980}".as_bytes()];
        for kind in kinds {
            for shift in 0..4 {
                let bytes = [&b"xxx"[..shift], &kind.repeat(3 * PART / kind.len())].concat();
                for encoding in [OutputEncoding::Utf8, OutputEncoding::Base64, OutputEncoding::Auto] {
                    let text = encoding.encode(bytes.clone()).unwrap();
                    let (mut parts, mut at) = (Vec::new(), Some(0));
                    while let Some(start) = at {
                        at = text.write_part(start, &mut parts);
                    }
                    assert!(parts == serde_json::to_vec(&text).unwrap(), "{kind:?} {shift} {encoding:?}");
                }
            }
        }
    }
}
