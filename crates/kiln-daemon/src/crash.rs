//! Crash points: with the feature `crash-points`, `KILN_CRASH_AFTER=EFFECT:N` kills the controller with
//! SIGKILL right after the Nth effect of that name. Without the feature this is nothing.
//!
//! The effects: `commit`, `listen`, `start`, `probe`, `route`, `confirm`, `drain`, `stop`, `remove`.

#[cfg(not(feature = "crash-points"))]
pub(crate) fn point(_effect: &'static str) {}

#[cfg(feature = "crash-points")]
pub(crate) fn point(effect: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static SEEN: AtomicU64 = AtomicU64::new(0);

    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("KILN_CRASH_AFTER").ok()?;
        let (name, count) = text.split_once(':')?;
        Some((name.to_owned(), count.parse().ok()?))
    });
    if let Some((name, count)) = wanted
        && name == effect
        && SEEN.fetch_add(1, Ordering::SeqCst) + 1 == *count
    {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
