//! Debian's archives.

use std::fs;
use std::path::Path;

/// A member is found or not, and the control files with it.
pub(crate) fn ar(data: &[u8]) -> bool {
    kiln_bake::fuzzing::control_files(data)
}

/// Whatever a package has, it is unpacked below the folder that was named, and nothing beside it changes.
pub(crate) fn deb(data: &[u8]) -> bool {
    let folder = tempfile::tempdir_in(fast()).expect("a temporary folder");
    let (root, beside) = (folder.path().join("root"), folder.path().join("beside"));
    fs::create_dir(&root).expect("an empty folder");
    fs::create_dir(&beside).expect("an empty folder");
    let kept = beside.join("kept");
    fs::write(&kept, "as it was").expect("an empty folder");
    // Packages name this place when they try to leave theirs.
    let data = replaced(data, b"@BESIDE@", beside.as_os_str().as_encoded_bytes());
    let is_taken = kiln_bake::fuzzing::unpack(&data, &root);
    let names: Vec<_> = fs::read_dir(folder.path())
        .expect("it was not removed")
        .map(|entry| entry.expect("it was not removed").file_name())
        .collect();
    assert_eq!(names.len(), 2, "written beside its root: {names:?}");
    let there = fs::read_dir(&beside).expect("it was not removed").count();
    assert_eq!(there, 1, "written beside its root");
    assert_eq!(fs::read(&kept).ok().as_deref(), Some(&b"as it was"[..]));
    is_taken
}

/// On memory, where it is: each input makes a folder.
pub(crate) fn fast() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        memory
    } else {
        Path::new("/tmp")
    }
}

/// Of one length, so that archives stay whole: the rest is filled with `/`.
fn replaced(data: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    // In the seeds so many bytes are kept free for the path that is put in.
    const ROOM: usize = 64;
    let mut at = 0;
    while let Some(found) = out[at..]
        .windows(what.len())
        .position(|window| window == what)
    {
        let from = at + found;
        let to = (from + ROOM).min(out.len());
        if by.len() <= to - from {
            let rest = &out[from + what.len()..to];
            // `@BESIDE@/name` padded with slashes by whoever made the seed.
            let name: Vec<u8> = rest.iter().copied().skip_while(|b| *b == b'/').collect();
            let mut filled = by.to_vec();
            let slashes = (to - from).saturating_sub(by.len() + name.len());
            filled.extend(std::iter::repeat_n(b'/', slashes));
            filled.extend(name);
            filled.truncate(to - from);
            out[from..to].copy_from_slice(&filled);
        }
        at = to.max(from + 1);
        if at >= out.len() {
            break;
        }
    }
    out
}

/// Fields, dependencies and versions of whatever stands in an index.
pub(crate) fn control(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(kiln_bake::fuzzing::control)
}

/// Nobody but the archive's key signs.
pub(crate) fn release(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(kiln_bake::fuzzing::release)
}
