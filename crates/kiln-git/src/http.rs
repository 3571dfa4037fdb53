//! The protocol over HTTP (gitprotocol-http(5)).

use std::io::Read;

use kiln_http::client;
use ureq::http::Response;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::{Body, ResponseExt};

use crate::access::{AUTH_TOKEN, Origin, Trust};
use crate::error::GitError;
use crate::protocol::{NO_VERSION, REFS_MAX, speaks_version_2, too_large};
use crate::source::GitSource;

const VERSION: (&str, &str) = ("Git-Protocol", "version=2");

/// A repository that answered.
pub(crate) struct HttpRepository {
    root: String,
    authorization: Option<String>,
}

impl HttpRepository {
    pub(crate) fn open(source: &GitSource, trust: Trust<'_>) -> Result<Self, GitError> {
        let asked = format!(
            "{}/info/refs?service=git-upload-pack",
            source.url.trim_end_matches('/')
        );
        let authorization = trust.authorization(&source.url);
        let mut request = client().get(&asked).header(VERSION.0, VERSION.1);
        if let Some(authorization) = &authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = request.call().map_err(|error| source.error(error))?;
        let status = response.status();
        if !status.is_success() {
            let help = match (status.as_u16(), &authorization) {
                (401 | 403 | 404, None) => {
                    let there = Origin::of(&source.url);
                    let of_server = match &there {
                        Some(there) if *trust.origin != Some(there.clone()) => {
                            format!(".{}", there.name)
                        }
                        _ => String::new(),
                    };
                    format!(
                        ": there is none, or not for everybody: --secret id={AUTH_TOKEN}{of_server},env=VARIABLE gives a token"
                    )
                }
                (401 | 403 | 404, Some(_)) => {
                    ": there is none, or not for who has this token".to_owned()
                }
                _ => String::new(),
            };
            return Err(source.error(format!("its server answers {status}{help}")));
        }
        // Where it has moved to, it is asked from then on.
        let last = response.get_uri().to_string();
        let root = last.split("/info/refs").next().unwrap_or(&last).to_owned();
        let bytes = body(source, response, REFS_MAX)?;
        if !speaks_version_2(&bytes) {
            return Err(source.error(NO_VERSION));
        }
        // What is for one server is told to no other.
        let authorization = authorization.filter(|_| Origin::of(&root) == Origin::of(&source.url));
        Ok(Self {
            root,
            authorization,
        })
    }

    /// What it answers to one command, of at most `limit` bytes.
    pub(crate) fn ask(
        &self,
        source: &GitSource,
        request: &[u8],
        limit: u64,
    ) -> Result<Vec<u8>, GitError> {
        let mut post = client()
            .post(format!("{}/git-upload-pack", self.root))
            .header(VERSION.0, VERSION.1)
            .header(CONTENT_TYPE, "application/x-git-upload-pack-request");
        if let Some(authorization) = &self.authorization {
            post = post.header(AUTHORIZATION, authorization);
        }
        let response = post.send(request).map_err(|error| source.error(error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(source.error(format!("its server answers {status}")));
        }
        body(source, response, limit)
    }
}

/// All of an answer, of at most `limit` bytes.
fn body(source: &GitSource, mut response: Response<Body>, limit: u64) -> Result<Vec<u8>, GitError> {
    let mut bytes = Vec::new();
    response
        .body_mut()
        .with_config()
        .limit(u64::MAX)
        .reader()
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| source.error(error))?;
    if bytes.len() as u64 > limit {
        return Err(source.error(too_large(limit)));
    }
    Ok(bytes)
}
