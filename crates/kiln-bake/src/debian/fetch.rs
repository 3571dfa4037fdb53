//! HTTP for the archive.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_oci::Store;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::debian::lock::LockedPackage;
use crate::error::BakeError;

/// More connections make no mirror faster.
const CONNECTIONS: usize = 4;
/// An index of a suite is some tens of megabytes.
const INDEX_LIMIT: u64 = 512 << 20;

/// Every name looked up once. ureq looks it up before each request, also where it then goes on with an open connection, and
/// one lost answer of a name server is five seconds of waiting: for a hundred packages that was most of a bake.
#[derive(Debug, Default)]
struct Names<R = DefaultResolver> {
    system: R,
    known: Mutex<BTreeMap<String, Vec<SocketAddr>>>,
}

impl<R: Resolver> Resolver for Names<R> {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let name = uri
            .scheme()
            .zip(uri.authority())
            .and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority));
        let Some(name) = name else {
            return self.system.resolve(uri, config, timeout);
        };
        // Held while the name is looked up: who else wants it waits for the same answer.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = known.get(&name) {
            let mut addresses = self.empty();
            there.iter().for_each(|address| addresses.push(*address));
            return Ok(addresses);
        }
        let addresses = self.system.resolve(uri, config, timeout)?;
        known.insert(name, addresses.to_vec());
        Ok(addresses)
    }
}

/// Which packages are in the store by now: they are unpacked while others are still fetched. The first failure, of whichever
/// side, ends both.
pub(crate) struct Arrivals {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    there: Vec<bool>,
    failure: Option<BakeError>,
    stopped: bool,
}

impl Arrivals {
    pub(crate) fn new(packages: usize) -> Self {
        Self {
            state: Mutex::new(State {
                there: vec![false; packages],
                failure: None,
                stopped: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All are there but these, which are on their way.
    pub(crate) fn all_but(&self, missing: &[usize]) {
        let mut state = self.lock();
        state.there.fill(true);
        for index in missing {
            state.there[*index] = false;
        }
        self.changed.notify_all();
    }

    fn arrived(&self, index: usize) {
        self.lock().there[index] = true;
        self.changed.notify_all();
    }

    pub(crate) fn fail(&self, error: BakeError) {
        let mut state = self.lock();
        if !state.stopped {
            state.stopped = true;
            state.failure = Some(error);
        }
        self.changed.notify_all();
    }

    /// Nobody needs the others any more.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Whether nobody has to be waited for.
    pub(crate) fn all_there(&self) -> bool {
        self.lock().there.iter().all(|there| *there)
    }

    /// Waits for a package; false: it is not coming.
    pub(crate) fn wait(&self, index: usize) -> bool {
        let state = self
            .changed
            .wait_while(self.lock(), |state| !state.stopped && !state.there[index])
            .unwrap_or_else(PoisonError::into_inner);
        !state.stopped
    }

    /// What ended it early.
    pub(crate) fn failure(&self) -> Option<BakeError> {
        self.lock().failure.take()
    }
}

pub(crate) struct Client {
    agent: ureq::Agent,
}

/// What the archive answers that it has not.
pub(crate) fn absent(url: &str) -> BakeError {
    BakeError::Fetch {
        url: url.to_owned(),
        reason: "the archive answers 404: it has no such file".to_owned(),
    }
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
            agent: ureq::Agent::with_parts(
                config,
                DefaultConnector::default(),
                Names::<DefaultResolver>::default(),
            ),
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

    /// `None`: the archive answers that it has none.
    pub(crate) fn get_if_there(&self, url: &str) -> Result<Option<Vec<u8>>, BakeError> {
        match self.agent.get(url).call() {
            Err(ureq::Error::StatusCode(404 | 410)) => Ok(None),
            Err(error) => Err(BakeError::Fetch {
                url: url.to_owned(),
                reason: error.to_string(),
            }),
            Ok(response) => {
                let mut bytes = Vec::new();
                let body = response.into_body().into_with_config().limit(INDEX_LIMIT);
                let read = body.reader().read_to_end(&mut bytes);
                read.map_err(|error| BakeError::Fetch {
                    url: url.to_owned(),
                    reason: error.to_string(),
                })?;
                Ok(Some(bytes))
            }
        }
    }

    pub(crate) fn get(&self, url: &str) -> Result<Vec<u8>, BakeError> {
        self.get_if_there(url)?.ok_or_else(|| absent(url))
    }

    /// Brings the packages that the store lacks, in their order. `roots`: archives to try, in order.
    pub(crate) fn packages(
        &self,
        store: &Store,
        roots: &[String],
        packages: &[LockedPackage],
        arrivals: &Arrivals,
        told: &(dyn Fn(usize, usize) + Sync),
    ) {
        let missing: Vec<_> = (0..packages.len())
            .filter(|index| !store.has(&packages[*index].sha256))
            .collect();
        arrivals.all_but(&missing);
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS.min(missing.len()) {
                scope.spawn(|| {
                    while !arrivals.stopped() {
                        let Some(&index) = missing.get(next.fetch_add(1, Ordering::SeqCst)) else {
                            return;
                        };
                        match self.package(store, roots, &packages[index]) {
                            Ok(()) => {
                                arrivals.arrived(index);
                                told(done.fetch_add(1, Ordering::SeqCst) + 1, missing.len());
                            }
                            Err(error) => arrivals.fail(error),
                        }
                    }
                });
            }
        });
    }

    fn package(
        &self,
        store: &Store,
        roots: &[String],
        package: &LockedPackage,
    ) -> Result<(), BakeError> {
        let mut first = None;
        for root in roots {
            let url = format!("{root}/{}", package.path);
            match self.package_at(store, &url, package) {
                Ok(()) => return Ok(()),
                // Another archive may have it.
                Err(error @ BakeError::Fetch { .. }) => {
                    first.get_or_insert(error);
                }
                // Wrong bytes say more than that the other archives have none.
                Err(error @ BakeError::Mismatch { .. }) => first = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(first.unwrap_or(BakeError::Fetch {
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
        let mut chunk = vec![0; 64 << 10];
        loop {
            // The mirror's failure and the disk's are two errors, so no `io::copy`.
            let read = match body.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(BakeError::Fetch {
                        url: url.to_owned(),
                        reason: error.to_string(),
                    });
                }
            };
            writer
                .write_all(&chunk[..read])
                .map_err(BakeError::io(store.dir()))?;
        }
        writer
            .commit_as(&package.sha256)?
            .map_err(|found| BakeError::Mismatch {
                url: url.to_owned(),
                expected: package.sha256,
                found,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl Resolver for Counting {
        fn resolve(
            &self,
            _: &Uri,
            _: &Config,
            _: NextTimeout,
        ) -> Result<ResolvedSocketAddrs, ureq::Error> {
            let asked = self.0.fetch_add(1, Ordering::SeqCst);
            let mut addresses = self.empty();
            addresses.push(SocketAddr::from(([192, 0, 2, 1], asked as u16)));
            Ok(addresses)
        }
    }

    #[test]
    fn a_name_is_looked_up_once() {
        let names = Names::<Counting>::default();
        let look = |url: &str| {
            let timeout = NextTimeout {
                after: ureq::unversioned::transport::time::Duration::NotHappening,
                reason: ureq::Timeout::Resolve,
                ..NextTimeout::default()
            };
            let uri = url.parse().unwrap();
            names
                .resolve(&uri, &Config::default(), timeout)
                .unwrap()
                .to_vec()
        };
        let first = look("http://a.test/one");
        assert_eq!(look("http://a.test/two"), first);
        assert_ne!(look("http://b.test/"), first);
        assert_ne!(look("https://a.test/"), first, "another port");
        assert_eq!(names.system.0.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn the_first_failure_ends_those_who_wait() {
        let arrivals = Arrivals::new(2);
        let failure = |reason: &str| BakeError::Fetch {
            url: String::new(),
            reason: reason.to_owned(),
        };
        arrivals.arrived(0);
        assert!(arrivals.wait(0));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| arrivals.wait(1));
            arrivals.fail(failure("first"));
            arrivals.fail(failure("second"));
            assert!(!waiting.join().unwrap());
        });
        assert!(arrivals.stopped() && !arrivals.wait(0));
        let told = arrivals.failure().unwrap().to_string();
        assert!(told.contains("first"), "{told}");
    }
}
