//! Another clock for the programs of a step, to find out what of a bake depends on the time of day.
//!
//! The kernel has no clock of the day for each namespace, so the dynamic linker is told (`/etc/ld.so.preload`) to load a small
//! library before all others, whose functions ask the kernel and add what the clock is moved by. Programs that are linked
//! statically, and those that ask the kernel themselves, see the machine's own clock. The library is written here: nothing of
//! the host is executed to make it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use kiln_engine::{MountSource, SandboxMount};

use crate::step::container::Container;

const PRELOAD: &str = "etc/ld.so.preload";
const LIBRARY: &str = "etc/.kiln-clock.so";

/// A folder with what moves the clock.
pub(crate) struct Moved(PathBuf);

impl Moved {
    /// `None`: not on this kind of processor.
    pub(crate) fn new(folder: PathBuf, seconds: i32) -> io::Result<Option<Self>> {
        let Some(library) = library(seconds) else {
            return Ok(None);
        };
        let etc = folder.join("etc");
        fs::create_dir_all(&etc)?;
        // A step that changes the image's sees this one's mode, which is not the umask's to decide.
        fs::set_permissions(&etc, fs::Permissions::from_mode(0o755))?;
        fs::write(folder.join(LIBRARY), library)?;
        fs::write(folder.join(PRELOAD), format!("/{LIBRARY}\n"))?;
        Ok(Some(Self(folder)))
    }

    /// To be laid over the layers: nothing of it is in what the step changes.
    pub(crate) fn lower(&self) -> PathBuf {
        self.0.clone()
    }

    /// For a root that is no overlay.
    pub(crate) fn mounts(&self) -> Vec<SandboxMount> {
        [PRELOAD, LIBRARY]
            .map(|name| SandboxMount {
                to: format!("/{name}"),
                writable: false,
                source: MountSource::Folder {
                    root: self.0.join(name),
                    inside: PathBuf::new(),
                },
            })
            .to_vec()
    }

    /// What was made in the root of a step to mount [`Moved::mounts`] on.
    pub(crate) fn remove_mount_points(container: &Container<'_>) -> io::Result<()> {
        for mount in container.mounts.iter().filter(|mount| is_own(&mount.to)) {
            match fs::remove_file(container.upper.join(mount.to.trim_start_matches('/'))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_own(path: &str) -> bool {
    [PRELOAD, LIBRARY].contains(&path.trim_start_matches('/'))
}

/// A shared library with the functions of the C library that tell the time of day, on this processor.
fn library(seconds: i32) -> Option<Vec<u8>> {
    if cfg!(target_arch = "x86_64") {
        Some(elf(&functions(seconds)))
    } else {
        None
    }
}

/// For x86-64. The system calls keep all registers that are used here but rax.
fn functions(seconds: i32) -> [(&'static str, Vec<u8>); 4] {
    let moved = seconds.to_le_bytes();
    let code = |parts: &[&[u8]]| parts.concat();
    let clock_gettime = code(&[
        &[0xb8, 0xe4, 0, 0, 0],        // mov eax, clock_gettime
        &[0x0f, 0x05],                 // syscall
        &[0x85, 0xc0, 0x75, 0x16],     // test eax, eax; jne failed
        &[0x85, 0xff, 0x74, 0x0a],     // test edi, edi; je realtime
        &[0x83, 0xff, 5, 0x74, 0x05],  // cmp edi, CLOCK_REALTIME_COARSE; je realtime
        &[0x83, 0xff, 11, 0x75, 0x07], // cmp edi, CLOCK_TAI; jne done
        &[0x48, 0x81, 0x06],           // realtime: add qword [rsi], seconds
        &moved,
        &[0xc3],                   // done: ret
        &[0x83, 0xc8, 0xff, 0xc3], // failed: or eax, -1; ret
    ]);
    let gettimeofday = code(&[
        &[0xb8, 0x60, 0, 0, 0],          // mov eax, gettimeofday
        &[0x0f, 0x05],                   // syscall
        &[0x85, 0xc0, 0x75, 0x0d],       // test eax, eax; jne failed
        &[0x48, 0x85, 0xff, 0x74, 0x07], // test rdi, rdi; je done
        &[0x48, 0x81, 0x07],             // add qword [rdi], seconds
        &moved,
        &[0xc3],                   // done: ret
        &[0x83, 0xc8, 0xff, 0xc3], // failed: or eax, -1; ret
    ]);
    let time = code(&[
        &[0x48, 0x89, 0xfa],    // mov rdx, rdi
        &[0x31, 0xff],          // xor edi, edi
        &[0xb8, 0xc9, 0, 0, 0], // mov eax, time
        &[0x0f, 0x05],          // syscall
        &[0x48, 0x05],          // add rax, seconds
        &moved,
        &[0x48, 0x85, 0xd2, 0x74, 0x03], // test rdx, rdx; je done
        &[0x48, 0x89, 0x02],             // mov [rdx], rax
        &[0xc3],                         // done: ret
    ]);
    let timespec_get = code(&[
        &[0x48, 0x89, 0xfe],    // mov rsi, rdi
        &[0x31, 0xff],          // xor edi, edi: CLOCK_REALTIME
        &[0xb8, 0xe4, 0, 0, 0], // mov eax, clock_gettime
        &[0x0f, 0x05],          // syscall
        &[0x48, 0x81, 0x06],    // add qword [rsi], seconds
        &moved,
        &[0xb8, 1, 0, 0, 0, 0xc3], // mov eax, TIME_UTC; ret
    ]);
    [
        ("clock_gettime", clock_gettime),
        ("gettimeofday", gettimeofday),
        ("time", time),
        ("timespec_get", timespec_get),
    ]
}

/// The least shared library (System V ABI, "Object Files" and "Dynamic Linking"): one segment with symbols and code, one with what
/// the linker reads and writes.
fn elf(functions: &[(&str, Vec<u8>)]) -> Vec<u8> {
    const HEADER: usize = 64;
    const SEGMENT: usize = 56;
    const SEGMENTS: usize = 4;
    const SYMBOL: usize = 24;
    /// As large as pages are anywhere.
    const ALIGN: u64 = 0x10000;
    let count = functions.len() + 1;
    let symbols_at = HEADER + SEGMENTS * SEGMENT;
    let names_at = symbols_at + count * SYMBOL;
    let mut names = vec![0];
    let mut at = Vec::new();
    for (name, _) in functions {
        at.push(names.len());
        names.extend(name.bytes().chain([0]));
    }
    let hash_at = (names_at + names.len()).next_multiple_of(8);
    let code_at = (hash_at + 4 * (2 + 1 + count)).next_multiple_of(16);
    let mut code = Vec::new();
    let mut symbols = vec![0; SYMBOL];
    for ((_, body), name) in functions.iter().zip(&at) {
        code.resize(code.len().next_multiple_of(16), 0xcc);
        symbols.extend((*name as u32).to_le_bytes());
        // A global function, in some section.
        symbols.extend([0x12, 0, 1, 0]);
        symbols.extend(((code_at + code.len()) as u64).to_le_bytes());
        symbols.extend((body.len() as u64).to_le_bytes());
        code.extend(body);
    }
    // One bucket, in which each symbol leads to the next.
    let mut hash = vec![1, count as u32, 1, 0];
    hash.extend((2..=count as u32).map(|next| if next == count as u32 { 0 } else { next }));
    let dynamic: Vec<u64> = [
        (4, hash_at as u64),      // DT_HASH
        (5, names_at as u64),     // DT_STRTAB
        (6, symbols_at as u64),   // DT_SYMTAB
        (10, names.len() as u64), // DT_STRSZ
        (11, SYMBOL as u64),      // DT_SYMENT
        (0, 0),
    ]
    .into_iter()
    .flat_map(|(tag, value)| [tag, value])
    .collect();
    let first = (code_at + code.len()) as u64;
    let second = dynamic.len() as u64 * 8;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // A shared object for x86-64, of version 1.
    file.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0, HEADER as u64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0; 4]);
    for half in [HEADER, SEGMENT, SEGMENTS, 64, 0, 0] {
        file.extend((half as u16).to_le_bytes());
    }
    const READ: u32 = 4;
    const WRITE: u32 = 2;
    const EXECUTE: u32 = 1;
    for (kind, flags, from, size, align) in [
        (1, READ | EXECUTE, 0, first, ALIGN),    // PT_LOAD
        (1, READ | WRITE, ALIGN, second, ALIGN), // PT_LOAD
        (2, READ | WRITE, ALIGN, second, 8),     // PT_DYNAMIC
        (0x6474_e551, READ | WRITE, 0, 0, 16),   // PT_GNU_STACK: it is not executed
    ] {
        file.extend(u32::to_le_bytes(kind));
        file.extend(u32::to_le_bytes(flags));
        for word in [from, from, from, size, size, align] {
            file.extend(u64::to_le_bytes(word));
        }
    }
    file.extend(symbols);
    file.extend(names);
    file.resize(hash_at, 0);
    file.extend(hash.into_iter().flat_map(u32::to_le_bytes));
    file.resize(code_at, 0);
    file.extend(code);
    file.resize(ALIGN as usize, 0);
    file.extend(dynamic.into_iter().flat_map(u64::to_le_bytes));
    file
}
