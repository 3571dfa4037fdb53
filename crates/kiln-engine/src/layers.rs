//! Layers: one EROFS file each, mounted once, read-only, straight from the file (or, where the kernel can't, through a loop
//! device), shared by all instances.

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use kiln_model::{Digest, StartFault};
use kiln_oci::erofs::{self, CheckError};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, unmount};

use crate::spec::LayerFile;
use crate::sys;

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("the layer {path} can't be read")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the layer {path} was changed after it was written: it has the digest {found}, and {expected} was recorded. \
         Delete that file, and kiln makes it again when the image is started next; and find out who writes there"
    )]
    Changed {
        path: PathBuf,
        expected: Digest,
        found: Digest,
    },
    #[error(
        "the layer {path} can't be mounted (kiln needs a kernel with EROFS; before Linux 6.12, one with loop devices too)"
    )]
    Mount { path: PathBuf, source: io::Error },
}

impl LayerError {
    pub(crate) fn fault(&self) -> StartFault {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                StartFault::Image
            }
            Self::Read { .. } => StartFault::Host,
            Self::Changed { .. } => StartFault::Image,
            Self::Mount { .. } => StartFault::Mount,
        }
    }
}

const FLAGS: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV);
/// A free loop device can be somebody else's before it is ours.
const LOOP_TRIES: u32 = 64;

/// Where the layers are mounted below `folder`, in their order.
pub(crate) fn mount_points_of(folder: &Path, layers: &[LayerFile]) -> Vec<PathBuf> {
    let point = |layer: &LayerFile| folder.join(layer.digest.hex());
    layers.iter().map(point).collect()
}

/// Mounts what is not mounted yet below `folder`, at [`mount_points_of`] the layers. On the first mount after boot the whole file
/// is read and compared with its digest.
pub(crate) fn mount_all(folder: &Path, layers: &[LayerFile]) -> Result<(), LayerError> {
    let mounted = mount_points();
    for (layer, point) in layers.iter().zip(mount_points_of(folder, layers)) {
        if !mounted.contains(&point) {
            check(layer)?;
            let failed = |source| LayerError::Mount {
                path: layer.path.clone(),
                source,
            };
            fs::create_dir_all(&point).map_err(failed)?;
            mount(&layer.path, &point).map_err(failed)?;
        }
    }
    Ok(())
}

pub(crate) fn mount(file: &Path, point: &Path) -> io::Result<()> {
    let donors = open_donors(file)?;
    // By descriptor: a path may have what would end the option.
    let devices = donors
        .iter()
        .map(|donor| PathBuf::from(format!("/proc/self/fd/{}", donor.as_raw_fd())));
    let options = options(devices);
    match mount_erofs(file, point, options) {
        // ENOTBLK: before Linux 6.12 EROFS wants a block device. EINVAL: it can't read through the file system that the
        // file is on, such as tmpfs.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTBLK | libc::EINVAL)) => {
            mount_through_loop(file, &donors, point)
        }
        mounted => mounted,
    }
}

fn mount_erofs(source: &Path, point: &Path, options: Option<OsString>) -> io::Result<()> {
    let options = options.map(|options| CString::new(options.into_vec()));
    let options = options.transpose()?;
    Ok(rustix::mount::mount(
        source,
        point,
        "erofs",
        FLAGS,
        options.as_deref(),
    )?)
}

/// The files that `file` takes blocks from, in the order of its devices.
fn open_donors(file: &Path) -> io::Result<Vec<File>> {
    let paths = erofs::donor_paths(file)?.into_iter();
    paths.map(|(_, path)| open_named(&path)).collect()
}

/// Opens a file; an error says which.
fn open_named(path: &Path) -> io::Result<File> {
    File::open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn options(devices: impl Iterator<Item = PathBuf>) -> Option<OsString> {
    let mut options = OsString::new();
    for device in devices {
        if !options.is_empty() {
            options.push(",");
        }
        options.push("device=");
        options.push(device);
    }
    (!options.is_empty()).then_some(options)
}

/// The mount holds the devices, and the kernel frees them with the last unmount.
fn mount_through_loop(file: &Path, donors: &[File], point: &Path) -> io::Result<()> {
    let (device, path) = attach_loop(&File::open(file)?)?;
    let donors = donors
        .iter()
        .map(attach_loop)
        .collect::<io::Result<Vec<_>>>()?;
    let options = options(donors.iter().map(|(_, path)| path.clone()));
    let mounted = mount_erofs(&path, point, options);
    drop((device, donors));
    mounted
}

fn attach_loop(backing: &File) -> io::Result<(File, PathBuf)> {
    const CONTROL: &str = "/dev/loop-control";
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"))
    };
    let control = File::options()
        .read(true)
        .write(true)
        .open(CONTROL)
        .map_err(failed(Path::new(CONTROL)))?;
    for _ in 0..LOOP_TRIES {
        let number = sys::free_loop(&control).map_err(failed(Path::new(CONTROL)))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::open(&path).map_err(failed(&path))?;
        match sys::configure_loop(&device, backing) {
            Ok(()) => return Ok((device, path)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(failed(&path)(error)),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!("{CONTROL}: {LOOP_TRIES} times another program took the free loop device first"),
    ))
}

fn check(layer: &LayerFile) -> Result<(), LayerError> {
    erofs::check(&layer.path, &layer.digest).map_err(|error| match error {
        CheckError::Read { path, source } => LayerError::Read { path, source },
        CheckError::Changed {
            path,
            expected,
            found,
        } => LayerError::Changed {
            path,
            expected,
            found,
        },
    })
}

/// Everything that is mounted in this mount namespace.
pub(crate) fn mount_points() -> BTreeSet<PathBuf> {
    let text = fs::read("/proc/self/mounts").unwrap_or_default();
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(1))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .collect()
}

/// The kernel writes white space in paths as `\040` and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// Unmounts what no running instance needs.
pub(crate) fn unmount_unused(folder: &Path, needed: &BTreeSet<PathBuf>) {
    for point in mount_points() {
        if point.starts_with(folder) && !needed.contains(&point) {
            // Busy means that something still uses it after all.
            if unmount(&point, UnmountFlags::empty()).is_ok() {
                let _ = fs::remove_dir(&point);
            }
        }
    }
}

/// A read-only overlay (or a single layer) mounted at a folder until it is dropped: how a bake looks into an image.
pub struct Overlay {
    target: PathBuf,
    mounts: Vec<PathBuf>,
}

impl Overlay {
    /// `layers` are EROFS files, bottom to top; `scratch` is an empty folder of the caller's.
    pub fn mount(layers: &[PathBuf], scratch: &Path) -> Result<Self, LayerError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LayerError::Mount { path, source }
        };
        let target = scratch.join("view");
        let mut overlay = Self {
            target: target.clone(),
            mounts: Vec::new(),
        };
        let mut points = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            let point = scratch.join(format!("layer{index}"));
            fs::create_dir_all(&point).map_err(failed(layer))?;
            mount(layer, &point).map_err(failed(layer))?;
            overlay.mounts.push(point.clone());
            points.push(point);
        }
        fs::create_dir_all(&target).map_err(failed(&target))?;
        match &points[..] {
            [] => {}
            [one] => {
                mount_bind(one, &target).map_err(|errno| failed(&target)(errno.into()))?;
                overlay.mounts.push(target);
            }
            many => {
                let many: Vec<&Path> = many.iter().map(PathBuf::as_path).collect();
                crate::overlay::mount(&many, None, &target, FLAGS).map_err(failed(&target))?;
                overlay.mounts.push(target);
            }
        }
        Ok(overlay)
    }

    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Unmounts what a process that was killed has left mounted in its `scratch`.
    pub fn unmount_left(scratch: &Path) -> io::Result<()> {
        let scratch = scratch.canonicalize()?;
        for point in mount_points().iter().rev() {
            if point.starts_with(&scratch) {
                unmount(point, UnmountFlags::DETACH)?;
            }
        }
        Ok(())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        for point in self.mounts.iter().rev() {
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // the wait has a deadline
mod tests {
    use std::time::{Duration, Instant};

    use kiln_oci::{Entry, Store, Tree};

    use super::*;

    /// A store below `folder` with a layer that holds one file.
    fn layer(folder: &Path) -> PathBuf {
        let mut tree = Tree::new();
        tree.insert("hello", Entry::bytes(&b"from the layer"[..], 0o644))
            .unwrap();
        let store = Store::open(folder).unwrap();
        let layer = store.add_layer(&tree).unwrap();
        store.lowers(&[layer]).unwrap().remove(0)
    }

    /// The loop devices whose backing file is `file`.
    fn loops_of(file: &Path) -> usize {
        fs::read_dir("/sys/block")
            .unwrap()
            .filter_map(|entry| {
                fs::read_to_string(entry.unwrap().path().join("loop/backing_file")).ok()
            })
            .filter(|backing| Path::new(backing.trim_end()) == file)
            .count()
    }

    fn no_loop_is_left(file: &Path) {
        // udev may look at the device at that moment, and holds it while it does.
        let deadline = Instant::now() + Duration::from_secs(10);
        while loops_of(file) > 0 {
            assert!(Instant::now() < deadline, "a loop device is left");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_layer_is_mounted_through_a_loop_device_that_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = layer(&folder.path().join("store"));
        let point = folder.path().join("point");
        fs::create_dir(&point).unwrap();
        mount_through_loop(&file, &[], &point).unwrap();
        let read = fs::read_to_string(point.join("hello"));
        let (loops, written) = (loops_of(&file), fs::write(point.join("new"), ""));
        unmount(&point, UnmountFlags::empty()).unwrap();
        assert_eq!(read.unwrap(), "from the layer");
        assert_eq!(loops, 1);
        assert_eq!(
            written.unwrap_err().kind(),
            io::ErrorKind::ReadOnlyFilesystem
        );
        no_loop_is_left(&file);
    }

    /// Two layers that differ in a small file: the paths of their EROFS files.
    fn layers_with_much_in_common(folder: &Path) -> [PathBuf; 2] {
        let store = Store::open(folder).unwrap();
        ["one", "two"].map(|text| {
            let mut tree = Tree::new();
            let large: Vec<u8> = (0..3_000_000_u32)
                .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect();
            tree.insert("large", Entry::bytes(large, 0o644)).unwrap();
            tree.insert("small", Entry::bytes(text.as_bytes(), 0o644))
                .unwrap();
            let layer = store.add_layer(&tree).unwrap();
            store.lowers(&[layer]).unwrap().remove(0)
        })
    }

    fn large_and_small(point: &Path) -> (Digest, String) {
        let large = fs::read(point.join("large")).unwrap();
        let small = fs::read_to_string(point.join("small")).unwrap();
        (Digest::of(&large), small)
    }

    #[test]
    fn a_layer_with_blocks_of_another_is_mounted_from_both_files_or_devices() {
        let folder = tempfile::tempdir().unwrap();
        // A comma in the path must not end the option that names the other file.
        let [first, second] = layers_with_much_in_common(&folder.path().join("a,b"));
        let point = folder.path().join("point");
        fs::create_dir(&point).unwrap();
        mount(&first, &point).unwrap();
        let (large, _) = large_and_small(&point);
        unmount(&point, UnmountFlags::empty()).unwrap();
        assert!(fs::metadata(&second).unwrap().len() < 100_000);

        mount(&second, &point).unwrap();
        let from_files = large_and_small(&point);
        unmount(&point, UnmountFlags::empty()).unwrap();
        let donors = open_donors(&second).unwrap();
        mount_through_loop(&second, &donors, &point).unwrap();
        let (loops, from_loops) = (loops_of(&first), large_and_small(&point));
        unmount(&point, UnmountFlags::empty()).unwrap();
        assert_eq!(from_files, (large, "two".to_owned()));
        assert_eq!(from_loops, from_files);
        assert_eq!(loops, 1);
        no_loop_is_left(&first);
        no_loop_is_left(&second);
    }

    #[test]
    fn damage_in_a_file_that_a_layer_takes_blocks_from_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = layers_with_much_in_common(folder.path());
        let hex = second.file_stem().unwrap().to_str().unwrap();
        let layer = LayerFile {
            path: second.clone(),
            digest: Digest::from_hex(hex).unwrap(),
        };
        check(&layer).unwrap();
        let mut bytes = fs::read(&first).unwrap();
        bytes[2_000_000] ^= 1;
        fs::write(&first, bytes).unwrap();
        let error = check(&layer).unwrap_err();
        assert!(matches!(&error, LayerError::Changed { path, .. } if *path == first));
        fs::remove_file(&first).unwrap();
        let error = check(&layer).unwrap_err();
        assert!(matches!(&error, LayerError::Read { path, .. } if *path == first));
    }

    #[test]
    fn a_layer_that_is_none_leaves_no_loop_device() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("zeros");
        fs::write(&file, [0; 8192]).unwrap();
        let point = folder.path().join("point");
        fs::create_dir(&point).unwrap();
        let error = mount(&file, &point).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        no_loop_is_left(&file);
    }

    #[test]
    fn a_layer_on_a_file_system_without_page_reads_is_mounted() {
        let folder = tempfile::tempdir().unwrap();
        let [memory, point] = ["memory", "point"].map(|name| folder.path().join(name));
        fs::create_dir(&memory).unwrap();
        fs::create_dir(&point).unwrap();
        crate::tmpfs::mount_at(&memory, MountFlags::empty(), "").unwrap();
        let file = layer(&memory);
        let mounted = mount(&file, &point);
        let read = fs::read_to_string(point.join("hello"));
        let _ = unmount(&point, UnmountFlags::empty());
        no_loop_is_left(&file);
        unmount(&memory, UnmountFlags::DETACH).unwrap();
        mounted.unwrap();
        assert_eq!(read.unwrap(), "from the layer");
    }
}
