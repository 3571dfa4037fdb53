//! `vm`: the engine's tests on a Debian kernel in qemu, on pure cgroup v2. Emulated, because KVM is seldom there inside of a virtual
//! machine, and so slow; it is run by hand.
//!
//! Everything that the machine has is in one initramfs: busybox, the kernel's modules, the test programs and their libraries.
//! Its init copies that to a RAM disk with ext4 and changes root to it, because nothing can pivot_root(2) out of an initramfs, and
//! because data roots are on disks.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::args::{Args, ArgsError};

const QEMU: &str = "qemu-system-x86_64";
const BUSYBOX: &str = "/bin/busybox";
/// The meta package whose dependency is the release's kernel.
const KERNEL: &str = "linux-image-amd64";
/// What tests/it and init need; dependencies come along. A module that is built in is no error.
const MODULES: [&str; 12] = [
    "crc32c_generic", // ext4 asks for it by algorithm, which is no dependency
    "ext4",
    "brd",
    "loop",
    "erofs",
    "overlay",
    "veth",
    "bridge",
    "nft_chain_nat",
    "nft_ct",
    "nft_masq",
    "nft_nat",
];
/// What busybox has not, or not all of: control group namespaces, network namespaces, the firewall.
const PROGRAMS: [(&str, &str); 3] = [
    ("/usr/bin/unshare", "unshare"),
    ("/usr/sbin/ip", "ip"),
    ("/usr/sbin/nft", "nft"),
];
/// How init says on the console how the tests ended.
const VERDICT: &str = "kiln-vm: tests ended with ";

const INIT: &str = include_str!("vm/init.sh");
const TESTS: &str = include_str!("vm/tests.sh");

#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` could not be started: install it (Debian: {package})")]
    Spawn {
        program: String,
        package: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` failed ({status})")]
    Failed { program: String, status: String },
    #[error("apt knows no {KERNEL}: name a kernel's package with `--deb FILE`")]
    NoPackage,
    #[error("{folder} holds no {what}: is the package one of a Debian kernel?")]
    NoKernel { folder: PathBuf, what: &'static str },
    #[error("the kernel has no module `{module}`, and it is not built in either")]
    NoModule { module: String },
    #[error("cargo named no test program of kiln-engine")]
    NoTests,
    #[error("the machine ended before its tests did; the console above says why")]
    NoVerdict,
    #[error("the tests failed (exit code {code}); the console above says which")]
    Tests { code: String },
}

fn at<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T, VmError> {
    result.map_err(|source| VmError::Io {
        what: what.into(),
        source,
    })
}

/// Runs `command` to its end; gives what it said.
fn output(command: &mut Command, package: &'static str) -> Result<Vec<u8>, VmError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| VmError::Spawn {
            program: program.clone(),
            package,
            source,
        })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(VmError::Failed {
        program,
        status: output.status.to_string(),
    })
}

pub(crate) fn run(mut args: Args) -> Result<(), VmError> {
    let deb: Option<PathBuf> = args.option("--deb", "the file of a kernel's package")?;
    args.end()?;
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let workspace = manifest.parent().unwrap_or(&manifest);
    let folder = workspace.join("target/vm");
    at(
        format!("{} can't be made", folder.display()),
        fs::create_dir_all(&folder),
    )?;
    let deb = match deb {
        Some(deb) => deb,
        None => download(&folder)?,
    };
    let kernel = Kernel::unpack(&deb, &folder)?;
    let tests = build(workspace)?;
    let initramfs = kernel.image.with_file_name("initramfs");
    let mut archive = Archive::create(&initramfs)?;
    fill(&mut archive, &kernel, &tests)?;
    archive.finish()?;
    boot(&kernel.image, &initramfs)
}

/// The kernel of the machine's own Debian release.
fn download(folder: &Path) -> Result<PathBuf, VmError> {
    let said = output(Command::new("apt-cache").args(["depends", KERNEL]), "apt")?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let package = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .ok_or(VmError::NoPackage)?;
    let prefix = format!("{package}_");
    let there = |name: &str| name.starts_with(&prefix) && name.ends_with(".deb");
    if let Some(deb) = find(folder, &there)? {
        return Ok(deb);
    }
    output(
        Command::new("apt-get")
            .args(["download", package])
            .current_dir(folder),
        "apt",
    )?;
    find(folder, &there)?.ok_or(VmError::NoPackage)
}

/// A file of `folder`, or of a folder below, by its name.
fn find(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>, VmError> {
    let unread = || format!("{} can't be read", folder.display());
    for entry in at(unread(), fs::read_dir(folder))? {
        let entry = at(unread(), entry)?;
        if at(unread(), entry.file_type())?.is_dir() {
            if let Some(found) = find(&entry.path(), wanted)? {
                return Ok(Some(found));
            }
        } else if entry.file_name().to_str().is_some_and(wanted) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

struct Kernel {
    image: PathBuf,
    modules: PathBuf,
    builtin: String,
}

impl Kernel {
    fn unpack(deb: &Path, folder: &Path) -> Result<Self, VmError> {
        let name = deb.file_stem().unwrap_or_default();
        let unpacked = folder.join(name);
        if !unpacked.exists() {
            let part = folder.join("unpacking");
            let _ = fs::remove_dir_all(&part);
            output(
                Command::new("dpkg-deb").arg("-x").arg(deb).arg(&part),
                "dpkg",
            )?;
            at(
                format!("{} can't be renamed", part.display()),
                fs::rename(&part, &unpacked),
            )?;
        }
        let missing = |what| VmError::NoKernel {
            folder: unpacked.clone(),
            what,
        };
        let image = find(&unpacked.join("boot"), &|name| name.starts_with("vmlinuz-"))?
            .ok_or_else(|| missing("boot/vmlinuz-*"))?;
        let modules = unpacked.join("lib/modules");
        let builtin = find(&modules, &|name| name == "modules.builtin")?
            .ok_or_else(|| missing("modules.builtin"))?;
        let builtin = at(
            format!("{} can't be read", builtin.display()),
            fs::read_to_string(&builtin),
        )?;
        Ok(Self {
            image,
            modules,
            builtin,
        })
    }

    /// Adds `module` and what it depends on, in the order in which they have to be loaded.
    fn load(
        &self,
        module: &str,
        visited: &mut BTreeSet<String>,
        loaded: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<(), VmError> {
        let same = |file: &str| file.replace('-', "_") == format!("{module}.ko");
        if !visited.insert(module.to_owned()) {
            return Ok(());
        }
        let Some(path) = find(&self.modules, &|name| {
            same(name.strip_suffix(".xz").unwrap_or(name))
        })?
        else {
            let built_in = |path: &str| same(path.rsplit('/').next().unwrap_or(path));
            if self.builtin.lines().any(built_in) {
                return Ok(());
            }
            return Err(VmError::NoModule {
                module: module.to_owned(),
            });
        };
        let bytes = if path.extension().is_some_and(|kind| kind == "xz") {
            output(Command::new("xz").arg("-dc").arg(&path), "xz-utils")?
        } else {
            at(format!("{} can't be read", path.display()), fs::read(&path))?
        };
        for dependency in depends(&bytes) {
            self.load(&dependency.replace('-', "_"), visited, loaded)?;
        }
        loaded.push((module.to_owned(), bytes));
        Ok(())
    }
}

/// `depends=a,b` of a module's .modinfo section, which is a list of strings that end with nul.
fn depends(module: &[u8]) -> Vec<String> {
    module
        .split(|byte| *byte == 0)
        .find_map(|string| string.strip_prefix(b"depends="))
        .map(|names| String::from_utf8_lossy(names).into_owned())
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// What `cargo test --message-format=json` says of one test program.
#[derive(Deserialize)]
struct Built {
    executable: Option<PathBuf>,
}

fn build(workspace: &Path) -> Result<Vec<PathBuf>, VmError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let said = output(
        Command::new(cargo)
            .current_dir(workspace)
            .args(["test", "--package", "kiln-engine", "--no-run"])
            .arg("--message-format=json-render-diagnostics"),
        "cargo",
    )?;
    let tests: Vec<PathBuf> = String::from_utf8_lossy(&said)
        .lines()
        .filter_map(|line| serde_json::from_str::<Built>(line).ok()?.executable)
        .collect();
    if tests.is_empty() {
        return Err(VmError::NoTests);
    }
    Ok(tests)
}

/// The absolute paths that ldd(1) names: libraries and the loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, VmError> {
    let said = output(Command::new("ldd").arg(program), "libc-bin")?;
    Ok(String::from_utf8_lossy(&said)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

fn fill(archive: &mut Archive, kernel: &Kernel, tests: &[PathBuf]) -> Result<(), VmError> {
    archive.copy(Path::new(BUSYBOX), BUSYBOX)?;
    let mut needed = BTreeSet::new();
    for (path, name) in PROGRAMS {
        archive.copy(Path::new(path), &format!("/usr/bin/{name}"))?;
        needed.extend(libraries(Path::new(path))?);
    }
    for (index, test) in tests.iter().enumerate() {
        archive.copy(test, &format!("/tests/{index}"))?;
        needed.extend(libraries(test)?);
    }
    for library in needed {
        archive.copy(&library, &library.to_string_lossy())?;
    }
    let (mut visited, mut loaded) = (BTreeSet::new(), Vec::new());
    for module in MODULES {
        kernel.load(module, &mut visited, &mut loaded)?;
    }
    // init loads them in the order of their names.
    for (index, (name, bytes)) in loaded.iter().enumerate() {
        archive.file(&format!("/modules/{index:03}-{name}.ko"), 0o644, bytes)?;
    }
    archive.file("/init", 0o755, INIT.as_bytes())?;
    archive.file("/run-tests", 0o755, TESTS.as_bytes())
}

/// A cpio archive of the `newc` kind (Linux, driver-api/early-userspace/buffer-format).
struct Archive {
    path: PathBuf,
    file: io::BufWriter<File>,
    folders: BTreeSet<PathBuf>,
    entries: u32,
}

impl Archive {
    fn create(path: &Path) -> Result<Self, VmError> {
        let file = at(
            format!("{} can't be written", path.display()),
            File::create(path),
        )?;
        Ok(Self {
            path: path.to_owned(),
            file: io::BufWriter::new(file),
            folders: BTreeSet::new(),
            entries: 0,
        })
    }

    fn copy(&mut self, from: &Path, to: &str) -> Result<(), VmError> {
        let failed = || format!("{} can't be read", from.display());
        let bytes = at(failed(), fs::read(from))?;
        let mode = at(failed(), fs::metadata(from))?.permissions().mode() & 0o777;
        self.file(to, mode, &bytes)
    }

    fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<(), VmError> {
        const FILE: u32 = 0o100_000;
        const FOLDER: u32 = 0o040_000;
        let folders: Vec<&Path> = Path::new(path).ancestors().skip(1).collect();
        for folder in folders.into_iter().rev() {
            let name = folder.to_string_lossy();
            let name = name.trim_start_matches('/');
            if !name.is_empty() && self.folders.insert(folder.to_owned()) {
                self.entry(name, FOLDER | 0o755, &[])?;
            }
        }
        self.entry(path.trim_start_matches('/'), FILE | mode, bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), VmError> {
        self.entries += 1;
        let failed = format!("{} can't be written", self.path.display());
        at(
            failed,
            write_entry(&mut self.file, self.entries, name, mode, bytes),
        )
    }

    fn finish(mut self) -> Result<(), VmError> {
        self.entry("TRAILER!!!", 0, &[])?;
        at(
            format!("{} can't be written", self.path.display()),
            self.file.flush(),
        )
    }
}

fn write_entry(
    out: &mut impl Write,
    inode: u32,
    name: &str,
    mode: u32,
    bytes: &[u8],
) -> io::Result<()> {
    let length = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
    let (size, name_size) = (length(bytes.len())?, length(name.len() + 1)?);
    // Owner, group, links, time, then size, four device numbers, the name's length with its nul, and no checksum.
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    write!(out, "070701")?;
    for field in fields {
        write!(out, "{field:08x}")?;
    }
    out.write_all(name.as_bytes())?;
    // The header has 110 bytes; header with name, and content, end at multiples of four.
    let padding = |length: usize| &[0; 4][..length.next_multiple_of(4) - length];
    out.write_all(&[0])?;
    out.write_all(padding(110 + name.len() + 1))?;
    out.write_all(bytes)?;
    out.write_all(padding(bytes.len()))
}

fn boot(image: &Path, initramfs: &Path) -> Result<(), VmError> {
    let mut qemu = Command::new(QEMU);
    qemu.args(["-machine", "accel=tcg", "-cpu", "max"])
        .args(["-smp", "2", "-m", "2048"])
        .args(["-nographic", "-no-reboot", "-nic", "none"])
        .args(["-append", "console=ttyS0 loglevel=3 panic=-1"])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut machine = qemu.spawn().map_err(|source| VmError::Spawn {
        program: QEMU.to_owned(),
        package: "qemu-system-x86",
        source,
    })?;
    let mut verdict = None;
    if let Some(console) = machine.stdout.take() {
        for line in BufReader::new(console).split(b'\n') {
            let line = at("the machine's console can't be read", line)?;
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            println!("{line}");
            if let Some((_, code)) = line.split_once(VERDICT) {
                verdict = Some(code.to_owned());
            }
        }
    }
    at("waiting for the machine", machine.wait())?;
    match verdict.as_deref() {
        None => Err(VmError::NoVerdict),
        Some("0") => Ok(()),
        Some(code) => Err(VmError::Tests {
            code: code.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_depends_on_is_read_from_it() {
        let module = b"\x7fELF\0\0license=GPL\0depends=stp,llc\0name=bridge\0";
        assert_eq!(depends(module), ["stp", "llc"]);
        assert_eq!(depends(b"\0depends=\0"), Vec::<String>::new());
    }

    #[test]
    fn entries_of_an_archive_end_at_multiples_of_four() {
        for (name, bytes) in [("a", &b"x"[..]), ("abcd", b"1234"), ("bin/sh", b"")] {
            let mut out = Vec::new();
            write_entry(&mut out, 1, name, 0o100_644, bytes).unwrap();
            assert_eq!(out.len() % 4, 0, "{name}");
            assert_eq!(&out[..6], b"070701");
            assert_eq!(&out[110..110 + name.len()], name.as_bytes());
            let content = (110 + name.len() + 1).next_multiple_of(4);
            assert_eq!(&out[content..content + bytes.len()], bytes);
        }
    }
}
