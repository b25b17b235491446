//! POST /judge: programs against cases.

mod languages;
mod problems;
mod requests;

use serde_json::Value;

use crate::support::Server;

/// The answer to a request that can be judged.
#[track_caller]
fn judge(server: &Server, request: &Value) -> Value {
    let answer = server.post_to("/judge", &request.to_string(), &[]);
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

fn verdicts(answer: &Value) -> Vec<&str> {
    answer["cases"].as_array().unwrap().iter().map(|case| case["verdict"].as_str().unwrap()).collect()
}
