//! `.git` of a commit that was taken without its history: what `git clone --depth=1` leaves, in the same bytes each time.
//!
//! Objects are in one pack, whole and in the order of their names, so that it does not depend on how the server packed them. The
//! index has no times, which an image does not keep: Git then compares the files themselves.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::{Compression, Crc};
use sha1::{Digest, Sha1};

use kiln_http::without_user;

use crate::error::GitError;
use crate::modules;
use crate::object::{self, Kind, Mode, Oid};
use crate::pack::{Pack, read_tree};
use crate::reference::Resolved;
use crate::source::GitSource;

/// A submodule that is beside it.
pub(crate) struct Submodule {
    pub(crate) name: String,
    pub(crate) url: String,
}

/// One file of the index.
struct Indexed {
    path: Vec<u8>,
    mode: u32,
    size: u32,
    oid: Oid,
}

/// Writes `git`, of the files that are in `work`.
pub(crate) fn write(
    git: &Path,
    work: &Path,
    source: &GitSource,
    found: &Resolved,
    pack: &Pack,
    root: Oid,
    submodules: &[Submodule],
) -> Result<(), GitError> {
    let failed = |problem: String| source.error(problem);
    let mut objects = BTreeMap::from([(found.commit, Kind::Commit)]);
    // A tag may be one of a tag.
    let mut next = found.tag;
    while let Some(tag) = next.filter(|tag| !objects.contains_key(tag)) {
        objects.insert(tag, Kind::Tag);
        let bytes = pack.object(tag, Kind::Tag).map_err(failed)?;
        next = object::tagged(&bytes).filter(|inner| *inner != found.commit);
    }
    let mut files = Vec::new();
    gather(pack, root, Vec::new(), &mut objects, &mut files).map_err(failed)?;
    for folder in ["objects/pack", "objects/info", "refs/heads", "refs/tags"] {
        make(&git.join(folder))?;
    }
    let mut config = String::from(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n",
    );
    if git != work.join(".git") {
        // From one to the other, since both may be anywhere below the image's root.
        let way = relative(git, work);
        config.push_str(&format!("\tworktree = {}\n", quoted(&way)));
        let back = format!("gitdir: {}\n", relative(work, git));
        put(&work.join(".git"), back.as_bytes())?;
    }
    config.push_str(&format!(
        "[remote \"origin\"]\n\turl = {}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n",
        quoted(&without_user(&source.url))
    ));
    for Submodule { name, url } in submodules {
        let name = name.replace('\\', "\\\\").replace('"', "\\\"");
        config.push_str(&format!(
            "[submodule \"{name}\"]\n\tactive = true\n\turl = {}\n",
            quoted(&without_user(url))
        ));
    }
    put(&git.join("config"), config.as_bytes())?;
    put(&git.join("HEAD"), format!("{}\n", found.commit).as_bytes())?;
    if let Some(name) = found
        .name
        .as_deref()
        .filter(|name| name.starts_with("refs/"))
    {
        if !modules::is_name(name) {
            return Err(failed(format!("`{name}` is no name of a branch or a tag")));
        }
        let path = git.join(name);
        make(path.parent().unwrap_or(git))?;
        let named = found.tag.unwrap_or(found.commit);
        put(&path, format!("{named}\n").as_bytes())?;
    }
    let commit = pack.object(found.commit, Kind::Commit).map_err(failed)?;
    if has_parents(&commit) {
        let shallow = format!("{}\n", found.commit);
        put(&git.join("shallow"), shallow.as_bytes())?;
    }
    write_pack(&git.join("objects/pack"), pack, &objects, source)?;
    put(&git.join("index"), &index(work, files)?)
}

/// All that a tree has, and the files by their paths.
fn gather(
    pack: &Pack,
    tree: Oid,
    inside: Vec<u8>,
    objects: &mut BTreeMap<Oid, Kind>,
    files: &mut Vec<Indexed>,
) -> Result<(), String> {
    objects.insert(tree, Kind::Tree);
    for item in read_tree(pack, tree)? {
        let mut path = inside.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(&item.name);
        let mode = match item.mode {
            Mode::Folder => {
                gather(pack, item.oid, path, objects, files)?;
                continue;
            }
            Mode::File => 0o100_644,
            Mode::Executable => 0o100_755,
            Mode::Link => 0o120_000,
            Mode::Submodule => 0o160_000,
        };
        if item.mode != Mode::Submodule {
            objects.insert(item.oid, Kind::Blob);
        }
        files.push(Indexed {
            path,
            mode,
            size: 0,
            oid: item.oid,
        });
    }
    Ok(())
}

fn has_parents(commit: &[u8]) -> bool {
    let mut lines = commit.split(|byte| *byte == b'\n');
    lines
        .by_ref()
        .take_while(|line| !line.is_empty())
        .any(|line| line.starts_with(b"parent "))
}

/// A number of gitformat-pack(5), "pack-*.pack files": the kind, and seven bits a byte.
fn entry_head(kind: Kind, size: usize) -> Vec<u8> {
    let number = match kind {
        Kind::Commit => 1,
        Kind::Tree => 2,
        Kind::Blob => 3,
        Kind::Tag => 4,
    };
    let mut head = vec![number << 4 | (size & 15) as u8];
    let mut left = size >> 4;
    while left > 0 {
        if let Some(last) = head.last_mut() {
            *last |= 0x80;
        }
        head.push((left & 0x7f) as u8);
        left >>= 7;
    }
    head
}

struct Hashed<W> {
    out: W,
    hash: Sha1,
}

impl<W: Write> Hashed<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }
}

/// The pack, and its index of version 2 (gitformat-pack(5), "Version 2 pack-*.idx files").
fn write_pack(
    folder: &Path,
    pack: &Pack,
    objects: &BTreeMap<Oid, Kind>,
    source: &GitSource,
) -> Result<(), GitError> {
    let unnamed = folder.join("pack");
    let io = || GitError::io(&unnamed);
    let file = new_file(&unnamed, 0o444).map_err(io())?;
    let mut out = Hashed {
        out: BufWriter::new(file),
        hash: Sha1::new(),
    };
    let count = u32::try_from(objects.len()).map_err(|error| source.error(error))?;
    out.put(b"PACK\0\0\0\x02").map_err(io())?;
    out.put(&count.to_be_bytes()).map_err(io())?;
    let mut at: u64 = 12;
    let (mut names, mut sums, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
    let mut fan = [0u32; 256];
    for (oid, kind) in objects {
        let content = pack
            .object(*oid, *kind)
            .map_err(|problem| source.error(problem))?;
        let mut bytes = entry_head(*kind, content.len());
        let mut stream = flate2::write::ZlibEncoder::new(&mut bytes, Compression::default());
        stream.write_all(&content).map_err(io())?;
        stream.finish().map_err(io())?;
        // Offsets of more bits would need another table.
        let offset = u32::try_from(at)
            .ok()
            .filter(|offset| offset >> 31 == 0)
            .ok_or_else(|| {
                source.error("it is too large for its .git to be kept: 2 GiB at most")
            })?;
        let mut crc = Crc::new();
        crc.update(&bytes);
        names.extend(oid.0);
        sums.extend(crc.sum().to_be_bytes());
        offsets.extend(offset.to_be_bytes());
        fan[usize::from(oid.0[0])] += 1;
        out.put(&bytes).map_err(io())?;
        at += bytes.len() as u64;
    }
    let Hashed { mut out, hash } = out;
    let sum = hash.finalize();
    out.write_all(&sum).map_err(io())?;
    out.flush().map_err(io())?;
    drop(out);
    let name = Oid(sum.into());
    let named = folder.join(format!("pack-{name}.pack"));
    fs::rename(&unnamed, &named).map_err(GitError::io(&named))?;
    let mut index = b"\xfftOc\0\0\0\x02".to_vec();
    let mut before = 0;
    for count in fan {
        before += count;
        index.extend(before.to_be_bytes());
    }
    for part in [&names, &sums, &offsets] {
        index.extend(part);
    }
    index.extend(sum);
    let own: [u8; 20] = Sha1::digest(&index).into();
    index.extend(own);
    let path = folder.join(format!("pack-{name}.idx"));
    let mut file = new_file(&path, 0o444).map_err(GitError::io(&path))?;
    file.write_all(&index).map_err(GitError::io(&path))
}

/// Git's index (gitformat-index(5)), of version 2.
fn index(work: &Path, mut files: Vec<Indexed>) -> Result<Vec<u8>, GitError> {
    files.sort_by(|one, other| one.path.cmp(&other.path));
    let mut bytes = b"DIRC\0\0\0\x02".to_vec();
    bytes.extend((files.len() as u32).to_be_bytes());
    for file in &mut files {
        if file.mode != 0o160_000 {
            let path = work.join(std::ffi::OsStr::from_bytes(&file.path));
            let there = fs::symlink_metadata(&path).map_err(GitError::io(&path))?;
            // As Git has it, the low bits.
            file.size = there.size() as u32;
        }
        // Two times, a device and an inode.
        let begin = bytes.len();
        bytes.extend([0; 24]);
        bytes.extend(file.mode.to_be_bytes());
        bytes.extend([0; 8]);
        bytes.extend(file.size.to_be_bytes());
        bytes.extend(file.oid.0);
        let length = file.path.len().min(0xfff) as u16;
        bytes.extend(length.to_be_bytes());
        bytes.extend(&file.path);
        // At least one, up to a multiple of eight.
        let padding = 8 - (bytes.len() - begin) % 8;
        bytes.extend(std::iter::repeat_n(0, padding));
    }
    let sum: [u8; 20] = Sha1::digest(&bytes).into();
    bytes.extend(sum);
    Ok(bytes)
}

/// The way from one folder to another.
fn relative(from: &Path, to: &Path) -> String {
    let common = from
        .components()
        .zip(to.components())
        .take_while(|(one, other)| one == other)
        .count();
    let mut way = PathBuf::new();
    for _ in from.components().skip(common) {
        way.push("..");
    }
    way.extend(to.components().skip(common));
    way.to_string_lossy().into_owned()
}

/// A value of Git's configuration.
fn quoted(value: &str) -> String {
    let plain = value
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"/:.-_@+~%=,".contains(&byte));
    if plain {
        return value.to_owned();
    }
    let value = value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    format!("\"{value}\"")
}

/// Modes are set: the umask is the caller's.
fn make(folder: &Path) -> Result<(), GitError> {
    let missing: Vec<&Path> = folder
        .ancestors()
        .take_while(|above| !above.exists())
        .collect();
    for folder in missing.into_iter().rev() {
        let made = DirBuilder::new()
            .create(folder)
            .and_then(|()| fs::set_permissions(folder, Permissions::from_mode(0o755)));
        made.map_err(GitError::io(folder))?;
    }
    Ok(())
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), GitError> {
    let written = new_file(path, 0o644).and_then(|mut file| file.write_all(bytes));
    written.map_err(GitError::io(path))
}

fn new_file(path: &Path, mode: u32) -> io::Result<File> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_between_two_folders_is_relative() {
        let (git, work) = (Path::new("/t/.git/modules/a/b"), Path::new("/t/lib/a"));
        assert_eq!(relative(git, work), "../../../../lib/a");
        assert_eq!(relative(work, git), "../../.git/modules/a/b");
    }

    #[test]
    fn sizes_are_written_seven_bits_a_byte() {
        assert_eq!(entry_head(Kind::Blob, 5), [0x35]);
        assert_eq!(entry_head(Kind::Commit, 21), [0x95, 0x01]);
        assert_eq!(entry_head(Kind::Tree, 16 << 7), [0xa0, 0x80, 0x01]);
    }

    #[test]
    fn values_with_signs_are_quoted() {
        assert_eq!(quoted("https://x.io/a.git"), "https://x.io/a.git");
        assert_eq!(quoted("a # \"b\""), "\"a # \\\"b\\\"\"");
    }
}
