//! This program, to be executed once more as a shim or as the holder of a step.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::Serialize;

/// A sealed copy of this program, in memory: nothing that an instance does reaches the program on disk (CVE-2019-5736).
pub(crate) struct Program {
    file: File,
}

impl Program {
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Made once: what runs is the program as it was when the first container was started.
    pub(crate) fn copy() -> io::Result<&'static Self> {
        static PROGRAM: OnceLock<Program> = OnceLock::new();
        if let Some(program) = PROGRAM.get() {
            return Ok(program);
        }
        let made = seal()?;
        Ok(PROGRAM.get_or_init(|| made))
    }
}

fn seal() -> io::Result<Program> {
    let copy = memfd_create("kiln", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(copy);
    let mut source = File::open("/proc/self/exe")?;
    io::copy(&mut source, &mut file)?;
    file.flush()?;
    fcntl_add_seals(
        &file,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(Program { file })
}

/// A file with `value` as JSON that is on no disk, because it may hold secrets. Its position is at the end.
pub(crate) fn in_memory<T: Serialize>(name: &str, value: &T) -> io::Result<File> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(value)?)?;
    Ok(file)
}
