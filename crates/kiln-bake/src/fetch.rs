//! HTTP for the archive.

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kiln_model::Digest;
use kiln_oci::Store;

use crate::error::BakeError;
use crate::lock::LockedPackage;

/// More connections make no mirror faster.
const CONNECTIONS: usize = 4;
/// An index of a suite is some tens of megabytes.
const INDEX_LIMIT: u64 = 512 << 20;

pub(crate) struct Client {
    agent: ureq::Agent,
}

impl Client {
    pub(crate) fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_recv_body(Some(Duration::from_secs(600)))
            .max_idle_connections_per_host(CONNECTIONS)
            .user_agent("kiln")
            .build();
        Self {
            agent: config.into(),
        }
    }

    fn open(&self, url: &str) -> Result<impl Read + use<>, BakeError> {
        let failed = |error: ureq::Error| BakeError::Fetch {
            url: url.to_owned(),
            reason: error.to_string(),
        };
        let response = self.agent.get(url).call().map_err(failed)?;
        Ok(response
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader())
    }

    pub(crate) fn get(&self, url: &str) -> Result<Vec<u8>, BakeError> {
        let mut bytes = Vec::new();
        let reason = |error: std::io::Error| BakeError::Fetch {
            url: url.to_owned(),
            reason: error.to_string(),
        };
        self.open(url)?
            .take(INDEX_LIMIT)
            .read_to_end(&mut bytes)
            .map_err(reason)?;
        Ok(bytes)
    }

    /// Brings the packages that the store lacks. `roots`: archives to try, in order.
    pub(crate) fn packages(
        &self,
        store: &Store,
        roots: &[String],
        packages: &[LockedPackage],
        told: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<(), BakeError> {
        let missing: Vec<_> = packages
            .iter()
            .filter(|package| !store.has(&package.sha256))
            .collect();
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let failed: Mutex<Option<BakeError>> = Mutex::new(None);
        let lock = || {
            failed
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        };
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS.min(missing.len()) {
                scope.spawn(|| {
                    while lock().is_none() {
                        let Some(package) = missing.get(next.fetch_add(1, Ordering::SeqCst)) else {
                            return;
                        };
                        match self.package(store, roots, package) {
                            Ok(()) => told(done.fetch_add(1, Ordering::SeqCst) + 1, missing.len()),
                            Err(error) => {
                                lock().get_or_insert(error);
                            }
                        }
                    }
                });
            }
        });
        let failure = lock().take();
        failure.map_or(Ok(()), Err)
    }

    fn package(
        &self,
        store: &Store,
        roots: &[String],
        package: &LockedPackage,
    ) -> Result<(), BakeError> {
        let mut last = None;
        for root in roots {
            let url = format!("{root}/{}", package.path);
            match self.package_at(store, &url, package) {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(BakeError::Fetch {
            url: package.path.clone(),
            reason: "there is no archive to fetch it from".to_owned(),
        }))
    }

    fn package_at(
        &self,
        store: &Store,
        url: &str,
        package: &LockedPackage,
    ) -> Result<(), BakeError> {
        let mut body = self.open(url)?.take(package.size + 1);
        let mut writer = store.blob_writer()?;
        std::io::copy(&mut body, &mut writer).map_err(|error| BakeError::Fetch {
            url: url.to_owned(),
            reason: error.to_string(),
        })?;
        let (found, _): (Digest, u64) = writer.commit()?;
        if found != package.sha256 {
            return Err(BakeError::Mismatch {
                url: url.to_owned(),
                expected: package.sha256,
                found,
            });
        }
        Ok(())
    }
}
