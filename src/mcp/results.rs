//! Results as a model reads them: bounded, with a mark where something is left out; as a value and as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use rmcp::model::{CallToolResult, ContentBlock};
use rmcp::schemars::{self, JsonSchema};
use serde::Serialize;

use super::Refusal;
use crate::image::{Image, Root};
use crate::judge::{CaseResult, JudgeResponse, Most};
use crate::task::{
    Bytes, Compilation, FileResult, ImageName, Omitted, ResourceUsage, Status, TaskResult, Text, Time, Verdict,
    to_base64,
};

/// Bytes of each stream that are told, and of each text file.
pub const STREAM: u64 = 32 << 10;
/// Bytes of all text files together.
const TEXTS: usize = 128 << 10;
/// Bytes of all images together.
const IMAGES: usize = 4 << 20;
/// Cases that failed whose output is told.
const SHOWN: usize = 10;

/// What came of a program.
#[derive(Serialize, JsonSchema)]
pub struct RunOutput {
    /// Success, Failure, Timeout, CpuLimitExceeded, MemoryLimitExceeded or ResourceLimitExceeded.
    #[schemars(with = "String")]
    status: Status,
    /// 128 + n when signal n ended it; null when a limit did.
    exit_code: Option<i32>,
    /// Why it did not end well, where there is more to say than the exit code.
    error: Option<String>,
    stdout: String,
    stderr: String,
    /// Whether more was written than is told.
    stdout_truncated: bool,
    stderr_truncated: bool,
    usage: Usage,
    /// null where nothing is compiled.
    compile: Option<Compile>,
    /// Files that were asked for, by path; images are in the result's content.
    files: BTreeMap<String, File>,
    /// Asked for, and not there.
    missing_outputs: Vec<String>,
    /// There, and not given back, with the reason.
    omitted_outputs: BTreeMap<String, String>,
}

#[derive(Serialize, JsonSchema)]
struct Usage {
    cpu_time_ns: u64,
    wall_time_ns: u64,
    memory_peak_bytes: u64,
}

/// What the compiler said.
#[derive(Serialize, JsonSchema)]
struct Compile {
    #[schemars(with = "String")]
    status: Status,
    exit_code: Option<i32>,
    stdout: String,
    stderr: String,
    stdout_truncated: bool,
    stderr_truncated: bool,
}

#[derive(Serialize, JsonSchema)]
struct File {
    /// Bytes.
    size: u64,
    /// Its text, if it is text; null for an image, and for other bytes.
    text: Option<String>,
    /// Whether there is more of the text than is told, or the image is left out, since those before it are large.
    truncated: bool,
    /// The type of an image; it is in the result's content.
    image: Option<&'static str>,
    /// Where its bytes are, if they are not told: GET /blobs/BLOB of the same server.
    blob: Option<String>,
}

/// What came of a judgement.
#[derive(Serialize, JsonSchema)]
pub struct JudgementOutput {
    /// The first case's that is not Accepted.
    #[schemars(with = "String")]
    verdict: Verdict,
    compile: Option<Compile>,
    cases: Vec<Case>,
    /// The most that any case used.
    max: Usage,
}

#[derive(Serialize, JsonSchema)]
struct Case {
    name: String,
    #[schemars(with = "String")]
    verdict: Verdict,
    /// Where the output differs, or why it failed.
    message: Option<String>,
    exit_code: Option<i32>,
    /// The beginning of what it wrote; null of a case that is Accepted, and after the first ten that are not.
    stdout: Option<String>,
    stderr: Option<String>,
    usage: Usage,
}

/// What programs can be in.
#[derive(Serialize, JsonSchema)]
pub struct LanguagesOutput {
    languages: Vec<Language>,
    images: Vec<ImageOutput>,
    default_image: String,
}

#[derive(Serialize, JsonSchema)]
struct Language {
    language: String,
    /// Its packages with their versions.
    version: String,
    compiled: bool,
}

#[derive(Serialize, JsonSchema)]
struct ImageOutput {
    image: String,
    description: String,
}

/// A task's result; an error where it was not run.
pub fn of_task(mut result: TaskResult) -> Result<CallToolResult, Refusal> {
    let compile = result.compile.take().and_then(|Compilation(compile)| compile);
    let failed_to_compile = compile.as_ref().is_some_and(|compile| compile.status != Status::Success);
    if result.status == Status::NotExecuted && !failed_to_compile {
        return Err(refusal(result.error));
    }
    let (files, images) = files(result.files.take().unwrap_or_default());
    let Omitted { files: omitted, .. } = result.omitted_outputs.take().unwrap_or_default();
    let detail = result.detail.as_ref();
    let (stdout, stdout_cut) = cut(result.stdout.as_ref(), STREAM as usize);
    let (stderr, stderr_cut) = cut(result.stderr.as_ref(), STREAM as usize);
    let output = RunOutput {
        status: result.status,
        exit_code: result.exit_code,
        error: result.error,
        stdout,
        stderr,
        stdout_truncated: stdout_cut || detail.is_some_and(|detail| detail.stdout_truncated),
        stderr_truncated: stderr_cut || detail.is_some_and(|detail| detail.stderr_truncated),
        usage: result.resource_usage.into(),
        compile: compile.map(|compile| Compile::of(*compile)),
        files,
        missing_outputs: result.missing_outputs.unwrap_or_default(),
        omitted_outputs: omitted,
    };
    told(&output, output.text(), images)
}

/// A judgement's result; an error where nothing was run.
pub fn of_judgement(response: JudgeResponse) -> Result<CallToolResult, Refusal> {
    let JudgeResponse { verdict, compile, cases, max } = response;
    if verdict == Verdict::NotExecuted {
        let reason = cases.into_iter().find(|case| case.verdict == verdict).and_then(|case| case.result.error);
        return Err(refusal(reason));
    }
    let mut shown = 0;
    let cases = cases.into_iter().map(|case| {
        shown += usize::from(!matches!(case.verdict, Verdict::Accepted | Verdict::Skipped));
        Case::of(case, shown <= SHOWN)
    });
    let output =
        JudgementOutput { verdict, compile: compile.map(Compile::of), cases: cases.collect(), max: max.into() };
    told(&output, output.text(), Vec::new())
}

/// The languages and images that are here.
pub fn of_images(images: &[Image], default_image: &ImageName) -> CallToolResult {
    let languages = images.iter().filter_map(|image| {
        let language = image.language.as_ref()?;
        let version = match &image.root {
            Root::Machine(_) => String::new(),
            Root::Tree(contents) => {
                let versions = contents.versions.iter().map(|(package, version)| format!("{package} {version}"));
                versions.collect::<Vec<_>>().join(", ")
            }
        };
        Some(Language { language: image.name.to_string(), version, compiled: !language.compile.is_empty() })
    });
    let of_image =
        |image: &Image| ImageOutput { image: image.name.to_string(), description: image.description.clone() };
    let output = LanguagesOutput {
        languages: languages.collect(),
        images: images.iter().map(of_image).collect(),
        default_image: default_image.to_string(),
    };
    told(&output, output.text(), Vec::new())
        .unwrap_or_else(|refusal| CallToolResult::error(vec![ContentBlock::text(refusal)]))
}

fn refusal(reason: Option<String>) -> Refusal {
    format!("It was not run: {}", reason.unwrap_or_else(|| "Faber failed".into()))
}

fn told(output: &impl Serialize, text: String, images: Vec<ContentBlock>) -> Result<CallToolResult, Refusal> {
    let mut result = CallToolResult::success(vec![ContentBlock::text(text)]);
    result.content.extend(images);
    let value = serde_json::to_value(output).map_err(|error| format!("The result cannot be told: {error}"))?;
    result.structured_content = Some(value);
    Ok(result)
}

/// At most so many bytes of a text, and whether there are more.
fn cut(text: Option<&Text>, most: usize) -> (String, bool) {
    let Some(text) = text else { return (String::new(), false) };
    let bytes = text.bytes();
    let is_cut = bytes.len() > most;
    (String::from_utf8_lossy(&bytes[..bytes.len().min(most)]).into_owned(), is_cut)
}

/// Files as they are told, and the images among them.
fn files(files: BTreeMap<String, FileResult>) -> (BTreeMap<String, File>, Vec<ContentBlock>) {
    let (mut images, mut texts_left, mut images_left) = (Vec::new(), TEXTS, IMAGES);
    let one = |(path, file): (String, FileResult)| {
        let bytes = file.text.as_ref().or(file.base64.as_ref()).map_or(&[][..], |text| &text.bytes()[..]);
        let image = image_type(&path, bytes);
        let (text, truncated) = match (&file.text, image) {
            (_, Some(_)) if bytes.len() > images_left => (None, true),
            (_, Some(image)) => {
                images_left -= bytes.len();
                images.push(ContentBlock::image(to_base64(bytes), image));
                (None, false)
            }
            (Some(text), None) => {
                let (text, is_cut) = cut(Some(text), texts_left.min(STREAM as usize));
                texts_left = texts_left.saturating_sub(text.len());
                (Some(text), is_cut)
            }
            (None, None) => (None, false),
        };
        (path, File { size: file.size, text, truncated, image, blob: file.blob })
    };
    (files.into_iter().map(one).collect(), images)
}

/// Of a file that clients show as an image. One that only is named so would have a model's API refuse the whole conversation.
fn image_type(path: &str, bytes: &[u8]) -> Option<&'static str> {
    let is_svg = || {
        let is_named_so = path.rsplit_once('.').is_some_and(|(_, ending)| ending.eq_ignore_ascii_case("svg"));
        is_named_so && bytes.trim_ascii_start().starts_with(b"<") && bytes.windows(4).any(|window| window == b"<svg")
    };
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        _ if is_svg() => Some("image/svg+xml"),
        _ => None,
    }
}

impl Compile {
    fn of(result: TaskResult) -> Self {
        let (stdout, stdout_truncated) = cut(result.stdout.as_ref(), STREAM as usize);
        let (stderr, stderr_truncated) = cut(result.stderr.as_ref(), STREAM as usize);
        let output = result.resource_limits_exceeded.output_limit_exceeded;
        Self {
            status: result.status,
            exit_code: result.exit_code,
            stdout,
            stderr,
            stdout_truncated: stdout_truncated || output,
            stderr_truncated: stderr_truncated || output,
        }
    }

    fn write(&self, text: &mut String) {
        if self.status != Status::Success {
            stream(text, "compiler's stdout", &self.stdout, self.stdout_truncated);
        }
        stream(text, "compiler's stderr", &self.stderr, self.stderr_truncated);
    }
}

impl Case {
    fn of(case: CaseResult, with_output: bool) -> Self {
        let CaseResult { name, verdict, message, result } = case;
        let with_output = with_output && verdict != Verdict::Accepted;
        let beginning = |text: &Option<Text>| with_output.then(|| cut(text.as_ref(), 1 << 10).0);
        Self {
            name,
            verdict,
            exit_code: result.exit_code,
            stdout: beginning(&result.stdout),
            stderr: beginning(&result.stderr),
            message: message.or(result.error),
            usage: result.resource_usage.into(),
        }
    }
}

impl From<ResourceUsage> for Usage {
    fn from(usage: ResourceUsage) -> Self {
        Self {
            cpu_time_ns: usage.cpu_time_ns,
            wall_time_ns: usage.wall_time_ns,
            memory_peak_bytes: usage.memory_peak_bytes,
        }
    }
}

impl From<Most> for Usage {
    fn from(most: Most) -> Self {
        let Most { cpu_time_ns, wall_time_ns, memory_peak_bytes } = most;
        Self { cpu_time_ns, wall_time_ns, memory_peak_bytes }
    }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: u64| Time(time.next_multiple_of(1_000_000));
        let memory = Bytes(self.memory_peak_bytes.next_multiple_of(256 << 10));
        write!(f, "{} of CPU time, {} in all, {memory} of memory", ms(self.cpu_time_ns), ms(self.wall_time_ns))
    }
}

impl RunOutput {
    fn text(&self) -> String {
        let mut text = format!("{:?}", self.status);
        if let Some(code) = self.exit_code {
            let _ = write!(text, ", exit code {code}");
        }
        if let Some(error) = &self.error {
            let _ = write!(text, ": {error}");
        }
        let _ = write!(text, " ({})", self.usage);
        if let Some(compile) = &self.compile {
            compile.write(&mut text);
        }
        stream(&mut text, "stdout", &self.stdout, self.stdout_truncated);
        stream(&mut text, "stderr", &self.stderr, self.stderr_truncated);
        for (path, file) in &self.files {
            match &file.text {
                Some(content) => stream(&mut text, path, content, file.truncated),
                None => _ = write!(text, "\n{path}: {}", file.note()),
            }
        }
        for missing in &self.missing_outputs {
            let _ = write!(text, "\n{missing}: there is no such file");
        }
        for (path, reason) in &self.omitted_outputs {
            let _ = write!(text, "\n{path} is not given back: {reason}");
        }
        text
    }
}

impl File {
    fn note(&self) -> String {
        let size = Bytes(self.size);
        match (self.image, &self.blob) {
            (Some(_), _) if self.truncated => {
                format!("{size}, an image that is left out: images are {} together", Bytes(IMAGES as u64))
            }
            (Some(_), _) => format!("{size}, an image of this result"),
            (None, Some(blob)) => format!("{size}, kept as GET /blobs/{blob}"),
            (None, None) => format!("{size} that are no text"),
        }
    }
}

impl JudgementOutput {
    fn text(&self) -> String {
        let accepted = self.cases.iter().filter(|case| case.verdict == Verdict::Accepted).count();
        let mut text =
            format!("{:?}: {accepted} of {} accepted (at most {})", self.verdict, self.cases.len(), self.max);
        if let Some(compile) = &self.compile {
            compile.write(&mut text);
        }
        for case in self.cases.iter().filter(|case| case.verdict != Verdict::Accepted) {
            let _ = write!(text, "\n{}: {:?}", case.name, case.verdict);
            if let Some(message) = &case.message {
                let _ = write!(text, ": {message}");
            }
            let stderr = case.stderr.as_deref().unwrap_or_default();
            if case.verdict == Verdict::RuntimeError && !stderr.is_empty() {
                let _ = write!(text, "\n{}", stderr.trim_end());
            }
        }
        text
    }
}

impl LanguagesOutput {
    fn text(&self) -> String {
        let mut text = String::from("Languages:");
        for Language { language, version, .. } in &self.languages {
            let _ = write!(text, "\n{language}: {version}");
        }
        text.push_str("\nImages:");
        for ImageOutput { image, description } in &self.images {
            let default = if *image == self.default_image { " (default)" } else { "" };
            let _ = write!(text, "\n{image}{default}: {description}");
        }
        text
    }
}

/// A stream below its name, with a mark where it goes on.
fn stream(text: &mut String, name: &str, content: &str, is_truncated: bool) {
    if content.is_empty() && !is_truncated {
        return;
    }
    let _ = write!(text, "\n{name}:\n{}", content.trim_end_matches('\n'));
    if is_truncated {
        text.push_str("\n[truncated: there is more than this]");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Outcome, OutputEncoding, Report};

    fn result(outcome: Outcome, stdout: &str) -> TaskResult {
        let report = Report { outcome, stdout: stdout.into(), ..Report::not_executed("") };
        report.into()
    }

    #[test]
    fn a_failing_program_is_a_result_and_one_that_was_not_run_an_error() {
        let told = of_task(result(Outcome::Exited(3), "x\n")).unwrap();
        assert_eq!(told.is_error, Some(false));
        assert_eq!(told.structured_content.unwrap()["exit_code"], 3);
        let refused = of_task(result(Outcome::NotExecuted { reason: "no image x".into() }, ""));
        assert_eq!(refused.unwrap_err(), "It was not run: no image x");
    }

    #[test]
    fn what_is_long_is_cut_with_a_mark() {
        let told = of_task(result(Outcome::Exited(0), &"x".repeat(STREAM as usize + 1))).unwrap();
        let value = told.structured_content.unwrap();
        assert_eq!((&value["stdout_truncated"], &value["stderr_truncated"]), (&true.into(), &false.into()));
        assert_eq!(value["stdout"].as_str().unwrap().len(), STREAM as usize);
        let text = serde_json::to_string(&told.content).unwrap();
        assert!(text.contains("[truncated: there is more than this]"), "{text}");
    }

    #[test]
    fn images_are_content_and_bounded() {
        let file = |bytes: Vec<u8>| FileResult {
            size: bytes.len() as u64,
            mode: String::new(),
            sha256: String::new(),
            text: OutputEncoding::Utf8.encode(bytes),
            base64: None,
            blob: None,
        };
        let png = |bytes| [b"\x89PNG\r\n\x1a\n", &vec![0; bytes][..]].concat();
        let told = [
            ("a.SVG", file(b"<svg>".into())),
            ("b.txt", file(b"plain".into())),
            ("c.png", file(b"no image".into())),
            ("d", file(png(IMAGES / 2))),
            ("e.png", file(png(IMAGES / 2))),
            ("f.jpg", file(vec![0xff, 0xd8, 0xff, 0xe0])),
        ];
        let (files, images) = files(told.map(|(path, file)| (path.to_owned(), file)).into());
        let types = images.iter().map(|image| match image {
            ContentBlock::Image(image) => image.mime_type.as_str(),
            other => panic!("{other:?}"),
        });
        assert_eq!(types.collect::<Vec<_>>(), ["image/svg+xml", "image/png", "image/jpeg"]);
        assert_eq!(images[0], ContentBlock::image("PHN2Zz4=", "image/svg+xml"));
        assert_eq!((files["a.SVG"].text.as_deref(), files["b.txt"].text.as_deref()), (None, Some("plain")));
        assert_eq!((files["c.png"].image, files["c.png"].text.as_deref()), (None, Some("no image")));
        assert!(files["e.png"].truncated && !files["d"].truncated);
    }
}
