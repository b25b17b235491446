//! GET /images.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::error::{ApiError, NotAdmitted};
use crate::chain::chain;
use crate::image::{Image, Root};
use crate::task::ResourceLimits;

/// The images of this server, by name.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"images": [{
    "name": "python", "description": "Python 3 with its standard library",
    "digest": "sha256:0e223acf24a6b7c1b545e4603a2fa6a09f7f2492924be4d0e0935551a27e66a0",
    "language": {"file": "main.py", "compile": [], "run": ["python3", "main.py"]},
    "versions": {"python3": "3.13.5-1"}, "resource_limits": {"max_processes": 20}
}]}))]
pub struct ImageList {
    pub images: Vec<ImageInfo>,
}

/// One image.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageInfo {
    /// What a task names it by.
    #[schema(example = "python")]
    pub name: String,
    #[schema(example = "Python 3 with its standard library")]
    pub description: String,
    /// Over everything in it: another digest is another image.
    #[schema(example = "sha256:0e223acf24a6b7c1b545e4603a2fa6a09f7f2492924be4d0e0935551a27e66a0")]
    pub digest: String,
    /// How its programs are named, compiled and run; null for an image of no one language.
    pub language: Option<LanguageInfo>,
    /// The packages its definition asks for, with their versions; of the host image none are known.
    #[schema(example = json!({"python3": "3.13.5-1"}))]
    pub versions: BTreeMap<String, String>,
    /// What its tasks get in place of the server's defaults.
    pub resource_limits: ResourceLimits,
}

/// A language's programs.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LanguageInfo {
    /// The file name a program gets.
    #[schema(example = "main.py")]
    pub file: String,
    /// The command that compiles it; empty where there is none.
    #[schema(example = json!([]))]
    pub compile: Vec<String>,
    /// The command that runs it.
    #[schema(example = json!(["python3", "main.py"]))]
    pub run: Vec<String>,
}

/// List the images a task can name.
#[utoipa::path(
    get,
    path = "/images",
    tag = "Images",
    responses(
        NotAdmitted,
        (status = 200, description = "The images of this server.", body = ImageList),
    )
)]
pub async fn images(State(app): State<Arc<App>>) -> Result<Json<ImageList>, ApiError> {
    Ok(Json(ImageList { images: all(&app)?.iter().map(ImageInfo::from).collect() }))
}

/// A language that programs can be in.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Language {
    /// What `language` names it by.
    #[schema(example = "python")]
    pub language: String,
    /// The packages that its image's definition asks for, with their versions.
    #[schema(example = "python3 3.13.5-1")]
    pub version: String,
    #[schema(example = "python")]
    pub image: String,
    /// The file name a program gets.
    #[schema(example = "main.py")]
    pub file: String,
    /// The command that compiles it; empty where there is none.
    #[schema(example = json!([]))]
    pub compile: Vec<String>,
    /// The command that runs it.
    #[schema(example = json!(["python3", "main.py"]))]
    pub run: Vec<String>,
}

/// List the languages that a program can be in: those of the images that are here.
#[utoipa::path(
    get,
    path = "/languages",
    tag = "Images",
    responses(
        NotAdmitted,
        (status = 200, description = "The languages of this server, by name.", body = Vec<Language>, example = json!([{
            "language": "python", "version": "python3 3.13.5-1", "image": "python", "file": "main.py", "compile": [],
            "run": ["python3", "main.py"]
        }])),
    )
)]
pub async fn languages(State(app): State<Arc<App>>) -> Result<Json<Vec<Language>>, ApiError> {
    Ok(Json(all(&app)?.iter().filter_map(Language::of).collect()))
}

impl Language {
    /// None for an image of no one language.
    fn of(image: &Image) -> Option<Self> {
        let crate::task::Language { file, compile, run } = image.language.clone()?;
        let version = match &image.root {
            Root::Machine(_) => String::new(),
            Root::Tree(contents) => {
                let versions = contents.versions.iter().map(|(package, version)| format!("{package} {version}"));
                versions.collect::<Vec<_>>().join(", ")
            }
        };
        let name = image.name.to_string();
        Some(Self { language: name.clone(), version, image: name, file, compile, run })
    }
}

/// The images as they are now; why they cannot be read is for the operator.
pub fn all(app: &App) -> Result<Arc<Vec<Image>>, ApiError> {
    app.catalog.images().map_err(|error| {
        tracing::error!(error = chain(&error), "the images cannot be read");
        ApiError::Internal
    })
}

impl From<&Image> for ImageInfo {
    fn from(image: &Image) -> Self {
        let language = image.language.as_ref().map(|language| LanguageInfo {
            file: language.file.clone(),
            compile: language.compile.clone(),
            run: language.run.clone(),
        });
        let versions = match &image.root {
            Root::Machine(_) => BTreeMap::new(),
            Root::Tree(contents) => contents.versions.clone(),
        };
        Self {
            name: image.name.to_string(),
            description: image.description.clone(),
            digest: image.digest.to_string(),
            language,
            versions,
            resource_limits: image.limits.clone(),
        }
    }
}
