//! Other systems' APIs as translations to tasks and back: values only. Each has its own words, error forms and languages; nothing
//! else in Faber knows them. `docs/compatibility-apis.md` says what is the same, what differs and what is not there.

pub mod fusion;
