//! Layers as one folder, by the kernel's overlay.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

/// mount(2) copies one page of options, with the byte at their end.
const OPTIONS_MAX: usize = 4095;

/// Mounts `lowers`, bottom to top, at `target`; what is written goes to the first folder of `upper`, the second one is the
/// kernel's.
///
/// Many layers have more to say than mount(2) takes. Their paths are then those of open descriptors, which are short: enough
/// for some 230 layers on every kernel.
pub(crate) fn mount(
    lowers: &[&Path],
    upper: Option<(&Path, &Path)>,
    target: &Path,
    flags: MountFlags,
) -> io::Result<()> {
    let mut options = options(lowers, upper);
    let mut opened: Vec<OwnedFd> = Vec::new();
    if options.len() > OPTIONS_MAX {
        let mut short = Vec::new();
        for lower in lowers {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let lower = rustix::fs::open(*lower, flags, Mode::empty())?;
            short.push(PathBuf::from(format!(
                "/proc/self/fd/{}",
                lower.as_raw_fd()
            )));
            opened.push(lower);
        }
        let short: Vec<&Path> = short.iter().map(PathBuf::as_path).collect();
        options = self::options(&short, upper);
    }
    if options.len() > OPTIONS_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} layers are more than an overlay takes", lowers.len()),
        ));
    }
    let options = CString::new(options)?;
    Ok(rustix::mount::mount(
        "kiln",
        target,
        "overlay",
        flags,
        options.as_c_str(),
    )?)
}

fn options(lowers: &[&Path], upper: Option<(&Path, &Path)>) -> Vec<u8> {
    let mut options = b"lowerdir=".to_vec();
    for (index, lower) in lowers.iter().rev().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        escape(&mut options, lower);
    }
    if let Some((upper, work)) = upper {
        options.extend(b",upperdir=");
        escape(&mut options, upper);
        options.extend(b",workdir=");
        escape(&mut options, work);
    }
    options
}

/// The kernel splits at `:` and `,`, and takes `\` as an escape.
fn escape(options: &mut Vec<u8>, path: &Path) {
    for byte in path.as_os_str().as_encoded_bytes() {
        if matches!(byte, b':' | b'\\' | b',') {
            options.push(b'\\');
        }
        options.push(*byte);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::mount::UnmountFlags;

    use super::*;

    #[test]
    fn many_layers_are_one_folder() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        fs::create_dir(&target).unwrap();
        // Long, and with what the kernel splits at.
        let layers: Vec<PathBuf> = (0..200)
            .map(|index| {
                folder
                    .path()
                    .join(format!("layer:{index},{}", "x".repeat(60)))
            })
            .collect();
        for (index, layer) in layers.iter().enumerate() {
            fs::create_dir(layer).unwrap();
            fs::write(layer.join(format!("of-{index}")), "").unwrap();
            fs::write(layer.join("last"), index.to_string()).unwrap();
        }
        let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        mount(&layers, None, &target, MountFlags::RDONLY).unwrap();
        let found = fs::read_dir(&target).unwrap().count();
        let last = fs::read_to_string(target.join("last")).unwrap();
        rustix::mount::unmount(&target, UnmountFlags::empty()).unwrap();
        assert_eq!((found, last.as_str()), (201, "199"));
    }

    #[test]
    fn too_many_layers_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let error = mount(&vec![path; 400], None, path, MountFlags::empty()).unwrap_err();
        assert!(error.to_string().contains("400 layers"), "{error}");
    }
}
