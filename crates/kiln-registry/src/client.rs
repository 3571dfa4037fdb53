//! A registry asked for an image (OCI distribution specification 1.1, "Pull"): the few requests that a base needs.
//!
//! What comes is checked by the store against its digest, so that a registry is trusted for nothing but what a tag means.

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use kiln_http::client;
use kiln_model::Digest;
use kiln_oci::{
    BlobKind, BlobSource, DOCUMENT_MAX, ImportError, ImportRequest, ImportRoot, RegistryName, Store,
};
use ureq::http::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use crate::auth::Credentials;

const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// What an error page is read of.
const REASON_MAX: u64 = 4096;

/// How registries are asked.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// Files of the form of docker's `config.json`; the first that knows a registry counts.
    pub auth_files: Vec<PathBuf>,
    /// `host` or `host:port` that are asked without TLS, as those of this machine are.
    pub insecure: Vec<String>,
    /// Ask again what a tag means now, although it is known from before.
    pub pull: bool,
}

/// One repository of a registry.
struct Registry<'a> {
    agent: Agent,
    name: &'a RegistryName,
    root: String,
    credentials: Credentials,
    /// The value of the header, once the registry said which it wants.
    authorization: Mutex<Option<String>>,
}

impl Registries {
    /// Brings the image into the store. `text` is its name as written.
    pub fn pull(
        &self,
        store: &Store,
        name: &RegistryName,
        text: &str,
        arch: &str,
    ) -> Result<Digest, ImportError> {
        let key = Digest::of(format!("registry\0{name}\0{arch}").as_bytes());
        if !self.pull
            && let Some(digest) = store.imported(&key)
        {
            return Ok(digest);
        }
        let registry = Registry::new(name, self).map_err(|problem| ImportError::Registry {
            place: text.to_owned(),
            problem,
        })?;
        let root = registry.root(store)?;
        let request = ImportRequest { place: text, arch };
        let digest = store.import(&registry, request, root)?;
        store.cache_put(&key, digest.to_string().as_bytes())?;
        Ok(digest)
    }
}

impl<'a> Registry<'a> {
    fn new(name: &'a RegistryName, registries: &Registries) -> Result<Self, String> {
        let host = name.api_host();
        let scheme = if name.is_local() || registries.insecure.iter().any(|known| known == host) {
            "http"
        } else {
            "https"
        };
        Ok(Self {
            agent: client(),
            root: format!("{scheme}://{host}/v2/{}", name.repository),
            name,
            credentials: Credentials::find(&registries.auth_files, name)?,
            authorization: Mutex::default(),
        })
    }

    fn error(&self, problem: String) -> ImportError {
        ImportError::Registry {
            place: self.name.to_string(),
            problem,
        }
    }

    /// What the name means: the manifest itself is asked for and kept, since a registry need not say its digest.
    fn root(&self, store: &Store) -> Result<ImportRoot, ImportError> {
        if let Some(digest) = self.name.digest {
            return Ok(ImportRoot { digest, size: None });
        }
        let mut bytes = Vec::new();
        self.get("manifests", &self.name.tag)?
            .take(DOCUMENT_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| self.error(format!("its manifest can't be read: {error}")))?;
        if bytes.len() as u64 > DOCUMENT_MAX {
            return Err(self.error("its manifest has more than 4 MiB".to_owned()));
        }
        let blob = store.put_bytes(&bytes)?;
        Ok(ImportRoot {
            digest: blob.digest,
            size: Some(blob.size),
        })
    }

    fn get(&self, kind: &str, reference: &str) -> Result<Box<dyn Read + '_>, ImportError> {
        let url = format!("{}/{kind}/{reference}", self.root);
        let mut response = self.ask(&url)?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenges: Vec<String> = response
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .filter_map(|value| value.to_str().ok().map(str::to_owned))
                .collect();
            let authorization = self
                .credentials
                .answer(&self.agent, &challenges, self.name)
                .map_err(|problem| self.error(problem))?;
            *self
                .authorization
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(authorization);
            response = self.ask(&url)?;
        }
        let status = response.status();
        let body = response
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader();
        if status.is_success() {
            return Ok(Box::new(body));
        }
        let mut said = Vec::new();
        // What can't be read of an error is no error of its own.
        let _ = body.take(REASON_MAX).read_to_end(&mut said);
        let said = reason(&said);
        let what = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                format!(
                    "{} gives it to nobody or only to who may: {}",
                    self.name.host,
                    self.credentials.advice(&self.name.host)
                )
            }
            StatusCode::NOT_FOUND if kind == "manifests" => {
                format!("{} has no such image", self.name.host)
            }
            StatusCode::NOT_FOUND => format!("{} lacks its blob {reference}", self.name.host),
            StatusCode::TOO_MANY_REQUESTS => format!(
                "{} was asked too often from here: wait, or log in",
                self.name.host
            ),
            status => format!("{} answers {status} to {url}", self.name.host),
        };
        Err(self.error(format!("{what}{said}")))
    }

    fn ask(&self, url: &str) -> Result<Response<Body>, ImportError> {
        let mut request = self.agent.get(url).header(ACCEPT, ACCEPTED);
        let authorization = self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        request.call().map_err(|error| {
            self.error(format!("{} can't be asked: {error}", self.name.api_host()))
        })
    }
}

impl BlobSource for Registry<'_> {
    fn open(
        &self,
        digest: &Digest,
        _: Option<u64>,
        kind: BlobKind,
    ) -> Result<Box<dyn Read + '_>, ImportError> {
        let kind = match kind {
            BlobKind::Manifest => "manifests",
            BlobKind::Blob => "blobs",
        };
        self.get(kind, &digest.to_string())
    }
}

/// The messages of a registry's error document, if it is one.
fn reason(body: &[u8]) -> String {
    let said: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let messages: Vec<String> = said
        .as_ref()
        .and_then(|said| said["errors"].as_array())
        .into_iter()
        .flatten()
        .filter_map(|error| error["message"].as_str())
        .map(|message| message.chars().filter(|c| !c.is_control()).collect())
        .collect();
    match &messages[..] {
        [] => String::new(),
        messages => format!(" ({})", messages.join("; ")),
    }
}
