//! `faber run` and `faber judge`: what a person at a terminal does with them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{FABER, Family, busybox, eventually, running};

/// A language that is compiled, by what busybox has.
const SCRIPT: &str = r#"
name = "script"
description = "Shell, checked before it is run"
base = "scratch"
copy = [
    { from = "busybox", to = "/bin/busybox" }, { from = "busybox", to = "/bin/sh" }, { from = "busybox", to = "/bin/cp" },
    { from = "busybox", to = "/bin/sleep" }, { from = "busybox", to = "/bin/cat" }, { from = "busybox", to = "/bin/tail" },
]
[language]
file = "main.script"
compile = ["sh", "-c", "sh -n main.script && cp main.script compiled"]
run = ["sh", "compiled"]
"#;

/// A directory to work in, with a store that has the language.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir_in("/var/tmp").unwrap());
        desk.write("images/script/image.toml", SCRIPT);
        fs::copy(busybox(), desk.path().join("images/script/busybox")).unwrap();
        let built = desk.faber(&["image", "build", "script"], "");
        assert!(built.status.success(), "{built:?}");
        desk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(FABER);
        command.args(args).current_dir(self.path()).env("FABER_DATA_DIR", self.path().join("data"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn faber(&self, args: &[&str], stdin: &str) -> Output {
        let mut child = self.command(args).spawn().unwrap();
        // Who does not read it may be gone.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Exit status, standard output and standard error.
    fn says(&self, args: &[&str], stdin: &str) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.faber(args, stdin);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    /// A problem: the sum of two numbers.
    fn with_sums() -> Self {
        let desk = Self::new();
        for (name, input, answer) in [("1", "1 2\n", "3\n"), ("2", "2 2\n", "4\n"), ("10", "10 5\n", "15\n")] {
            desk.write(&format!("tests/{name}.in"), input);
            desk.write(&format!("tests/{name}.out"), answer);
        }
        desk.write("tests/secret/1.in", "7 8");
        desk.write("tests/secret/1.ans", "15");
        desk.write("right.script", "read a b; echo $((a + b))");
        desk
    }
}

#[test]
fn a_run_has_the_callers_input_and_leaves_its_files_here() {
    let desk = Desk::new();
    assert_eq!(desk.says(&["run", "--", "wc", "-c"], &"x".repeat(300_000)).1.trim(), "300000");
    assert_eq!(desk.says(&["run", "--", "true"], &"x".repeat(1 << 20)), (0, String::new(), String::new()));
    let script = "cat > a.txt; mkdir -p d/e; echo b > d/e/b; chmod 700 a.txt";
    let args = ["run", "--output", "*.txt", "--output", "d/**=there", "--output", "no?", "--", "sh", "-c", script];
    assert_eq!(desk.says(&args, "a line\n"), (0, String::new(), String::new()));
    assert_eq!((desk.read("a.txt"), desk.read("there")), ("a line\n".into(), "b\n".into()));
    let missing = desk.says(&["run", "--output", "no", "--", "true"], "");
    assert_eq!(missing, (1, String::new(), "faber: the task left no file no\n".into()));
    assert_eq!(desk.says(&["run", "--output", "/etc/x", "--", "true"], "").0, 1);
    let merged = desk.says(&["run", "--merge-output", "--", "sh", "-c", "echo 1; echo 2 >&2; echo 3"], "");
    assert_eq!(merged, (0, "1\n2\n3\n".into(), String::new()));
    let (_, json, _) = desk.says(&["run", "--json", "--output", "f", "--", "sh", "-c", "cat > f"], "in");
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["files"]["f"]["text"], "in");
}

#[test]
fn a_run_reads_while_its_input_is_still_written() {
    let desk = Desk::new();
    let script = "read a; sleep 4713.5 & read b; kill $!; echo $a $b";
    let mut child = desk.command(&["run", "--", "sh", "-c", script]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    eventually("the first line is read", || running(&["sleep", "4713.5"]).len() == 1);
    stdin.write_all(b"two\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "one two\n");
}

#[test]
fn a_program_in_a_language_is_compiled_and_run() {
    let desk = Desk::with_sums();
    let run = |program: &str, stdin: &str| desk.says(&["run", "--language", "script", program, "an-argument"], stdin);
    assert_eq!(run("right.script", "3 4"), (0, "7\n".into(), String::new()));
    desk.write("args.script", "echo $1; exit 3");
    assert_eq!(run("args.script", ""), (3, "an-argument\n".into(), String::new()));
    desk.write("wrong.script", "if");
    let (status, stdout, stderr) = run("wrong.script", "");
    assert_eq!((status, stdout.as_str()), (2, ""));
    assert!(stderr.contains("syntax error") && stderr.ends_with("faber: compilation failed\n"), "{stderr}");
    assert_eq!(run("nowhere.script", "").0, 125);
}

#[test]
fn a_judged_program_has_a_line_for_each_test() {
    let desk = Desk::with_sums();
    let (status, stdout, stderr) = desk.says(&["judge", "right.script", "tests"], "");
    assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
    let order: Vec<&str> = stdout.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(order, ["1", "2", "10", "secret/1", "Accepted:"]);
    assert!(stdout.contains("Accepted: 4 of 4 accepted, at most "), "{stdout}");

    desk.write("wrong.script", "read a b; echo $((a + a))");
    let (status, stdout, _) = desk.says(&["judge", "wrong.script", "tests"], "");
    assert_eq!(status, 1);
    assert!(stdout.contains("WrongAnswer: 1 of 4") && stdout.contains(r#"expected "3", got "2""#), "{stdout}");

    let (status, json, _) = desk.says(&["judge", "--json", "--stop", "wrong.script", "tests"], "");
    let judgement: Value = serde_json::from_str(&json).unwrap();
    let verdicts: Vec<&str> =
        judgement["cases"].as_array().unwrap().iter().map(|case| case["verdict"].as_str().unwrap()).collect();
    assert_eq!((status, verdicts), (1, vec!["WrongAnswer", "Skipped", "Skipped", "Skipped"]));
    assert_eq!(desk.says(&["judge", "right.script", "tests/2.in"], "").0, 0);
}

#[test]
fn a_judged_program_meets_its_limits_and_checkers() {
    let desk = Desk::with_sums();
    let verdicts = |args: &[&str]| {
        let (_, json, stderr) = desk.says(&[&["judge", "--json"], args].concat(), "");
        let judgement: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}{stderr}"));
        judgement["verdict"].as_str().unwrap().to_owned()
    };
    desk.write("slow.script", "while :; do :; done");
    assert_eq!(verdicts(&["--cpu-time", "100ms", "slow.script", "tests/1.in"]), "TimeLimitExceeded");
    desk.write("fat.script", "tail /dev/zero");
    assert_eq!(verdicts(&["--memory", "16M", "fat.script", "tests/1.in"]), "MemoryLimitExceeded");
    desk.write("broken.script", "fi");
    assert_eq!(verdicts(&["broken.script", "tests"]), "CompileError");
    desk.write("crash.script", "exit 3");
    assert_eq!(verdicts(&["crash.script", "tests"]), "RuntimeError");
    desk.write("spaces.script", "read a b; echo \"  $((a + b))  \"");
    assert_eq!(verdicts(&["--compare", "tokens", "spaces.script", "tests"]), "Accepted");
    assert_eq!(verdicts(&["spaces.script", "tests"]), "WrongAnswer");
    desk.write("check.script", "read out < output; read right < expected; test \"$out\" -ge \"$right\"");
    desk.write("more.script", "read a b; echo $((a + b + 1))");
    assert_eq!(verdicts(&["--checker", "check.script", "more.script", "tests"]), "Accepted");
    desk.write("talk.script", "read a b < input; echo $a; echo $b; read sum; test $sum = $((a + b))");
    desk.write("listen.script", "read a; read b; echo $((a + b))");
    assert_eq!(verdicts(&["--interactor", "talk.script", "listen.script", "tests"]), "Accepted");
}

#[test]
fn what_cannot_be_judged_says_why() {
    let desk = Desk::with_sums();
    let complains = |args: &[&str], part: &str| {
        let (status, stdout, stderr) = desk.says(&[&["judge"], args].concat(), "");
        assert_eq!((status, stdout.as_str()), (125, ""), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    };
    complains(&["right.script", "nowhere"], "read nowhere: No such file or directory");
    fs::create_dir(desk.path().join("empty")).unwrap();
    complains(&["right.script", "empty"], "there are no tests in empty: a test is NAME.in");
    complains(&["right.py", "tests"], "there is no image python for right.py: `faber image build python`");
    complains(&["right.xyz", "tests"], "no image here has programs whose names end as right.xyz");
    complains(&["nowhere.script", "tests"], "open nowhere.script");
    desk.write("tests/4.in", "1 1");
    complains(&["right.script", "tests"], "tests/4.in has no answer beside it");
}

#[test]
fn an_interrupted_judgement_leaves_nothing() {
    let desk = Desk::with_sums();
    desk.write("sleeps.script", "sleep 4712.25");
    let judge = desk.command(&["judge", "sleeps.script", "tests"]).spawn().unwrap();
    eventually("cases run", || !running(&["sleep", "4712.25"]).is_empty());
    let family = Family::of(judge.id() as i32);
    kill(Pid::from_raw(judge.id() as i32), Signal::SIGINT).unwrap();
    let output = judge.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    family.assert_gone();
    assert!(running(&["sleep", "4712.25"]).is_empty());
}

/// What is refused is told once, and for people.
#[test]
fn a_limit_that_is_refused_is_said_once() {
    let says = |args: &[&str]| {
        let output = Command::new(FABER).args(["run"]).args(args).args(["--", "true"]).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(
        says(&["--memory", "10"]),
        "faber: the task was not run: memory_limit 10 bytes is below 4194304 (4 MiB), the least a task can start with\n"
    );
    assert_eq!(
        says(&["--wall-time", "1h"]),
        "faber: the task was not run: wall_time_limit 3600000000000 (3600 s) is above this server's maximum of \
         600000000000 (600 s)\n"
    );
    assert_eq!(
        says(&["--file", "/dev/null:../x"]),
        "faber: the task was not run: file path \"../x\" has a '..': paths stay inside the workspace\n"
    );
    let run =
        |args: &[&str]| String::from_utf8(Command::new(FABER).arg("run").args(args).output().unwrap().stderr).unwrap();
    assert_eq!(run(&["--wall-time", "200ms", "--", "sleep", "9"]), "faber: wall time limit of 200 ms exceeded\n");
    assert_eq!(run(&["--max-output", "1K", "--", "yes"]), "faber: output limit of 1 KiB exceeded\n");
}
