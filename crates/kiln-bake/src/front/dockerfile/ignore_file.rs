//! The `.dockerignore` of a named context.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use kiln_config::dockerfile::Ignore;
use rustix::fs::OFlags;

use crate::in_root;

/// Of a `.dockerignore`, in bytes.
const IGNORE_MAX: u64 = 16 << 20;

/// The `.dockerignore` of a named context.
pub(super) fn ignore_of(folder: &Path) -> Result<Ignore, String> {
    let name = ".dockerignore";
    let path = folder.join(name);
    // It may be anybody's: a link leads nowhere out, and no device is read.
    let unread = |error: std::io::Error| format!("{} can't be read: {error}", path.display());
    let file = match in_root::open(folder, name.as_ref(), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => File::from(file),
        Err(error) if in_root::is_absent(&error) => return Ok(Ignore::default()),
        Err(error) => return Err(unread(error)),
    };
    let meta = file.metadata().map_err(unread)?;
    if !meta.is_file() || meta.len() > IGNORE_MAX {
        return Err(format!(
            "{} is no file, or has more than {IGNORE_MAX} bytes",
            path.display()
        ));
    }
    let mut text = String::new();
    file.take(IGNORE_MAX)
        .read_to_string(&mut text)
        .map_err(unread)?;
    Ignore::parse(&text).map_err(|line| format!("line {line} of {} is no pattern", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_ignore_file_of_a_context_is_never_a_file_of_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(outside.path(), "*\n").unwrap();
        let link = folder.path().join(".dockerignore");
        for target in [outside.path(), Path::new("/dev/zero")] {
            symlink(target, &link).unwrap();
            assert!(ignore_of(folder.path()).unwrap().is_empty());
            std::fs::remove_file(&link).unwrap();
        }
        std::fs::write(folder.path().join("rules"), "a\n").unwrap();
        symlink("/rules", &link).unwrap();
        assert!(ignore_of(folder.path()).unwrap().ignores("a"));
    }
}
