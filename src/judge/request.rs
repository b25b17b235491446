//! A judgement as a client asks for it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::task::{
    Compare, CompareForms, Content, ContentForms, FileForms, FileRequest, Object, ResourceLimits, TaskRequest,
    TaskResult, Verdict, objects, optional_object, or_default, unique_keys,
};

/// A program against cases: compiled once, run for each, each with a verdict.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "language": "python", "code": "a, b = map(int, input().split())\nprint(a + b)",
    "cases": [{"name": "1", "stdin": "1 2\n", "expected": "3\n"}], "compare": "tokens"
}))]
pub struct JudgeRequest {
    /// The program's language, with `code`.
    #[serde(default)]
    #[schema(example = "cpp")]
    pub language: Option<String>,
    #[serde(default)]
    #[schema(value_type = Option<ContentForms>, example = "print(sum(map(int, input().split())))")]
    pub code: Option<Content>,
    /// In place of `language` and `code`: what to run, with `files` and `image`.
    #[serde(default)]
    #[schema(example = "python3")]
    pub command: Option<String>,
    /// Arguments of every case that has none of its own.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable, example = json!([]))]
    pub args: Vec<String>,
    #[serde(default, deserialize_with = "unique_keys")]
    #[schema(nullable, example = json!({"LANG": "C.UTF-8"}))]
    pub env: BTreeMap<String, String>,
    /// Files of the workspace in every case, and in the compilation.
    #[serde(default, deserialize_with = "unique_keys")]
    #[schema(nullable, value_type = BTreeMap<String, FileForms>, example = json!({"data.txt": "1 2\n"}))]
    pub files: BTreeMap<String, FileRequest>,
    #[serde(default)]
    #[schema(example = "python")]
    pub image: Option<String>,
    /// Limits of each case.
    #[serde(default, deserialize_with = "optional_object")]
    pub resource_limits: Option<ResourceLimits>,
    #[serde(default, deserialize_with = "optional_object")]
    pub compile_limits: Option<ResourceLimits>,
    #[serde(deserialize_with = "objects")]
    pub cases: Vec<CaseRequest>,
    /// How each case's output is compared with what was expected, or `{"checker": task}`: a program that decides.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<CompareForms>)]
    pub compare: Comparison,
    /// In place of `compare`: a program that talks with the solution, by pipes, and decides; what it says to stderr is the
    /// case's message.
    #[serde(default, deserialize_with = "optional_object")]
    #[schema(example = json!(null))]
    pub interactor: Option<TaskRequest>,
    /// Whether cases go on after one that is not accepted.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    pub stop: Stop,
    /// true: all of each case's output is in the answer; else at most 1 KiB of it.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    pub outputs: bool,
}

/// One case.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "1", "stdin": "1 2\n", "expected": "3\n"}))]
pub struct CaseRequest {
    /// Told in the answer; the case's number without it.
    #[serde(default)]
    #[schema(example = "1")]
    pub name: Option<String>,
    #[serde(default)]
    #[schema(value_type = Option<ContentForms>, example = "1 2\n")]
    pub stdin: Option<Content>,
    /// The right output.
    #[serde(default)]
    #[schema(value_type = Option<ContentForms>, example = "3\n")]
    pub expected: Option<Content>,
    /// In place of the request's.
    #[serde(default)]
    #[schema(example = json!([]))]
    pub args: Option<Vec<String>>,
    /// Added to the request's.
    #[serde(default, deserialize_with = "unique_keys")]
    #[schema(nullable, example = json!({}))]
    pub env: BTreeMap<String, String>,
    /// Added to the request's.
    #[serde(default, deserialize_with = "unique_keys")]
    #[schema(nullable, value_type = BTreeMap<String, FileForms>, example = json!({}))]
    pub files: BTreeMap<String, FileRequest>,
    /// What is given here takes the place of the request's.
    #[serde(default, deserialize_with = "optional_object")]
    pub resource_limits: Option<ResourceLimits>,
}

/// What decides whether an output is right.
#[derive(Debug, Clone, PartialEq)]
pub enum Comparison {
    With(Compare),
    Checker(Box<TaskRequest>),
}

impl Default for Comparison {
    fn default() -> Self {
        Self::With(Compare::default())
    }
}

impl<'de> Deserialize<'de> for Comparison {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A word, or an object with one key.
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Form {
            Exact,
            Lines,
            Tokens,
            Float(f64),
            Checker(Object<Box<TaskRequest>>),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Exact => Self::With(Compare::Exact),
            Form::Lines => Self::With(Compare::Lines),
            Form::Tokens => Self::With(Compare::Tokens),
            Form::Float(eps) => {
                let expected = "float: expected a tolerance that is finite and not negative";
                Self::With(Compare::parse_float(eps).ok_or_else(|| serde::de::Error::custom(expected))?)
            }
            Form::Checker(Object(task)) => Self::Checker(task),
        })
    }
}

/// Whether cases go on after one that is not accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[schema(example = "first_failure")]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    #[default]
    Never,
    /// The cases after the first that is not accepted are Skipped.
    FirstFailure,
}

/// What came of a judgement.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"verdict": "Accepted", "compile": null, "cases": [], "max": {
    "cpu_time_ns": 1000000, "wall_time_ns": 2000000, "memory_peak_bytes": 1048576}}))]
pub struct JudgeResponse {
    /// The first case's that is not accepted.
    pub verdict: Verdict,
    /// What came of the compilation; null where nothing is compiled.
    pub compile: Option<TaskResult>,
    pub cases: Vec<CaseResult>,
    pub max: Most,
}

/// What came of one case: its verdict, and the result of the program's run.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CaseResult {
    /// The case's; a result's own name, of a task, is not in it.
    #[schema(example = "1")]
    pub name: String,
    pub verdict: Verdict,
    /// What there is to say of the verdict: where the output differs, or what the checker said.
    #[schema(example = "line 1: expected \"3\", got \"4\"")]
    pub message: Option<String>,
    #[serde(flatten)]
    pub result: TaskResult,
}

/// The most that any case used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Most {
    #[schema(example = 1000000)]
    pub cpu_time_ns: u64,
    #[schema(example = 2000000)]
    pub wall_time_ns: u64,
    #[schema(example = 1048576)]
    pub memory_peak_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn comparison(json: Value) -> Result<Comparison, String> {
        serde_json::from_value(json).map_err(|error| error.to_string())
    }

    #[test]
    fn what_decides_is_a_word_a_tolerance_or_a_program() {
        assert_eq!(comparison(json!("tokens")), Ok(Comparison::With(Compare::Tokens)));
        assert_eq!(comparison(json!({ "float": 1e-6 })), Ok(Comparison::With(Compare::Float(1e-6))));
        assert!(matches!(comparison(json!({ "checker": { "command": "x" } })), Ok(Comparison::Checker(_))));
        for wrong in [
            json!("token"),
            json!({ "float": -1 }),
            json!({}),
            json!({ "checker": {}, "float": 1 }),
            json!(1),
            json!({ "checker": ["x"] }),
        ] {
            assert!(comparison(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
