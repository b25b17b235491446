//! An interpreter that is started before any task is known.
//!
//! It waits in a container of its own, which no task has been in, and takes one program, which is then the container's task. How it is
//! told: it writes one byte to its standard output when it is ready; then it reads from its standard input a decimal length and a
//! newline, and so many bytes after that: how many arguments there are, the arguments (the command first), and NAME=VALUE of each
//! variable that the task adds, with a NUL after each. What follows is the program's own standard input.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Stands for an argument that is no option, and all after it.
const ANY: &str = "*";

/// The `[prepare]` section of a definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// The command that starts it, with its arguments.
    pub run: Vec<String>,
    /// Commands that it can take, as they are written, with their arguments. A `*` at the end is an argument that does not begin with
    /// `-`, and whatever follows.
    pub takes: Vec<Vec<String>>,
    /// It is not to take a task that sets a variable whose name begins so: what is read once, when an interpreter starts.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Its heap is sized when it starts: it takes only tasks with the memory limit that was in force then.
    #[serde(default)]
    pub same_memory: bool,
}

impl Prepare {
    /// What keeps it from being of use, if anything.
    pub fn mistake(&self) -> Option<&'static str> {
        let is_command = |words: &Vec<String>| words.first().is_some_and(|first| !first.is_empty() && first != ANY);
        if !is_command(&self.run) {
            return Some("prepare.run is empty");
        }
        if self.takes.is_empty() || !self.takes.iter().all(is_command) {
            return Some("prepare.takes names no command");
        }
        None
    }

    /// Whether it can take this command, of a task that adds these variables.
    pub fn fits(&self, command: &str, args: &[String], env: &BTreeMap<String, String>) -> bool {
        let is_read = |name: &String| self.environment.iter().any(|start| name.starts_with(start.as_str()));
        !env.keys().any(is_read) && self.takes.iter().any(|form| is_of(form, command, args))
    }
}

fn is_of(form: &[String], command: &str, args: &[String]) -> bool {
    let Some((first, rest)) = form.split_first() else { return false };
    if first != command {
        return false;
    }
    match rest.split_last() {
        Some((last, fixed)) if last == ANY => {
            args.strip_prefix(fixed).and_then(<[String]>::first).is_some_and(|next| !next.starts_with('-'))
        }
        _ => rest == args,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn it_takes_what_it_says() {
        let takes = ["python3 *", "python3 -c *", "java -Xint Main"].map(words).to_vec();
        let prepare = Prepare { run: words("python3 /a"), takes, environment: words("PYTHON LC_"), same_memory: false };
        let fits = |text: &str, env: &str| {
            let env = words(env).into_iter().map(|name| (name, String::new())).collect();
            let words = words(text);
            prepare.fits(&words[0], &words[1..], &env)
        };
        assert!(fits("python3 main.py", ""));
        assert!(fits("python3 main.py -v a", "A"));
        assert!(fits("python3 -c print(1) a", ""));
        assert!(fits("java -Xint Main", ""));
        for other in ["python3", "python3 -u main.py", "python3 -c", "python3 -c -x", "java -Xint Main a", "java Main"]
        {
            assert!(!fits(other, ""), "{other}");
        }
        assert!(!fits("python3 main.py", "PYTHONPATH"));
        assert!(!fits("python3 main.py", "A LC_ALL"));
        assert!(Prepare { takes: vec![words("*")], ..prepare.clone() }.mistake().is_some());
        assert!(Prepare { run: Vec::new(), ..prepare.clone() }.mistake().is_some());
        assert_eq!(prepare.mistake(), None);
    }
}
