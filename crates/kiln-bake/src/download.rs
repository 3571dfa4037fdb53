//! Files of the network, for ADD: kept in the store by their digest, and fetched again only when their server says that they changed.

use std::io::{self, Read, Write};

use kiln_http::{client, percent_decoded, seconds_of};
use kiln_model::{CanonicalError, Digest};
use kiln_oci::Store;
use serde::{Deserialize, Serialize};
use ureq::http::StatusCode;
use ureq::http::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};

use crate::error::BakeError;

/// A file that the store has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fetched {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// What the server calls this state of the file.
    etag: Option<String>,
    /// As the server writes it.
    last_modified: Option<String>,
}

impl Fetched {
    /// Seconds since 1970; none where the server did not say.
    pub(crate) fn mtime(&self) -> Option<i64> {
        self.last_modified.as_deref().and_then(seconds_of)
    }
}

/// Brings the file at `url` here. With a checksum, nobody is asked where that is what this address gave the last time.
pub(crate) fn fetch(
    store: &Store,
    url: &str,
    checksum: Option<&Digest>,
) -> Result<Fetched, BakeError> {
    let key = Digest::of(format!("fetched\0{url}").as_bytes());
    let known: Option<Fetched> = store
        .cache_get(&key)
        .and_then(|record| serde_json::from_slice(&record).ok())
        .filter(|known: &Fetched| store.blob_size(&known.digest).ok() == Some(known.size));
    if let (Some(wanted), Some(known)) = (checksum, &known)
        && known.digest == *wanted
    {
        return Ok(known.clone());
    }
    let failed = |reason: String| BakeError::Download {
        url: url.to_owned(),
        reason,
    };
    let mut request = client().get(url);
    if let Some(known) = &known {
        match (&known.etag, &known.last_modified) {
            (Some(etag), _) => request = request.header(IF_NONE_MATCH, etag),
            (None, Some(date)) => request = request.header(IF_MODIFIED_SINCE, date),
            (None, None) => {}
        }
    }
    let response = request.call().map_err(|error| failed(error.to_string()))?;
    let status = response.status();
    let found = match known {
        Some(known) if status == StatusCode::NOT_MODIFIED => known,
        _ if status.is_success() => {
            let header = |name| {
                let value = response.headers().get(name)?;
                value.to_str().ok().map(str::to_owned)
            };
            let (etag, last_modified) = (header(ETAG), header(LAST_MODIFIED));
            let body = response
                .into_body()
                .into_with_config()
                .limit(u64::MAX)
                .reader();
            let (digest, size) = keep(store, body, &failed)?;
            Fetched {
                digest,
                size,
                etag,
                last_modified,
            }
        }
        _ => return Err(failed(format!("its server answers {status}"))),
    };
    if let Some(wanted) = checksum
        && found.digest != *wanted
    {
        return Err(BakeError::Checksum {
            url: url.to_owned(),
            expected: *wanted,
            found: found.digest,
        });
    }
    let record = serde_json::to_vec(&found).map_err(CanonicalError::Json)?;
    store.cache_put(&key, &record)?;
    Ok(found)
}

fn keep(
    store: &Store,
    mut body: impl Read,
    failed: &dyn Fn(String) -> BakeError,
) -> Result<(Digest, u64), BakeError> {
    let mut writer = store.blob_writer()?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        // The server's failure and the disk's are two errors, so no `io::copy`.
        match body.read(&mut buffer) {
            Ok(0) => return Ok(writer.commit()?),
            Ok(count) => writer
                .write_all(&buffer[..count])
                .map_err(BakeError::io(store.dir()))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}

/// The name that a file of this address gets in a folder.
pub(crate) fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let name = match path.trim_end_matches('/').rsplit_once('/') {
        Some((_, name)) => percent_decoded(name),
        None => String::new(),
    };
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        "__unnamed__".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_by_their_address() {
        for (url, name) in [
            ("https://x.io/a/b.tar.gz", "b.tar.gz"),
            ("https://x.io/a/b?c=d/e#f", "b"),
            ("https://x.io/a%20b", "a b"),
            ("https://x.io/a/", "a"),
            ("https://x.io/", "__unnamed__"),
            ("https://x.io", "__unnamed__"),
            ("https://x.io/..%2f", "__unnamed__"),
        ] {
            assert_eq!(file_name(url), name, "{url}");
        }
    }
}
