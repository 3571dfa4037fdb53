//! Where everything goes: decided before the first byte is written.
//!
//! An inode is followed by its attributes and by the last part of its data, if that is shorter than a block,
//! in one record; a record never crosses a block (the kernel requires it of the data). Most files of an
//! operating system are shorter than a block and take no block of their own. Records go, in the order of
//! paths, to the first of the blocks still open that has room.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::os::unix::ffi::OsStrExt;

use kiln_model::Digest;

use crate::layer::{
    Entry, Kind, LayerError, NAME_MAX, OVERLAY_OPAQUE, Tree, name_of, parent_of, to_path,
};

use super::BLOCK;
use super::disk::{
    CHUNK, COMPACT, DIRENT, DataLayout, EXTENDED, SLOT, Super, put16, put64, split_xattr,
    xattr_size,
};
use super::pieces::{Donor, Extent, PIECE_BLOCKS, Sharing, piece_blocks};

/// The kernel has five bits for them.
const CHUNK_BITS_MAX: u32 = 31;
/// Blocks kept open for small records. More pack no better, and place a file far from its neighbours.
const OPEN_BLOCKS: usize = 32;
/// i_xattr_icount has 16 bits, in units of 4 bytes.
const XATTRS_MAX: usize = 4 * 65534;
/// The kernel's bound for a target, with its NUL (PATH_MAX).
const TARGET_MAX: usize = 4095;

/// One inode and where it and its data are.
pub(super) struct Node<'a> {
    pub(super) key: &'a [u8],
    pub(super) entry: &'a Entry,
    pub(super) extended: bool,
    pub(super) layout: DataLayout,
    pub(super) xattr_size: usize,
    pub(super) nlink: u32,
    pub(super) size: u64,
    /// Where the inode is in the file.
    pub(super) offset: u64,
    /// The first of its own blocks.
    pub(super) block: u64,
    /// How the names of a directory are spread over its blocks.
    pub(super) dir: Option<Dir<'a>>,
    /// Of a large file.
    pieces: Option<&'a [Digest]>,
    /// Where they are, if not all are its own, one after the other.
    pub(super) chunks: Option<Chunks>,
}

/// Where the chunks of a file are.
pub(super) struct Chunks {
    /// A chunk has 2^bits blocks.
    pub(super) bits: u32,
    /// The device, 0 for this file, and the block there.
    pub(super) at: Vec<(u16, u64)>,
    /// The numbers of the pieces that this file holds because of this inode.
    own: Vec<usize>,
}

/// A directory's entries, sorted by name, and where each of its blocks begins among them.
pub(super) struct Dir<'a> {
    children: Vec<Child<'a>>,
    starts: Vec<usize>,
}

struct Child<'a> {
    name: &'a [u8],
    node: usize,
    kind: u8,
}

pub(super) struct Layout<'a> {
    /// In the order of paths, the root first.
    pub(super) nodes: Vec<Node<'a>>,
    /// Indices of the nodes by offset.
    pub(super) by_offset: Vec<usize>,
    pub(super) metadata_blocks: u64,
    pub(super) total_blocks: u64,
    /// The pieces that are in this file.
    pub(super) extents: Vec<Extent>,
    build_time: i64,
    donors: &'a [Donor],
}

impl<'a> Layout<'a> {
    /// `tree` must have settled hard links.
    pub(super) fn of(tree: &'a Tree, sharing: &'a Sharing) -> Result<Self, LayerError> {
        let build_time = most_frequent_time(tree);
        let mut nodes = Vec::with_capacity(tree.len() + 1);
        let mut index: HashMap<&[u8], usize> = HashMap::with_capacity(tree.len() + 1);
        for (key, entry) in tree.keys() {
            if let Kind::Hardlink { target } = &entry.kind {
                let target_key = target.as_os_str().as_bytes();
                let node = index.get(target_key).copied();
                let node = node.ok_or_else(|| LayerError::LinkTarget {
                    path: to_path(key).to_path_buf(),
                    target: target.clone(),
                })?;
                index.insert(key, node);
                continue;
            }
            index.insert(key, nodes.len());
            let pieces = match &entry.kind {
                Kind::File { size, .. } => sharing.pieces.of_large(key, *size),
                _ => None,
            };
            nodes.push(node(key, entry, pieces)?);
        }
        read_dirs(tree, &index, &mut nodes);
        let mut layout = Self {
            nodes,
            by_offset: Vec::new(),
            metadata_blocks: 0,
            total_blocks: 0,
            extents: Vec::new(),
            build_time,
            donors: &sharing.donors,
        };
        layout.place(sharing)?;
        Ok(layout)
    }

    fn place(&mut self, sharing: &Sharing) -> Result<(), LayerError> {
        let mut space = Space::new();
        let mut own = HashSet::new();
        for node in &mut self.nodes {
            node.extended = node.needs_extended(self.build_time);
            let head = node.head();
            let tail = (node.size % BLOCK as u64) as usize;
            // Devices have a number where others have a block; their size is zero, and so is their tail.
            let inline =
                tail > 0 && head.next_multiple_of(4) + tail <= BLOCK && node.pieces.is_none();
            node.chunks = node.chunks_of(sharing, &mut own);
            let length = match &node.chunks {
                Some(chunks) => {
                    node.layout = DataLayout::Chunks;
                    head.next_multiple_of(CHUNK) + chunks.at.len() * CHUNK
                }
                None if inline => {
                    node.layout = DataLayout::Inline;
                    head + tail
                }
                None => {
                    node.layout = DataLayout::Plain;
                    head
                }
            };
            node.offset = space.take(length);
        }
        self.metadata_blocks = space.blocks;
        let mut next = space.blocks;
        let mut blocks = HashMap::new();
        for node in &mut self.nodes {
            let count = node.own_blocks();
            if count == 0 {
                node.refer(&blocks);
                continue;
            }
            node.block = next;
            let mut at = next;
            for (number, piece) in node.own_pieces() {
                blocks.insert(piece, at);
                self.extents.push(Extent { piece, block: at });
                at += piece_blocks(node.size, number);
            }
            next += count;
            node.refer(&blocks);
        }
        // One address is kept by the kernel for "none".
        if next >= u64::from(u32::MAX) {
            return Err(LayerError::TooLarge);
        }
        self.total_blocks = next;
        self.by_offset = (0..self.nodes.len()).collect();
        self.by_offset.sort_by_key(|at| self.nodes[*at].offset);
        Ok(())
    }

    pub(super) fn super_block(&self) -> Super {
        Super {
            root_nid: nid(self.nodes[0].offset) as u16,
            inodes: self.nodes.len() as u64,
            build_time: self.build_time,
            blocks: self.total_blocks as u32,
            donors: self.donors.to_vec(),
            has_chunks: self.nodes.iter().any(|node| node.chunks.is_some()),
        }
    }

    /// The bytes of block `at` of the directory `dir`, not padded.
    pub(super) fn dir_block(&self, dir: &Dir<'_>, at: usize, out: &mut Vec<u8>) {
        let end = dir.starts.get(at + 1).copied();
        let children = &dir.children[dir.starts[at]..end.unwrap_or(dir.children.len())];
        let mut name_offset = children.len() * DIRENT;
        for child in children {
            put64(out, nid(self.nodes[child.node].offset));
            put16(out, name_offset as u16);
            out.push(child.kind);
            out.push(0);
            name_offset += child.name.len();
        }
        for child in children {
            out.extend_from_slice(child.name);
        }
    }
}

impl Node<'_> {
    /// The inode and its attributes, in bytes.
    pub(super) fn head(&self) -> usize {
        let inode = if self.extended { EXTENDED } else { COMPACT };
        inode + self.xattr_size
    }

    /// The blocks of data outside the metadata.
    pub(super) fn own_blocks(&self) -> u64 {
        match self.layout {
            DataLayout::Plain => self.size.div_ceil(BLOCK as u64),
            DataLayout::Inline => self.size / BLOCK as u64,
            DataLayout::Chunks => {
                let own = self.own_pieces();
                own.iter()
                    .map(|(number, _)| piece_blocks(self.size, *number))
                    .sum()
            }
        }
    }

    /// The bytes of the data that are behind the inode.
    pub(super) fn tail(&self) -> usize {
        match self.layout {
            DataLayout::Plain | DataLayout::Chunks => 0,
            DataLayout::Inline => (self.size % BLOCK as u64) as usize,
        }
    }

    /// Where the chunks of a large file are, unless all of its pieces are its own. `own` are the pieces of this file so
    /// far. The blocks of its own are not known yet: 0 stands for them.
    fn chunks_of(&self, sharing: &Sharing, own: &mut HashSet<Digest>) -> Option<Chunks> {
        let pieces = self.pieces?;
        let mut at = Vec::with_capacity(pieces.len());
        let mut news = Vec::new();
        for (number, piece) in pieces.iter().enumerate() {
            let place = sharing.places.get(piece);
            if place.is_none() && own.insert(*piece) {
                news.push(number);
            }
            at.push(place.copied().unwrap_or((0, 0)));
        }
        if news.len() == pieces.len() {
            return None;
        }
        let (device, block) = at[0];
        let in_a_row = |(number, place): (usize, &(u16, u64))| {
            *place == (device, block + number as u64 * PIECE_BLOCKS)
        };
        let piece_bits = PIECE_BLOCKS.trailing_zeros();
        let blocks = self.size.div_ceil(BLOCK as u64);
        let bits = blocks.next_power_of_two().trailing_zeros().max(piece_bits);
        if device != 0 && bits <= CHUNK_BITS_MAX && at.iter().enumerate().all(in_a_row) {
            return Some(Chunks {
                bits,
                at: vec![(device, block)],
                own: Vec::new(),
            });
        }
        Some(Chunks {
            bits: piece_bits,
            at,
            own: news,
        })
    }

    /// The numbers and digests of the pieces that this file holds because of this inode.
    pub(super) fn own_pieces(&self) -> Vec<(usize, Digest)> {
        match (&self.chunks, self.pieces) {
            (_, None) => Vec::new(),
            (None, Some(pieces)) => pieces.iter().copied().enumerate().collect(),
            (Some(chunks), Some(pieces)) => {
                let own = chunks.own.iter();
                own.map(|number| (*number, pieces[*number])).collect()
            }
        }
    }

    /// Puts the blocks of this file's pieces into the list of chunks.
    fn refer(&mut self, blocks: &HashMap<Digest, u64>) {
        let (Some(chunks), Some(pieces)) = (&mut self.chunks, self.pieces) else {
            return;
        };
        for (place, piece) in chunks.at.iter_mut().zip(pieces) {
            if place.0 == 0
                && let Some(block) = blocks.get(piece)
            {
                *place = (0, *block);
            }
        }
    }

    /// The compact form has no time but the superblock's, and 16 bits for owners and links.
    fn needs_extended(&self, build_time: i64) -> bool {
        let large = |id: u32| id > u32::from(u16::MAX);
        large(self.entry.uid)
            || large(self.entry.gid)
            || large(self.nlink)
            || self.size > u64::from(u32::MAX)
            || self.entry.mtime != build_time
    }

    /// The attributes as EROFS has them, sorted by name.
    pub(super) fn xattrs(&self) -> impl Iterator<Item = (u8, &[u8], &[u8])> {
        xattrs_of(self.entry).filter_map(|(name, value)| {
            split_xattr(name).map(|(index, suffix)| (index, suffix, value))
        })
    }
}

fn xattrs_of(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    let opaque = matches!(entry.kind, Kind::Dir { opaque: true });
    entry
        .xattrs
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()))
        .filter(|(name, _)| *name != OVERLAY_OPAQUE)
        .chain(opaque.then_some((OVERLAY_OPAQUE, b"y".as_slice())))
}

/// # Errors
///
/// A file system has no form for the entry: its name or its attributes are too long, or of no kind that Linux has.
pub(crate) fn has_form(key: &[u8], entry: &Entry) -> Result<(), LayerError> {
    match entry.kind {
        // It is another's name, and nothing else of it counts.
        Kind::Hardlink { .. } if name_of(key).len() <= NAME_MAX => Ok(()),
        _ => node(key, entry, None).map(drop),
    }
}

fn node<'a>(
    key: &'a [u8],
    entry: &'a Entry,
    pieces: Option<&'a [Digest]>,
) -> Result<Node<'a>, LayerError> {
    let path = || to_path(key).to_path_buf();
    if name_of(key).len() > NAME_MAX {
        return Err(LayerError::NameTooLong { path: path() });
    }
    let size = match &entry.kind {
        Kind::File { size, .. } => *size,
        Kind::Symlink { target } if target.len() > TARGET_MAX => {
            return Err(LayerError::NameTooLong { path: path() });
        }
        Kind::Symlink { target } => target.len() as u64,
        _ => 0,
    };
    let refuse = |name: &[u8], reason| LayerError::Xattr {
        path: path(),
        name: String::from_utf8_lossy(name).into_owned(),
        reason,
    };
    for (name, value) in xattrs_of(entry) {
        if split_xattr(name).is_none() {
            return Err(refuse(name, "EROFS has no form for its name"));
        }
        if value.len() > usize::from(u16::MAX) {
            return Err(refuse(name, "its value is longer than 64 KiB"));
        }
    }
    let xattr_size = xattr_size(
        xattrs_of(entry).filter_map(|(name, value)| Some((split_xattr(name)?.1, value))),
    );
    if xattr_size > XATTRS_MAX {
        return Err(refuse(b"*", "all together are longer than 256 KiB"));
    }
    Ok(Node {
        key,
        entry,
        extended: true,
        layout: DataLayout::Plain,
        xattr_size,
        nlink: 0,
        size,
        offset: 0,
        block: 0,
        dir: None,
        pieces,
        chunks: None,
    })
}

/// Gives each directory its entries and its size, and each inode its number of names.
fn read_dirs<'a>(tree: &'a Tree, index: &HashMap<&'a [u8], usize>, nodes: &mut [Node<'a>]) {
    let mut dirs: Vec<Option<Vec<Child<'a>>>> = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        let is_dir = matches!(node.entry.kind, Kind::Dir { .. });
        dirs.push(is_dir.then(|| {
            let parent = parent_of(node.key).map_or(at, |parent| index[parent]);
            let dir = |name, node| Child {
                name,
                node,
                kind: file_type(&Kind::Dir { opaque: false }),
            };
            vec![dir(b".".as_slice(), at), dir(b"..", parent)]
        }));
    }
    for (key, _) in tree.keys().skip(1) {
        let at = index[key];
        let child = Child {
            name: name_of(key),
            node: at,
            kind: file_type(&nodes[at].entry.kind),
        };
        nodes[at].nlink += 1;
        if let Some(children) = parent_of(key).and_then(|parent| dirs[index[parent]].as_mut()) {
            children.push(child);
        }
    }
    for (at, children) in dirs.into_iter().enumerate() {
        let Some(mut children) = children else {
            continue;
        };
        // The kernel looks a name up by bisection over all of them, the two dots included.
        children.sort_by_key(|child| child.name);
        let subdirs = children
            .iter()
            .filter(|child| child.kind == file_type(&Kind::Dir { opaque: false }))
            .count();
        let (starts, last) = blocks_of(&children);
        nodes[at].nlink = subdirs as u32;
        nodes[at].size = ((starts.len() - 1) * BLOCK + last) as u64;
        nodes[at].dir = Some(Dir { children, starts });
    }
}

/// Which entry each block begins with, and how full the last one is.
fn blocks_of(children: &[Child<'_>]) -> (Vec<usize>, usize) {
    let mut starts = vec![0];
    let mut used = 0;
    for (at, child) in children.iter().enumerate() {
        let need = DIRENT + child.name.len();
        if used + need > BLOCK {
            starts.push(at);
            used = 0;
        }
        used += need;
    }
    (starts, used)
}

/// The kernel's file types in directories (`fs_types.h`).
fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } | Kind::Hardlink { .. } => 1,
        Kind::Dir { .. } => 2,
        Kind::CharDev { .. } | Kind::Whiteout => 3,
        Kind::BlockDev { .. } => 4,
        Kind::Fifo => 5,
        Kind::Symlink { .. } => 7,
    }
}

fn nid(offset: u64) -> u64 {
    offset / SLOT as u64
}

/// The time that most inodes have becomes the superblock's, which spares those a time of their own.
fn most_frequent_time(tree: &Tree) -> i64 {
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for (_, entry) in tree.keys() {
        *counts.entry(entry.mtime).or_default() += 1;
    }
    counts
        .into_iter()
        .max_by_key(|(time, count)| (*count, std::cmp::Reverse(*time)))
        .map_or(0, |(time, _)| time)
}

/// Where records go. Blocks with room left, oldest first, with the offset of the room.
struct Space {
    open: VecDeque<(u64, usize)>,
    /// How many blocks there are, the superblock's included.
    blocks: u64,
}

impl Space {
    fn new() -> Self {
        Self {
            open: VecDeque::new(),
            blocks: 1,
        }
    }

    /// An offset for a record of `size` bytes: within one block if it is no longer than that.
    fn take(&mut self, size: usize) -> u64 {
        let size = size.next_multiple_of(SLOT);
        let fit = self.open.iter().position(|(_, used)| used + size <= BLOCK);
        if let Some(at) = fit {
            let (block, used) = &mut self.open[at];
            let offset = *block * BLOCK as u64 + *used as u64;
            *used += size;
            if *used == BLOCK {
                self.open.remove(at);
            }
            return offset;
        }
        let first = self.blocks;
        let count = size.div_ceil(BLOCK) as u64;
        self.blocks += count;
        let rest = size % BLOCK;
        if rest != 0 {
            self.open.push_back((first + count - 1, rest));
            if self.open.len() > OPEN_BLOCKS {
                self.open.pop_front();
            }
        }
        first * BLOCK as u64
    }
}
