//! Bytes as a client gives and gets them.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::{ArchiveFormat, ArchiveRequest, Digest, StepName, WorkspacePath, to_base64};

/// Bytes as a client gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Bytes(Bytes),
    Blob(Digest),
    From(Reference),
}

/// What another task of the same request leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub step: StepName,
    pub part: Part,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Stream(Stream),
    File(WorkspacePath),
}

/// One of a task's two streams of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A file, directory or link for the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileRequest {
    File { content: Content, mode: Option<u32> },
    Directory,
    Symlink(String),
}

/// Bytes as they are given: text, or an object with exactly one of the forms.
#[derive(ToSchema)]
#[schema(as = Content, example = "print('Hello from Python')")]
#[serde(untagged)]
pub enum ContentForms {
    /// Text, as it is.
    Text(String),
    /// The same as an object.
    Object {
        /// Text, as it is.
        #[schema(example = "1 2\n")]
        text: Option<String>,
        /// Any bytes: RFC 4648 §4, padded.
        #[schema(example = "AAEC/w==")]
        base64: Option<String>,
        /// The digest of a blob that was put before.
        #[schema(example = "sha256:0e223acf24a6b7c1b545e4603a2fa6a09f7f2492924be4d0e0935551a27e66a0")]
        blob: Option<String>,
        /// The name of a task of the same request that leaves the bytes.
        #[schema(example = "compile")]
        from: Option<String>,
        /// With `from`: which of its streams.
        stream: Option<Stream>,
        /// With `from`: which file of its workspace.
        #[schema(example = "main")]
        file: Option<String>,
    },
}

/// A file of the workspace: content, and what else a file can be.
#[derive(ToSchema)]
#[schema(as = FileContent, example = "print('Hello from Python')")]
#[serde(untagged)]
pub enum FileForms {
    /// Text, as it is.
    Text(String),
    /// One of the forms of content, a directory or a link.
    Object {
        /// Text, as it is.
        #[schema(example = "#!/bin/sh\necho hi\n")]
        text: Option<String>,
        /// Any bytes: RFC 4648 §4, padded.
        #[schema(example = "AAEC/w==")]
        base64: Option<String>,
        /// The digest of a blob that was put before.
        #[schema(example = "sha256:0e223acf24a6b7c1b545e4603a2fa6a09f7f2492924be4d0e0935551a27e66a0")]
        blob: Option<String>,
        /// The name of a task of the same request that leaves the bytes.
        #[schema(example = "compile")]
        from: Option<String>,
        /// With `from`: which of its streams.
        stream: Option<Stream>,
        /// With `from`: which file of its workspace.
        #[schema(example = "main")]
        file: Option<String>,
        /// Its permissions, in octal; 0755 without it, or what the step's file had.
        #[schema(example = "0755")]
        mode: Option<String>,
        /// true: a directory.
        directory: Option<bool>,
        /// A link with this target, which is inside of the workspace.
        #[schema(example = "main.py")]
        symlink: Option<String>,
    },
}

/// All keys that an object of content or of a file can have.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    text: Option<String>,
    base64: Option<String>,
    blob: Option<String>,
    from: Option<String>,
    stream: Option<Stream>,
    file: Option<String>,
    mode: Option<String>,
    directory: Option<bool>,
    symlink: Option<String>,
}

impl Keys {
    fn content(self) -> Result<Content, String> {
        const FORMS: &str = "expected exactly one of text, base64, blob, or from with stream or file";
        if self.mode.is_some() || self.directory.is_some() || self.symlink.is_some() {
            return Err("mode, directory and symlink are for files".into());
        }
        let Self { text, base64, blob, from, stream, file, .. } = self;
        if from.is_none() && (stream.is_some() || file.is_some()) {
            return Err("stream and file go with from".into());
        }
        match (text, base64, blob, from) {
            (Some(text), None, None, None) => Ok(Content::Bytes(text.into())),
            (None, Some(text), None, None) => match STANDARD.decode(&text) {
                Ok(bytes) => Ok(Content::Bytes(bytes.into())),
                Err(error) => Err(format!("base64 (RFC 4648 section 4, padded): {error}")),
            },
            (None, None, Some(blob), None) => {
                Digest::try_from(blob).map(Content::Blob).map_err(|error| format!("blob: {error}"))
            }
            (None, None, None, Some(from)) => Ok(Content::From(Reference {
                step: StepName::try_from(from)?,
                part: match (stream, file) {
                    (Some(stream), None) => Part::Stream(stream),
                    (None, Some(file)) => Part::File(WorkspacePath::parse(&file).map_err(|error| error.to_string())?),
                    _ => return Err("from goes with exactly one of stream and file".into()),
                },
            })),
            _ => Err(FORMS.into()),
        }
    }

    fn file(mut self) -> Result<FileRequest, String> {
        let mode = self.mode.take().map(|mode| parse_mode(&mode)).transpose()?;
        match (self.directory.take(), self.symlink.take(), mode) {
            (None | Some(false), None, mode) => Ok(FileRequest::File { content: self.content()?, mode }),
            (Some(true), None, None) if self.is_empty() => Ok(FileRequest::Directory),
            (None | Some(false), Some(target), None) if self.is_empty() => Ok(FileRequest::Symlink(target)),
            _ => Err("expected either content, with or without a mode, or directory: true, or a symlink".into()),
        }
    }

    fn is_empty(&self) -> bool {
        let strings = [&self.text, &self.base64, &self.blob, &self.from, &self.file];
        self.stream.is_none() && strings.iter().all(|string| string.is_none())
    }
}

/// All keys that an archive can have.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveKeys {
    text: Option<String>,
    base64: Option<String>,
    blob: Option<String>,
    from: Option<String>,
    stream: Option<Stream>,
    file: Option<String>,
    format: ArchiveFormat,
    path: Option<String>,
}

impl TryFrom<ArchiveKeys> for ArchiveRequest {
    type Error = String;
    fn try_from(keys: ArchiveKeys) -> Result<Self, String> {
        let ArchiveKeys { text, base64, blob, from, stream, file, format, path } = keys;
        let content =
            Keys { text, base64, blob, from, stream, file, mode: None, directory: None, symlink: None }.content()?;
        let path = path.filter(|path| !matches!(path.as_str(), "." | "./"));
        let path = path.map(|path| WorkspacePath::parse(path.trim_end_matches('/'))).transpose();
        Ok(Self { content, format, path: path.map_err(|error| error.to_string())? })
    }
}

/// `0755`: permission bits in octal.
fn parse_mode(text: &str) -> Result<u32, String> {
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if octal && mode <= 0o777 => Ok(mode),
        _ => Err(format!("mode {:?}: expected permissions in octal, such as \"0755\"", super::cut(text))),
    }
}

/// Text, or an object that `take` makes something of.
struct Forms<T> {
    expected: &'static str,
    text: fn(String) -> T,
    take: fn(Keys) -> Result<T, String>,
}

impl<'de, T> Visitor<'de> for Forms<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<T, E> {
        Ok((self.text)(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        (self.take)(<Keys as Deserialize>::deserialize(MapAccessDeserializer::new(fields))?).map_err(A::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = |text: String| Self::Bytes(text.into());
        deserializer.deserialize_any(Forms { expected: "text, or an object of content", text, take: Keys::content })
    }
}

impl<'de> Deserialize<'de> for FileRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = |text: String| Self::File { content: Content::Bytes(text.into()), mode: None };
        deserializer.deserialize_any(Forms { expected: "text, or an object of a file", text, take: Keys::file })
    }
}

/// For requests that are written, as the command line's are in tests.
impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Bytes(bytes) => map.serialize_entry("base64", &to_base64(bytes))?,
            Self::Blob(digest) => map.serialize_entry("blob", digest)?,
            Self::From(Reference { step, part }) => {
                map.serialize_entry("from", step)?;
                match part {
                    Part::Stream(stream) => map.serialize_entry("stream", stream)?,
                    Part::File(path) => map.serialize_entry("file", path)?,
                }
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn content(json: serde_json::Value) -> Result<Content, String> {
        serde_json::from_value(json).map_err(|error| error.to_string())
    }

    fn file(json: serde_json::Value) -> Result<FileRequest, String> {
        serde_json::from_value(json).map_err(|error| error.to_string())
    }

    #[test]
    fn each_form_is_read() {
        let bytes = |bytes: &'static [u8]| Ok(Content::Bytes(Bytes::from_static(bytes)));
        assert_eq!(content(json!("a")), bytes(b"a"));
        assert_eq!(content(json!({ "text": "a" })), bytes(b"a"));
        assert_eq!(content(json!({ "base64": "AP8=" })), bytes(b"\0\xff"));
        assert_eq!(content(json!({ "base64": "AP8=", "text": null })), bytes(b"\0\xff"));
        let step = StepName::try_from("a.b-c_1".to_owned()).unwrap();
        let part = Part::Stream(Stream::Stderr);
        assert_eq!(
            content(json!({ "from": "a.b-c_1", "stream": "stderr" })),
            Ok(Content::From(Reference { step: step.clone(), part }))
        );
        let part = Part::File(WorkspacePath::parse("a/b").unwrap());
        assert_eq!(content(json!({ "from": "a.b-c_1", "file": "./a/b" })), Ok(Content::From(Reference { step, part })));
        assert_eq!(file(json!({ "directory": true })), Ok(FileRequest::Directory));
        assert_eq!(file(json!({ "symlink": "a" })), Ok(FileRequest::Symlink("a".into())));
        let content = Content::Bytes(Bytes::from_static(b"x"));
        assert_eq!(file(json!({ "text": "x", "mode": "0640" })), Ok(FileRequest::File { content, mode: Some(0o640) }));
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        #[track_caller]
        fn refused<T: fmt::Debug>(result: Result<T, String>, part: &str) {
            let error = result.unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        for forms in [json!({}), json!({ "text": "a", "base64": "" }), json!({ "text": "", "from": "a" })] {
            refused(content(forms), "exactly one of");
        }
        refused(content(json!(1)), "expected text, or an object of content");
        refused(content(json!({ "base64": "AP8" })), "base64");
        refused(content(json!({ "base64": "AP8=\n" })), "base64");
        refused(content(json!({ "blob": "sha256:12" })), "64 hexadecimal digits");
        refused(content(json!({ "from": "a" })), "exactly one of stream and file");
        refused(content(json!({ "from": "a/b", "stream": "stdout" })), "name");
        refused(content(json!({ "text": "a", "file": "a" })), "go with from");
        refused(content(json!({ "text": "a", "mode": "0755" })), "are for files");
        refused(content(json!({ "text": "a", "texts": "a" })), "unknown field");
        for mode in ["755x", "07777", "4755", "9", "0o755", ""] {
            refused(file(json!({ "text": "a", "mode": mode })), "in octal");
        }
        refused(file(json!({ "directory": true, "text": "" })), "expected either");
        refused(file(json!({ "symlink": "a", "mode": "0644" })), "expected either");
    }
}
