//! Small files of the caller's, read within a folder.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

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
}
