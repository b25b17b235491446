//! Jobe (trampgeek/jobe), what Moodle's CodeRunner calls: runs, files and languages.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{decode_base64, version};
use crate::task::{Bounds, Compilation, Digest, Language, MINIMUM, Offer, Status, TaskRequest, TaskResult, Text};

/// Its languages, and the image that each has here.
pub const LANGUAGES: [(&str, &str); 8] = [
    ("c", "c"),
    ("cpp", "cpp"),
    ("java", "java"),
    ("nodejs", "node"),
    ("octave", "octave"),
    ("pascal", "pascal"),
    ("php", "php"),
    ("python3", "python"),
];

/// Its megabyte: 1000 KiB.
const MEGABYTE: f64 = 1_024_000.0;
/// Seconds: what it allows at most, unless its operator says something else.
const MOST_CPU_TIME: u64 = 120;
/// Letters and digits of a file's id.
const ID: std::ops::RangeInclusive<usize> = 8..=128;
/// Bytes of what a compiler says.
const COMPILER: u64 = 1 << 20;
/// With this program it is tried how a client takes an overload.
const OVERLOAD: &str = "!** TESTING OVERLOAD EXCEPTION **!";

/// Its languages whose images are here, as `GET /languages` tells them.
pub fn languages(images: &BTreeMap<String, Vec<String>>) -> Vec<(&'static str, String)> {
    let of = |&(language, image): &(&'static str, &str)| Some((language, version(images.get(image)?).to_string()));
    LANGUAGES.iter().filter_map(of).collect()
}

/// What a request stands for: a task in a language whose commands are the request's.
#[derive(Debug)]
pub struct Order {
    pub task: TaskRequest,
    pub offers: Vec<Offer>,
    pub language: &'static str,
}

/// Why it stands for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// 400 with this message.
    Message(String),
    /// 404: a file of its list is not here.
    MissingFile,
    /// As if there were no room.
    Overload,
}

fn refused<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Message(message.into()))
}

/// `find` has the blob that a file's id stands for.
///
/// # Errors
/// The first of what Jobe looks at, in its order, that is not as it has to be.
pub fn order(
    body: &[u8],
    find: &mut dyn FnMut(&str) -> Option<Digest>,
    bounds: &Bounds,
    mut offers: Vec<Offer>,
) -> Result<Order, Refusal> {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(body) else {
        return refused("Non-JSON post data received");
    };
    let Some(Value::Object(run)) = fields.remove("run_spec") else {
        return refused("No run_spec attribute found in post data");
    };
    let code = required(&run, "sourcecode")?;
    let asked = required(&run, "language_id")?.to_lowercase();
    let Some((language, image)) = LANGUAGES.into_iter().find(|(language, _)| *language == asked) else {
        return refused(format!("Language '{asked}' is not known"));
    };
    let is_its = |offer: &&mut Offer| offer.id.name.as_str() == image;
    let Some(own) = offers.iter_mut().find(is_its).and_then(|offer| offer.language.as_mut()) else {
        return refused(format!("Language '{language}' is not known on this server: faber image build {image}"));
    };
    let input = text(&run, "input")?.unwrap_or_default();
    let parameters = match run.get("parameters") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(parameters)) => parameters.clone(),
        // PHP has no other empty object.
        Some(Value::Array(list)) if list.is_empty() => Map::new(),
        Some(_) => return refused("The parameters of the run_spec must be an object"),
    };
    let most = MOST_CPU_TIME.min(bounds.max.cpu_time / SECOND);
    if number(&parameters, "cputime", 0.0) as u64 > most {
        return refused(format!("cputime exceeds maximum allowed on this Jobe server ({most} secs)"));
    }
    let name = text(&run, "sourcefilename")?.filter(|name| !name.is_empty());
    if name.is_some_and(|name| !is_file_name(name)) {
        return refused("The sourcefilename for the run_spec is illegal");
    }
    // Older CodeRunners call every program of Java so.
    let name = name.filter(|name| *name != "prog.java").map_or_else(|| file_name(language, code), str::to_owned);
    let list = match run.get("file_list") {
        None | Some(Value::Null) => &[],
        Some(Value::Array(list)) => list.as_slice(),
        Some(other) => return refused(format!("Invalid file specifier: {other}")),
    };
    let list: Vec<(&str, &str)> = list.iter().map(file_of_list).collect::<Result<_, _>>()?;
    if list.iter().any(|(_, file)| *file == name) {
        return refused(format!("Invalid file specifier: {name} is the name of the program"));
    }
    let arguments = Arguments::of(&parameters)?;
    if code == OVERLOAD {
        return Err(Refusal::Overload);
    }
    let mut files = Map::new();
    for (id, file) in list {
        let blob = find(id).ok_or(Refusal::MissingFile)?;
        files.insert(file.into(), json!({ "blob": blob.to_string() }));
    }
    *own = commands(language, &name, &arguments, own);
    let limits = Limits { language, parameters: &parameters, bounds, most };
    let task = json!({
        "language": image, "code": code, "stdin": input, "files": files,
        "on_output_limit": "discard", "output_encoding": "utf8", "detail": true,
        "resource_limits": limits.of_the_run(), "compile_limits": limits.of_the_compilation(),
    });
    let task = serde_json::from_value(task).map_err(|error| Refusal::Message(error.to_string()))?;
    Ok(Order { task, offers, language })
}

fn required<'a>(run: &'a Map<String, Value>, name: &str) -> Result<&'a str, Refusal> {
    text(run, name)?.map_or_else(|| refused(format!("run_spec is missing the required attribute '{name}'")), Ok)
}

fn text<'a>(run: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Refusal> {
    match run.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => refused(format!("The {name} of the run_spec must be a string")),
    }
}

/// A number, or a string that is one; what is none counts as if it were not there.
fn number(parameters: &Map<String, Value>, name: &str, default: f64) -> f64 {
    let number = match parameters.get(name) {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number: &f64| number.is_finite()).unwrap_or(default)
}

/// Nothing that is special in a path, a shell or an address, and no hidden file.
fn is_file_name(name: &str) -> bool {
    let is_special = |c: char| c.is_control() || "<>:\"/\\|?*\u{a0}\u{ad}#[]@!$&'()+,;={}^~`".contains(c);
    !name.starts_with(['.', '-']) && !name.contains(is_special) && name.len() <= 255
}

/// `[id, name]`, with or without a third.
fn file_of_list(file: &Value) -> Result<(&str, &str), Refusal> {
    let invalid = || refused(format!("Invalid file specifier: {file}"));
    let (id, name) = match file.as_array().map(Vec::as_slice) {
        Some([Value::String(id), Value::String(name)] | [Value::String(id), Value::String(name), _]) => (id, name),
        _ => return invalid(),
    };
    let plain = |c: char| c.is_ascii_alphanumeric();
    let is_name = name.contains(plain) && name.chars().all(|c| plain(c) || matches!(c, '-' | '_' | '.'));
    if is_id(id) && is_name && name.len() <= 255 { Ok((id, name)) } else { invalid() }
}

/// Whether a file may be called so.
pub fn is_id(id: &str) -> bool {
    ID.contains(&id.len()) && id.bytes().all(|c| c.is_ascii_alphanumeric())
}

/// What a program is called that has no name.
fn file_name(language: &str, code: &str) -> String {
    let extension = match language {
        "cpp" => "cpp",
        "java" => return format!("{}.java", public_class(code).unwrap_or("prog")),
        "nodejs" => "js",
        "octave" => "m",
        "pascal" => "pas",
        "php" => "php",
        "python3" => "py",
        _ => "c",
    };
    format!("prog.{extension}")
}

/// The name of the public class, which has a method `main` behind it.
fn public_class(code: &str) -> Option<&str> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut places = code.match_indices("public");
    places.find_map(|(at, word)| {
        let rest = code[at + word.len()..].strip_prefix(char::is_whitespace)?.trim_start().strip_prefix("class")?;
        let name = rest.strip_prefix(char::is_whitespace)?.trim_start();
        let end = name.find(|c| !is_part(c)).unwrap_or(name.len());
        let is_alone = !code[..at].ends_with(is_part);
        (is_alone && end > 0 && name[end..].contains("void main")).then(|| &name[..end])
    })
}

/// What a request adds to the commands of its language: each a piece of a shell's command line.
struct Arguments {
    compile: Option<String>,
    link: String,
    interpreter: Option<String>,
    run: String,
    main_class: Option<String>,
}

impl Arguments {
    fn of(parameters: &Map<String, Value>) -> Result<Self, Refusal> {
        let list =
            |name: &str| match parameters.get(name).map(|list| serde_json::from_value::<Vec<String>>(list.clone())) {
                None => Ok(None),
                Some(Ok(list)) => Ok(Some(list.join(" "))),
                Some(Err(_)) => refused(format!("The parameter {name} must be a list of strings")),
            };
        let main_class = match parameters.get("main_class") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(_) => return refused("The parameter main_class must be a string"),
        };
        Ok(Self {
            compile: list("compileargs")?,
            link: list("linkargs")?.unwrap_or_default(),
            interpreter: list("interpreterargs")?,
            run: list("runargs")?.unwrap_or_default(),
            main_class,
        })
    }
}

/// How Jobe compiles and runs a program; `own` is how this server does.
fn commands(language: &str, file: &str, arguments: &Arguments, own: &Language) -> Language {
    use Piece::{Shell, Word};
    let compile = |default| Shell(arguments.compile.as_deref().unwrap_or(default));
    let interpreter = |default| Shell(arguments.interpreter.as_deref().unwrap_or(default));
    let (link, run) = (Shell(&arguments.link), Shell(&arguments.run));
    let (program, path) = (format!("{file}.exe"), format!("./{file}.exe"));
    let of_gcc = |gcc, default| {
        let compile = [Word(gcc), compile(default), Word("-o"), Word(&program), Word(file), link];
        (command(&compile), command(&[Word(&path), interpreter(""), run]))
    };
    let (compile, run) = match language {
        "c" => of_gcc("gcc", "-Wall -Werror -std=c99 -x c"),
        "cpp" => of_gcc("g++", "-Wall -Werror"),
        "pascal" => {
            let output = format!("-o{program}");
            let compile = [Word("fpc"), compile("-vew -Se"), Word(&output), Word(file)];
            (command(&compile), command(&[Word(&path), interpreter(""), run]))
        }
        "java" => {
            // Its own options with their places for what the JVM loads fastest; the file, and the class, are the last words.
            let [javac, java] =
                [&own.compile, &own.run].map(|words| words.split_last().map_or(&[][..], |(_, words)| words));
            let class = arguments.main_class.as_deref().unwrap_or_else(|| file.split('.').next().unwrap_or_default());
            let javac: Vec<_> = javac.iter().map(|word| Word(word)).chain([compile(""), Word(file)]).collect();
            let java =
                java.iter().map(|word| Word(word)).chain([interpreter("-Xrs -Xss8m -Xmx200m"), Word(class), run]);
            (command(&javac), command(&java.collect::<Vec<_>>()))
        }
        "nodejs" => (Vec::new(), command(&[Word("node"), interpreter("--use_strict"), Word(file), run])),
        "octave" => {
            let words = [Word("octave-cli"), interpreter("--norc --no-window-system --silent -H"), Word(file), run];
            (Vec::new(), command(&words))
        }
        "php" => {
            let words = [Word("php"), interpreter("--no-php-ini"), Word(file), run];
            (command(&[Word("php"), Word("-l"), Word(file)]), command(&words))
        }
        _ => {
            let words = [Word("python3"), interpreter("-BE"), Word(file), run];
            (command(&[Word("python3"), Word("-m"), Word("py_compile"), Word(file)]), command(&words))
        }
    };
    Language { file: file.to_owned(), compile, run }
}

/// A part of a command.
#[derive(Debug, Clone, Copy)]
enum Piece<'a> {
    Word(&'a str),
    /// Words as a shell reads them.
    Shell(&'a str),
}

/// A command of these pieces: by a shell where one has to read them.
fn command(pieces: &[Piece]) -> Vec<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c.is_whitespace() || "-_./=+:,@%".contains(c);
    let plain = pieces.iter().all(|piece| {
        matches!(piece, Piece::Word(_)) || matches!(piece, Piece::Shell(text) if text.chars().all(is_plain))
    });
    if plain {
        let words = pieces.iter().flat_map(|piece| match piece {
            Piece::Word(word) => vec![(*word).to_owned()],
            Piece::Shell(text) => text.split_whitespace().map(str::to_owned).collect(),
        });
        return words.collect();
    }
    let line: Vec<String> = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Word(word) => format!("'{}'", word.replace('\'', r"'\''")),
            Piece::Shell(text) => (*text).to_owned(),
        })
        .collect();
    vec!["sh".into(), "-c".into(), line.join(" ")]
}

const SECOND: u64 = 1_000_000_000;

/// What a request's parameters are in a task's units.
struct Limits<'a> {
    language: &'static str,
    parameters: &'a Map<String, Value>,
    bounds: &'a Bounds,
    /// Seconds of CPU time.
    most: u64,
}

impl Limits<'_> {
    fn of_the_run(&self) -> Value {
        let stream = number(self.parameters, "streamsize", 2.0);
        let max = self.bounds.max.output;
        let output = if stream > 0.0 { ((2.0 * stream * MEGABYTE) as u64).min(max) } else { max };
        self.limits([0.0; 4], output)
    }

    fn of_the_compilation(&self) -> Value {
        self.limits([20.0, 2.0, 500.0, 5.0], COMPILER.min(self.bounds.max.output))
    }

    /// `least`: megabytes of a file, seconds, megabytes of memory, processes. 0 and less is no limit of its own.
    fn limits(&self, least: [f64; 4], output: u64) -> Value {
        let max = &self.bounds.max;
        let (memory, processes) = match self.language {
            "java" => (0.0, 256.0),
            "octave" => (500.0, 30.0),
            "python3" => (1000.0, 30.0),
            _ => (400.0, 30.0),
        };
        let asked = |name, default, least: f64| {
            let asked = number(self.parameters, name, default);
            (asked > 0.0).then(|| asked.max(least))
        };
        let [least_file, least_time, least_memory, least_processes] = least;
        let cpu_time = asked("cputime", 5.0, least_time).unwrap_or(self.most as f64) * SECOND as f64;
        let time = |nanoseconds: f64, max: u64| (nanoseconds as u64).clamp(MINIMUM.wall_time, max);
        // The JVM looks after its own memory, within what its image has.
        let memory = (self.language != "java").then(|| match asked("memorylimit", memory, least_memory) {
            Some(megabytes) => ((megabytes * MEGABYTE) as u64).clamp(MINIMUM.memory, max.memory),
            None => max.memory,
        });
        // A recursion without end meets this, and is a runtime error as there.
        let stack = memory.map(|memory| memory / 2);
        let floor = if self.language == "java" { processes } else { least_processes };
        let processes =
            asked("numprocs", processes, floor).map_or(max.processes, |n| (n as u64).clamp(1, max.processes));
        let file = asked("disklimit", 20.0, least_file).map(|megabytes| (megabytes * MEGABYTE) as u64);
        json!({
            "cpu_time_limit": time(cpu_time, max.cpu_time), "wall_time_limit": time(2.0 * cpu_time, max.wall_time),
            "memory_limit": memory, "stack_limit": stack, "max_processes": processes, "max_file_size": file, "max_output_size": output,
        })
    }
}

/// The answer to a request that could be run.
#[derive(Debug, Serialize)]
pub struct Ran {
    /// The directory, which is gone.
    run_id: Option<&'static str>,
    outcome: u8,
    cmpinfo: Text,
    stdout: Text,
    stderr: Text,
}

const COMPILE_ERROR: u8 = 11;
const RUNTIME_ERROR: u8 = 12;
const TIME_LIMIT: u8 = 13;
const SUCCESS: u8 = 15;
const MEMORY_LIMIT: u8 = 17;
const INTERNAL_ERROR: u8 = 20;
const SERVER_OVERLOAD: u8 = 21;

impl Ran {
    fn new(outcome: u8) -> Self {
        let [cmpinfo, stdout, stderr] = [(); 3].map(|()| Text::utf8(Bytes::new()));
        Self { run_id: None, outcome, cmpinfo, stdout, stderr }
    }

    /// When Faber itself failed.
    pub fn of_a_fault(message: &str) -> Self {
        Self { stderr: Text::utf8(message.to_owned().into()), ..Self::new(INTERNAL_ERROR) }
    }

    /// When there is no room.
    pub fn of_an_overload() -> Self {
        Self { run_id: Some("0"), ..Self::new(SERVER_OVERLOAD) }
    }

    pub fn of(language: &str, mut result: TaskResult) -> Self {
        if let Some(compilation) = result.compile.take().and_then(|Compilation(compilation)| compilation) {
            if compilation.status == Status::NotExecuted {
                return Self::of_a_fault(&compilation.error.unwrap_or_default());
            }
            if let Some(said) = complaint(language, &compilation) {
                return Self { cmpinfo: clean(said), ..Self::new(COMPILE_ERROR) };
            }
        }
        let (mut stdout, mut stderr) = (bytes_of(&result.stdout), bytes_of(&result.stderr));
        let mut signal = None;
        if let Some(detail) = result.detail {
            [(&mut stdout, detail.stdout_truncated), (&mut stderr, detail.stderr_truncated)]
                .into_iter()
                .filter(|(_, is_cut)| *is_cut)
                .for_each(|(bytes, _)| end_of_character(bytes));
            signal = detail.signal;
        }
        let outcome = match (result.status, signal) {
            (Status::NotExecuted, _) => return Self::of_a_fault(&result.error.unwrap_or_default()),
            (Status::Timeout | Status::CpuLimitExceeded, _) => {
                stderr.clear();
                TIME_LIMIT
            }
            (Status::MemoryLimitExceeded, _) => MEMORY_LIMIT,
            // What Jobe itself says of this signal it takes away, with all else.
            (_, Some(signal)) if signal == "SIGSEGV" => {
                stderr.clear();
                RUNTIME_ERROR
            }
            (_, Some(_)) => {
                let number = result.exit_code.unwrap_or_default() - 128;
                let warning = format!("warning: command terminated with signal {number}\n");
                stderr = [&stderr[..], warning.as_bytes()].concat().into();
                RUNTIME_ERROR
            }
            (_, None) => {
                if let Some(error) = result.error.filter(|_| stderr.is_empty()) {
                    stderr = error.into();
                }
                if stderr.is_empty() { SUCCESS } else { RUNTIME_ERROR }
            }
        };
        Self { stdout: clean(stdout), stderr: clean(stderr), ..Self::new(outcome) }
    }

    /// Whatever of it the programs have written.
    pub fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        [&mut self.cmpinfo, &mut self.stdout, &mut self.stderr].into_iter().for_each(each);
    }
}

/// What a compiler says against a program, if it does: some warn on stderr and succeed, which counts, too.
fn complaint(language: &str, compilation: &TaskResult) -> Option<Bytes> {
    let (stdout, stderr) = (bytes_of(&compilation.stdout), bytes_of(&compilation.stderr));
    let has_failed = compilation.status != Status::Success;
    if !has_failed && (stderr.is_empty() || language == "pascal") {
        return None;
    }
    let parts = match language {
        "pascal" | "php" | "python3" => vec![stdout, stderr],
        _ if stderr.is_empty() => vec![stdout],
        _ => vec![stderr],
    };
    let mut said = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(&b'\n');
    if said.is_empty() || compilation.status != Status::Failure {
        let error = compilation.error.as_deref().unwrap_or("compilation failed");
        said.extend_from_slice(error.as_bytes());
    }
    Some(said.into())
}

fn bytes_of(text: &Option<Text>) -> Bytes {
    text.as_ref().map(|text| text.bytes().clone()).unwrap_or_default()
}

/// Bytes that a result takes beside itself where it is no text and has to be escaped.
pub fn escaped_size(result: &TaskResult) -> u64 {
    let compilation = result.compile.as_ref().and_then(|Compilation(compilation)| compilation.as_deref());
    let texts = [Some(result), compilation].into_iter().flatten().flat_map(|result| [&result.stdout, &result.stderr]);
    let sizes = texts.flatten().map(Text::bytes).filter(|bytes| std::str::from_utf8(bytes).is_err());
    sizes.map(|bytes| 4 * bytes.len() as u64).sum()
}

/// Takes away the beginning of a character at the end, where the rest was cut off.
fn end_of_character(bytes: &mut Bytes) {
    if let Err(error) = std::str::from_utf8(bytes)
        && error.error_len().is_none()
    {
        bytes.truncate(error.valid_up_to());
    }
}

/// Text as it is; of what is no UTF-8, each byte that is no character of ASCII or is a control character as `\xNN`.
fn clean(bytes: Bytes) -> Text {
    if std::str::from_utf8(&bytes).is_ok() {
        return Text::utf8(bytes);
    }
    let mut escaped = Vec::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\n' | b'\r' | b'\t' | b' '..=b'~' => escaped.push(byte),
            _ => escaped.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
        }
    }
    Text::utf8(escaped.into())
}

/// The bytes of a file that is put under this id.
///
/// # Errors
/// What of it is not as it has to be.
pub fn contents(id: &str, body: &[u8]) -> Result<Vec<u8>, String> {
    if !is_id(id) {
        let (least, most) = ID.into_inner();
        return Err(format!("put: the file id must have {least} to {most} letters and digits"));
    }
    let fields = serde_json::from_slice::<Map<String, Value>>(body).unwrap_or_default();
    let text = fields.get("file_contents").and_then(Value::as_str);
    let text = text.ok_or("put: missing file_contents parameter")?;
    decode_base64(text).ok_or_else(|| format!("put: contents of file {id} are not valid base-64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every language is one of this repository's definitions.
    #[test]
    fn the_table_of_languages_is_whole() {
        let images = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
        for (language, image) in LANGUAGES {
            let definition = std::fs::read_to_string(images.join(image).join("image.toml"));
            assert!(definition.is_ok_and(|text| text.contains("[language]")), "{language}: {image}");
        }
    }

    #[test]
    fn a_shell_reads_what_has_to_be_read_by_one() {
        use Piece::{Shell, Word};
        let plain = command(&[Word("gcc"), Shell("-Wall -x c"), Word("a b.c"), Shell("")]);
        assert_eq!(plain, ["gcc", "-Wall", "-x", "c", "a b.c"]);
        let read = command(&[Word("python3"), Shell(r#"-c "print(1)""#), Word("it's.py")]);
        assert_eq!(read, ["sh", "-c", r#"'python3' -c "print(1)" 'it'\''s.py'"#]);
    }

    #[test]
    fn javas_public_class_names_its_file() {
        let name = |code: &str| file_name("java", code);
        assert_eq!(name("public class Hello { public static void main(String[] a) {} }"), "Hello.java");
        assert_eq!(name("class A {}\npublic\tclass  B_1{\n static public void main(String a[]) {} }"), "B_1.java");
        assert_eq!(name("nonpublic class A { void main() {} }"), "prog.java");
        assert_eq!(name("public class A {}"), "prog.java");
    }

    #[test]
    fn bytes_that_are_no_text_are_escaped() {
        let of = |bytes: &[u8]| clean(bytes.to_vec().into()).plain().unwrap();
        assert_eq!(of("Un rôle\u{1}\n".as_bytes()), "Un rôle\u{1}\n");
        assert_eq!(of(b"Hello\t\x01\x06\xc0\xc9~\x7f\n"), "Hello\t\\x01\\x06\\xc0\\xc9~\\x7f\n");
        let mut cut = Bytes::from_static(&"aé".as_bytes()[..2]);
        end_of_character(&mut cut);
        assert_eq!(cut, "a");
    }

    #[test]
    fn names_that_could_mean_something_else_are_refused() {
        assert!(["test.py", "a b.c", "é.py", "x-y_z"].into_iter().all(is_file_name));
        assert!(!["../x", ".x", "-o", "a/b", "a;b", "a$b", "a\nb", "~"].into_iter().any(is_file_name));
        let list = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert!(file_of_list(&list(r#"["0123abcd", "a-b_c.txt"]"#)).is_ok());
        for bad in [
            r#"["0123abc", "a"]"#,
            r#"["0123-abcd", "a"]"#,
            r#"["0123abcd", ".."]"#,
            r#"["0123abcd", "a/b"]"#,
            "[]",
            "1",
        ] {
            assert!(file_of_list(&list(bad)).is_err(), "{bad}");
        }
    }
}
