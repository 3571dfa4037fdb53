//! Small files of the caller's: read within a folder, and replaced whole.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Component, Path};

/// More than any text that kiln reads.
const LARGEST: u64 = 16 << 20;

/// The bytes of a regular file inside `root`, of 16 MiB at most. Symbolic links are followed as long as they stay inside.
///
/// # Errors
///
/// `InvalidInput`: it is outside of `root`, which is called `name`, or no regular file; `FileTooLarge`.
pub(crate) fn read_inside(root: &Path, name: &str, path: &Path) -> Result<Vec<u8>> {
    let real = path.canonicalize()?;
    if !real.starts_with(root.canonicalize()?) {
        let is_named = path
            .strip_prefix(root)
            .is_ok_and(|inside| inside.components().all(|part| part != Component::ParentDir));
        let why = if is_named {
            format!("a link leads out of {name}")
        } else {
            format!("it is outside of {name}")
        };
        return Err(Error::new(ErrorKind::InvalidInput, why));
    }
    // Opening a pipe would wait for its other end.
    if !std::fs::metadata(&real)?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::open(&real)?
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        let why = "it is larger than 16 MiB";
        return Err(Error::new(ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// The same, of a text.
pub(crate) fn read_text_inside(root: &Path, name: &str, path: &Path) -> Result<String> {
    let bytes = read_inside(root, name, path)?;
    String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

/// The whole text or what was there before, whatever happens meanwhile. A symbolic link stays one, and mode and owner stay.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let (path, before) = match path.canonicalize() {
        Ok(real) => {
            let before = std::fs::metadata(&real)?;
            (real, Some(before))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => (path.to_owned(), None),
        Err(error) => return Err(error),
    };
    let mut temporary = path.clone().into_os_string();
    temporary.push(format!(".{}", std::process::id()));
    let write = || {
        let mut file = File::create(&temporary)?;
        if let Some(before) = before {
            fchown(&file, Some(before.uid()), Some(before.gid()))?;
            file.set_permissions(before.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()
    };
    let written = write();
    if written.is_err() {
        // The cause matters more than what is left of it.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn links_lead_nowhere_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join("in").join(name);
        std::fs::create_dir(folder.path().join("in")).unwrap();
        std::fs::write(folder.path().join("secret"), "s").unwrap();
        std::fs::write(at("file"), "f").unwrap();
        symlink("file", at("link")).unwrap();
        symlink("../secret", at("out")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let read = |name| read_inside(&folder.path().join("in"), "it", &at(name));
        assert_eq!(read("link").unwrap(), b"f");
        for (name, kind) in [
            ("out", ErrorKind::InvalidInput),
            ("zero", ErrorKind::InvalidInput),
            (".", ErrorKind::InvalidInput),
            ("none", ErrorKind::NotFound),
        ] {
            assert_eq!(read(name).unwrap_err().kind(), kind, "{name}");
        }
        assert!(read("loop").is_err());
        let large = File::create(at("large")).unwrap();
        large.set_len(LARGEST + 1).unwrap();
        assert_eq!(read("large").unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_file_that_is_replaced_stays_what_it_was_but_for_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let [real, link, new] = ["real", "link", "new"].map(|name| folder.path().join(name));
        std::fs::write(&real, "before").unwrap();
        std::fs::set_permissions(&real, PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&real, Some(7), Some(8)).unwrap();
        symlink("real", &link).unwrap();
        replace(&link, "after").unwrap();
        replace(&new, "new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&real).unwrap(), "after");
        let meta = std::fs::metadata(&real).unwrap();
        let mode = meta.mode() & 0o777;
        assert_eq!((mode, meta.uid(), meta.gid()), (0o640, 7, 8));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
