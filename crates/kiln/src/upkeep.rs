//! What nothing needs does not pile up: once a day, a bake that made something removes of it what is old or too much.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kiln_model::Digest;
use kiln_oci::{PruneOptions, Store};

use crate::failure::Failure;
use crate::output;
use crate::progress::Reporting;
use crate::table;

/// In the store: its time is that of the last time.
const MARK: &str = "pruned";
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// `off`, or what `--keep-storage` takes.
const SIZE: &str = "KILN_KEEP_STORAGE";
const SIZE_DEFAULT: u64 = 50 << 30;
/// `off`, or what `--older-than` takes.
const AGE: &str = "KILN_KEEP_AGE";
const AGE_DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is journalled, and what is mounted at this moment.
pub(crate) fn in_use(root: &Path) -> Result<BTreeSet<Digest>, Failure> {
    let mut in_use = kiln_daemon::images_in_use(root)?;
    let folder = root.join("run/layers");
    let failed = |source| Failure::Root {
        path: folder.clone(),
        source,
    };
    let mounted = match fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(in_use),
        mounted => mounted.map_err(failed)?,
    };
    for entry in mounted {
        let name = entry.map_err(failed)?.file_name();
        in_use.extend(name.to_str().and_then(|hex| Digest::from_hex(hex).ok()));
    }
    Ok(in_use)
}

/// To be called after a bake that made something. What fails here is no failure of the bake.
pub(crate) fn after_bake(root: &Path, store: &Store, reporting: Reporting) -> Result<(), Failure> {
    let variable = |name| std::env::var(name).ok();
    let options = match options(variable(SIZE).as_deref(), variable(AGE).as_deref()) {
        Ok(Some(options)) => options,
        Ok(None) => return Ok(()),
        Err(problem) => {
            output::warning(&problem);
            return Ok(());
        }
    };
    // Compared with times of files, which are the wall clock's.
    let now = SystemTime::UNIX_EPOCH + kiln_fs::clock::wall();
    if !is_due(store.dir(), now) {
        return Ok(());
    }
    match store.prune(&options, || in_use(root)) {
        Ok(pruned) if pruned.freed > 0 => reporting.line(&format!(
            "store: removed {} that nothing needs ({SIZE} and {AGE} are the limits)",
            table::size(pruned.freed)
        )),
        Ok(_) => Ok(()),
        Err(failure) => {
            let cause = std::error::Error::source(&failure)
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            output::warning(&format!("the store can't be pruned: {failure}{cause}"));
            Ok(())
        }
    }
}

/// None: nothing is to be removed.
fn options(size: Option<&str>, age: Option<&str>) -> Result<Option<PruneOptions>, String> {
    let keep_storage = match size {
        None => Some(SIZE_DEFAULT),
        Some("off") => None,
        Some(text) => Some(kiln_config::units::size(text).ok_or_else(|| {
            format!("{SIZE} is `{text}`: write `off`, or a whole number and its unit: 10GiB")
        })?),
    };
    let older_than = match age {
        None => Some(AGE_DEFAULT),
        Some("off") => None,
        Some(text) => Some(kiln_config::units::duration(text).ok_or_else(|| {
            format!("{AGE} is `{text}`: write `off`, or whole numbers and their units: 7d")
        })?),
    };
    let has_limit = keep_storage.is_some() || older_than.is_some();
    Ok(has_limit.then_some(PruneOptions {
        keep_storage,
        older_than,
        dry_run: false,
    }))
}

/// Whether it is a day since the last time; it is the last time from now on then. A new store has its first day before it.
fn is_due(store: &Path, now: SystemTime) -> bool {
    let path = store.join(MARK);
    let Ok(mark) = File::options().append(true).create_new(true).open(&path) else {
        // On a read-only disk nothing is pruned.
        let Ok(mark) = File::options().append(true).open(&path) else {
            return false;
        };
        let last = mark.metadata().and_then(|meta| meta.modified());
        let is_due = last.is_ok_and(|last| now.duration_since(last).is_ok_and(|age| age >= EVERY));
        return is_due && mark.set_modified(now).is_ok();
    };
    drop(mark);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_what_they_say_and_off_takes_them_away() {
        let limits = |size, age| {
            let options = options(size, age)?;
            Ok::<_, String>(options.map(|options| (options.keep_storage, options.older_than)))
        };
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(
            limits(None, None),
            Ok(Some((Some(50 << 30), Some(30 * day))))
        );
        assert_eq!(
            limits(Some("1GiB"), Some("7d")),
            Ok(Some((Some(1 << 30), Some(7 * day))))
        );
        assert_eq!(
            limits(Some("off"), Some("7d")),
            Ok(Some((None, Some(7 * day))))
        );
        assert_eq!(limits(Some("off"), Some("off")), Ok(None));
        assert!(limits(Some("much"), None).is_err() && limits(None, Some("1")).is_err());
    }

    #[test]
    fn it_is_due_once_a_day_and_not_at_first() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        assert!(!is_due(folder.path(), now));
        assert!(!is_due(folder.path(), now + EVERY / 2));
        assert!(is_due(folder.path(), now + EVERY * 2));
        assert!(!is_due(folder.path(), now + EVERY * 2));
        assert!(is_due(folder.path(), now + EVERY * 3));
    }
}
