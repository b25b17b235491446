//! A server, for the commands that ask one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use reqwest::{Client, Method, Response, Url};
use serde::de::DeserializeOwned;

use crate::config::{API_KEY, Loaded, SERVER};

/// Beyond what a request itself takes.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub struct ServerArgs {
    /// The server; without it the one that the configuration on this machine is for
    #[arg(long, value_name = "URL", env = SERVER)]
    server: Option<Url>,
    /// The configuration file, for the address of the server
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How to reach it. The key comes from the environment: arguments are everybody's to see.
pub struct Server {
    base: Url,
    key: Option<String>,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl ServerArgs {
    pub fn reach(&self) -> anyhow::Result<Server> {
        let base = match &self.server {
            Some(url) => url.clone(),
            None => {
                let mut address = Loaded::read(self.config.as_deref(), Vec::new())?.config.server.listen;
                if address.ip().is_unspecified() {
                    address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
                }
                Url::parse(&format!("http://{address}"))?
            }
        };
        anyhow::ensure!(!base.cannot_be_a_base(), "--server {base}: expected a URL such as http://127.0.0.1:8080");
        // Another part of the process may have chosen one before; then that is it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().user_agent(concat!("faber/", env!("CARGO_PKG_VERSION"))).build()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Server { base, key: std::env::var(API_KEY).ok(), client, runtime })
    }
}

impl Server {
    /// What a request is answered, if that is something; `takes` is how long the server may take by what was asked.
    ///
    /// # Errors
    /// When nobody answers, or the answer is an error, in its words.
    pub fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        takes: Duration,
    ) -> anyhow::Result<Option<T>> {
        let mut url = self.base.clone();
        url.path_segments_mut().map_err(|()| anyhow::anyhow!("{} is no base", self.base))?.pop_if_empty().extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.client.request(method, url).timeout(PATIENCE + takes);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        self.runtime.block_on(async {
            let response = request.send().await.map_err(reqwest::Error::without_url);
            let response = response.with_context(|| format!("ask {}", self.base))?;
            self.read(response).await
        })
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> anyhow::Result<Option<T>> {
        let status = response.status();
        let body = response.bytes().await.map_err(reqwest::Error::without_url).context("read the answer")?;
        if status.is_success() {
            let answer = (!body.is_empty()).then(|| serde_json::from_slice(&body)).transpose();
            return answer.with_context(|| format!("{} does not answer as Faber does", self.base));
        }
        let said = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        let hint = match (status.as_u16(), &self.key) {
            (401 | 403, None) => format!("; {API_KEY} is where a key is looked for"),
            _ => String::new(),
        };
        match (said["error"].as_str(), said["details"].as_str()) {
            (Some(error), Some(details)) => anyhow::bail!("{error}: {details}{hint}"),
            (Some(error), None) => anyhow::bail!("{error}{hint}"),
            _ => anyhow::bail!("{} answers {status}{hint}", self.base),
        }
    }
}
