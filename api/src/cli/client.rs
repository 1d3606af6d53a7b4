//! The service over HTTP, as the commands use it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use reqwest::{Method, Response};
use serde_json::Value;
use zeroize::Zeroizing;

use super::failure::Failure;
use crate::secrets;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A file that holds a token and nothing else is no longer than this.
const TOKEN_VARIABLE: &str = "LASTGOOD_TOKEN";

/// Where the service is and how it knows us.
#[derive(Debug, Clone, Args)]
pub(super) struct ServerArgs {
    /// Address of the service
    #[arg(
        long,
        global = true,
        env = "LASTGOOD_SERVER",
        default_value = "http://127.0.0.1:7070",
        value_name = "URL",
        help_heading = "Service"
    )]
    server: reqwest::Url,
    /// File with the token; LASTGOOD_TOKEN, if set, holds the token itself [default: admin.token in
    /// the data folder]
    #[arg(
        long,
        global = true,
        env = "LASTGOOD_TOKEN_FILE",
        value_name = "FILE",
        help_heading = "Service"
    )]
    token_file: Option<PathBuf>,
    /// Data folder of a service on this machine, for its token
    #[arg(
        long,
        global = true,
        env = "LASTGOOD_DATA_DIR",
        default_value = "lastgood-data",
        value_name = "DIR",
        help_heading = "Service"
    )]
    data_dir: PathBuf,
}

pub(super) struct Client {
    http: reqwest::Client,
    server: reqwest::Url,
    token: Zeroizing<String>,
}

impl ServerArgs {
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .no_proxy()
            .build()
            .context("no HTTP client")?;
        Ok(Client {
            http,
            server: self.server.clone(),
            token: self.token()?,
        })
    }

    fn token(&self) -> Result<Zeroizing<String>, Failure> {
        if let Ok(token) = std::env::var(TOKEN_VARIABLE) {
            return Ok(Zeroizing::new(token));
        }
        let default = self.data_dir.join("admin.token");
        let path: &Path = self.token_file.as_deref().unwrap_or(&default);
        secrets::read_private(path)
            .map(|text| Zeroizing::new(text.trim().to_owned()))
            .map_err(|error| {
                Failure::operator(format!(
                    "no token: cannot read {} ({error}); give --token-file or {TOKEN_VARIABLE}, or \
                     --data-dir of a service on this machine",
                    path.display()
                ))
            })
    }
}

impl Client {
    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json(Method::GET, path, None).await
    }

    /// With a query.
    pub(super) async fn get_with(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Value, Failure> {
        let mut url = self.url(path)?;
        url.query_pairs_mut().extend_pairs(query);
        self.send(Method::GET, url, None).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::POST, path, Some(body)).await
    }

    pub(super) async fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::PATCH, path, Some(body)).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.json(Method::DELETE, path, None).await
    }

    /// Every item of a list, page by page.
    pub(super) async fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut url = self.url(path)?;
            url.query_pairs_mut().append_pair("limit", "1000");
            if let Some(after) = &after {
                url.query_pairs_mut().append_pair("after", after);
            }
            let mut page = self.send(Method::GET, url, None).await?;
            if let Value::Array(more) = page["items"].take() {
                items.extend(more);
            }
            match page["next"].as_str() {
                Some(next) => after = Some(next.to_owned()),
                None => return Ok(items),
            }
        }
    }

    /// Open a stream of server-sent events.
    pub(super) async fn events(&self, path: &str, after: u64) -> Result<Response, Failure> {
        let url = self.url(path)?;
        let response = self
            .http
            .get(url)
            .bearer_auth(self.token.as_str())
            .header("Last-Event-ID", after.to_string())
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(refusal(response).await),
        }
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let url = self.url(path)?;
        self.send(method, url, body).await
    }

    fn url(&self, path: &str) -> Result<reqwest::Url, Failure> {
        Ok(self.server.join(path).context("the server's address")?)
    }

    async fn send(
        &self,
        method: Method,
        url: reqwest::Url,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let request = self
            .http
            .request(method, url)
            .bearer_auth(self.token.as_str());
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let value = response.json().await;
        Ok(value.context("the service's answer is not understood")?)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        Failure::failed(format!(
            "the service at {} does not answer ({}); is it running? A restore needs no service: see \
             `lastgood restore --help` for --repository and --key-file",
            self.server,
            root(error)
        ))
    }
}

fn root(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

async fn refusal(response: Response) -> Failure {
    let status = response.status().as_u16();
    let problem = response.json().await.unwrap_or(Value::Null);
    Failure::problem(status, problem)
}
