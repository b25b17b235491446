//! LibreChat's code API (ClickHouse/code-interpreter): `exec`, and the files of its sessions.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::piston::Stage;
use crate::task::{
    Compilation, Digest, FileResult, Offer, Omitted, Status, TaskRequest, TaskResult, Text, WorkspacePath,
};

/// Its languages, with the images that each has here, of which the first that is built is taken, and with the files that a compilation
/// leaves beside the program: by their names, or the ends of these.
pub const LANGUAGES: [(&str, &[&str], &[&str]); 13] = [
    ("py", &["python-data", "python"], &[]),
    ("js", &["node"], &[]),
    ("ts", &["typescript"], &["main.js"]),
    ("c", &["c"], &["main"]),
    ("cpp", &["cpp"], &["main"]),
    ("java", &["java"], &[".class"]),
    ("php", &["php"], &[]),
    ("rs", &["rust"], &["main"]),
    ("go", &["go"], &["main"]),
    ("d", &["d"], &["main", "main.o"]),
    ("f90", &["fortran"], &["main", ".mod"]),
    ("r", &["r"], &[]),
    ("bash", &["bash"], &[]),
];

/// Where its programs have their files.
const HOME: &str = "/mnt/data";

/// A file of a session, by its two ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    pub id: String,
    pub storage_session_id: String,
}

/// A file that a request gives its program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    pub origin: Origin,
    pub blob: Digest,
    /// Whatever the program does to it, it stays what it was.
    pub read_only: bool,
}

/// What is to be known of a request with its result.
#[derive(Debug)]
pub struct Known {
    /// The program's own file, and what its compilation leaves.
    program: String,
    leftovers: &'static [&'static str],
    inputs: BTreeMap<String, Input>,
}

/// Why a request stands for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// 400 with this message.
    Message(String),
    /// 403: a file that the key has not.
    NotAFile(String),
}

/// `find` has the file with these ids, without its path; `workspace` is where programs have their files here.
///
/// # Errors
/// What is not as it has to be, or not on this server.
pub fn order(
    body: &[u8],
    find: &mut dyn FnMut(&Origin) -> Option<(Digest, bool)>,
    offers: &[Offer],
    workspace: &str,
) -> Result<(TaskRequest, Known), Refusal> {
    let refused = |message: String| Err(Refusal::Message(message));
    let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(body) else {
        return refused("the body is no JSON object".into());
    };
    let Some(asked) = fields.get("lang").and_then(Value::as_str) else {
        return refused("lang must be a string".into());
    };
    let Some(code) = fields.get("code").and_then(Value::as_str) else { return refused("code must be a string".into()) };
    let language = LANGUAGES.into_iter().find(|(language, ..)| language.eq_ignore_ascii_case(asked));
    let Some((_, images, leftovers)) = language else { return refused(format!("Unsupported language: {asked}")) };
    let built = |image: &&str| {
        let offer = offers.iter().find(|offer| offer.id.name.as_str() == *image)?;
        Some((offer.id.name.as_str().to_owned(), offer.language.as_ref()?.file.clone()))
    };
    let Some((image, program)) = images.iter().find_map(built) else {
        let last = images.last().copied().unwrap_or_default();
        return refused(format!("Unsupported language: {asked} is not on this server: faber image build {last}"));
    };
    let args = match fields.get("args") {
        None | Some(Value::Null) => Vec::new(),
        Some(list) => match serde_json::from_value::<Vec<String>>(list.clone()) {
            Ok(list) => list,
            Err(_) => return refused("args must be a list of strings".into()),
        },
    };
    let list = match fields.get("files") {
        None | Some(Value::Null) => &[],
        Some(Value::Array(list)) => list.as_slice(),
        Some(_) => return refused("files must be an array".into()),
    };
    let mut inputs = BTreeMap::new();
    for (at, file) in list.iter().enumerate() {
        let text = |name: &str| file.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        // Before the two ids had names of their own, both were called session_id.
        let (id, session) = (text("id"), text("storage_session_id").or_else(|| text("session_id")));
        let (Some(id), Some(session), Some(name)) = (id, session, text("name")) else {
            return refused(format!("files[{at}] must have id, storage_session_id and name"));
        };
        let path = file_path(name).map_err(|error| Refusal::Message(format!("files[{at}]: {error}")))?;
        if path == program {
            return refused(format!("files[{at}]: {program} is where the code goes"));
        }
        let origin = Origin { id: id.to_owned(), storage_session_id: session.to_owned() };
        let Some((blob, read_only)) = find(&origin) else {
            return Err(Refusal::NotAFile(format!("Unauthorized file reference: {session}/{id} is not there")));
        };
        if inputs.insert(path, Input { origin, blob, read_only }).is_some() {
            return refused(format!("files[{at}]: {name} is given twice"));
        }
    }
    let files: Map<String, Value> =
        inputs.iter().map(|(path, input)| (path.clone(), json!({ "blob": input.blob.to_string() }))).collect();
    let args: Vec<String> = args.iter().map(|arg| at_home(arg, workspace)).collect();
    let task = json!({
        "language": image, "code": at_home(code, workspace), "args": args, "files": files, "outputs": ["**?"],
        "on_output_limit": "discard", "output_encoding": "utf8", "detail": true,
    });
    let task = serde_json::from_value(task).map_err(|error| Refusal::Message(error.to_string()))?;
    Ok((task, Known { program, leftovers, inputs }))
}

/// Where a file called so lies below its home.
///
/// # Errors
/// Why it cannot lie there.
pub fn file_path(name: &str) -> Result<String, String> {
    let below = name.strip_prefix(HOME).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name);
    WorkspacePath::parse(below).map(String::from).map_err(|error| error.to_string())
}

/// The text with the workspace in place of its home: a task has it in one place alone.
fn at_home(text: &str, workspace: &str) -> String {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    let mut moved = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(HOME) {
        let (before, after) = (&rest[..at], &rest[at + HOME.len()..]);
        // The end of a sentence is no part of a name.
        let goes_on = after.strip_prefix('.').unwrap_or(after).starts_with(is_part);
        moved.push_str(before);
        moved.push_str(if moved.ends_with(is_part) || goes_on { HOME } else { workspace });
        rest = after;
    }
    moved + rest
}

/// What becomes of a file that is there at a program's end.
#[derive(Debug, PartialEq, Eq)]
pub enum Left {
    /// It was given, and is what it was.
    Input(Input),
    /// It is the program's, in place of one that was given or beside them.
    New { modified_from: Option<Origin> },
    /// It is the program itself, or one that its compilation has left.
    Program,
}

impl Known {
    pub fn left(&self, path: &str, file: &FileResult) -> Left {
        match self.inputs.get(path) {
            Some(input) if input.read_only || input.blob.hex() == file.sha256 => Left::Input(input.clone()),
            Some(input) => Left::New { modified_from: Some(input.origin.clone()) },
            None if path == self.program || self.is_leftover(path) => Left::Program,
            None => Left::New { modified_from: None },
        }
    }

    fn is_leftover(&self, path: &str) -> bool {
        let is =
            |leftover: &&str| if leftover.starts_with('.') { path.ends_with(*leftover) } else { path == *leftover };
        !path.contains('/') && self.leftovers.iter().any(is)
    }
}

/// A file as an answer tells it.
#[derive(Debug, Serialize)]
pub struct FileRef {
    id: String,
    name: String,
    storage_session_id: String,
    /// What the one before was called once.
    session_id: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    inherited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified_from: Option<Origin>,
}

impl FileRef {
    pub fn inherited(name: String, origin: Origin) -> Self {
        Self { inherited: true, ..Self::new(name, origin, None) }
    }

    pub fn new(name: String, origin: Origin, modified_from: Option<Origin>) -> Self {
        let Origin { id, storage_session_id } = origin;
        Self { id, name, session_id: storage_session_id.clone(), storage_session_id, inherited: false, modified_from }
    }
}

/// The answer to a request that could be run.
#[derive(Debug, Serialize)]
pub struct Executed {
    session_id: String,
    storage_session_id: String,
    stdout: Text,
    stderr: Text,
    pub files: Vec<FileRef>,
    code: Option<i32>,
    signal: Option<String>,
    message: Option<String>,
    status: Option<&'static str>,
    wall_time: u64,
}

impl Executed {
    /// `unkept`: files that are not kept, with why not. Its client tells a model nothing but the two streams.
    pub fn of(session: String, mut result: TaskResult, files: Vec<FileRef>, unkept: &[(String, String)]) -> Self {
        let compilation = result.compile.take().and_then(|Compilation(compilation)| compilation);
        let failed = compilation.filter(|compilation| compilation.status != Status::Success);
        let stage = Stage::of(failed.map_or(result, |compilation| *compilation));
        let lines: String = unkept.iter().map(|(name, reason)| format!("{name} is not kept: {reason}\n")).collect();
        let stderr = match lines.is_empty() {
            true => stage.stderr,
            false => Text::utf8([stage.stderr.bytes(), lines.as_bytes()].concat().into()),
        };
        Self {
            storage_session_id: session.clone(),
            session_id: session,
            stdout: stage.stdout,
            stderr,
            files,
            code: stage.code,
            signal: stage.signal,
            message: stage.message,
            status: stage.status,
            wall_time: stage.wall_time,
        }
    }

    /// Whatever of it the programs have written.
    pub fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        [&mut self.stdout, &mut self.stderr].into_iter().for_each(each);
    }
}

/// The files that a result leaves out, with the reason of the first ones.
pub fn unkept(omitted: Option<Omitted>) -> Vec<(String, String)> {
    let Some(Omitted { count, files }) = omitted else { return Vec::new() };
    let more = count.saturating_sub(files.len() as u64);
    let mut told: Vec<(String, String)> = files.into_iter().collect();
    if more > 0 {
        told.push((format!("{more} more"), "likewise".into()));
    }
    told
}

/// What is told of a session's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub origin: Origin,
    pub name: String,
    pub blob: Digest,
    pub size: u64,
    pub content_type: String,
    /// RFC 3339, in milliseconds.
    pub modified: String,
    pub read_only: bool,
}

impl Described {
    /// As object storage has it: the session, the id and what the name ends with.
    fn object(&self) -> String {
        let extension = self.name.rsplit('/').next().and_then(|name| name.rsplit_once('.'));
        let extension =
            extension.filter(|(stem, _)| !stem.is_empty()).map_or(String::new(), |(_, end)| format!(".{end}"));
        format!("{}/{}{extension}", self.origin.storage_session_id, self.origin.id)
    }

    /// One entry of a session's list; a `detail` that is none is the least.
    pub fn listed(&self, detail: &str) -> Value {
        let Self { origin, name, blob, size, content_type, modified, .. } = self;
        let (object, etag) = (self.object(), blob.hex());
        match detail {
            "summary" => json!({ "name": object, "size": size, "lastModified": modified, "etag": etag }),
            "full" => json!({
                "name": object, "size": size, "lastModified": modified, "etag": etag, "versionId": null,
                "contentType": content_type, "metadata": { "content-type": content_type, "original-filename": name },
            }),
            "normalized" => json!({
                "id": origin.id, "name": name, "storage_session_id": origin.storage_session_id,
                "session_id": origin.storage_session_id, "size": size, "contentType": content_type,
                "lastModified": modified,
            }),
            _ => object.into(),
        }
    }

    /// As it is told alone.
    pub fn metadata(&self) -> Value {
        json!({
            "name": self.object(), "originalFilename": self.name, "size": self.size, "lastModified": self.modified,
            "etag": self.blob.hex(), "contentType": self.content_type, "readOnly": self.read_only,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every image is one of this repository's definitions.
    #[test]
    fn the_table_of_languages_is_whole() {
        let images = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
        for (language, image) in
            LANGUAGES.iter().flat_map(|(language, images, _)| images.iter().map(move |image| (language, image)))
        {
            assert!(images.join(image).join("image.toml").exists(), "{language}: {image}");
        }
    }

    #[test]
    fn its_home_is_the_workspace() {
        let moved = |text: &str| at_home(text, "/w");
        assert_eq!(moved("open('/mnt/data/x.csv'); '/mnt/data'"), "open('/w/x.csv'); '/w'");
        assert_eq!(moved("ls /mnt/data. Then /mnt/data\n"), "ls /w. Then /w\n");
        for other in ["/mnt/database", "/mnt/data-2/x", "/srv/mnt/data/x", "/mnt/data.d", "/mnt/dat", "é/mnt/data"] {
            assert_eq!(moved(other), other);
        }
        assert_eq!(file_path("/mnt/data/a/b"), Ok("a/b".into()));
        assert!(file_path("/mnt/other").is_err() && file_path("../x").is_err() && file_path("/mnt/data/").is_err());
    }

    #[test]
    fn objects_end_like_their_files() {
        let object = |name: &str| {
            let origin = Origin { id: "i".into(), storage_session_id: "s".into() };
            let (content_type, modified) = (String::new(), String::new());
            let blob = Digest::new([0; 32]);
            Described { origin, name: name.into(), blob, size: 0, content_type, modified, read_only: false }.object()
        };
        assert_eq!([object("a/b.tar.gz"), object("a.d/b"), object(".env")], ["s/i.gz", "s/i", "s/i"]);
    }
}
