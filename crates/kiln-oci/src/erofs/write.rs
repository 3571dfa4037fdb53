//! From a layout to bytes, front to back.

use std::io::Write;

use kiln_model::Digest;

use crate::content::{Content, copy_content};
use crate::hashing::HashingWriter;
use crate::known_file::PIECE;
use crate::layer::{Kind, LayerError, Tree, to_path};

use super::BLOCK;
use super::disk::{CHUNK, Inode, chunk_format, device, put_chunk, put_xattrs};
use super::layout::{Layout, Node};
use super::pieces::{Extent, Sharing};

/// Writes `tree` as an EROFS file and returns its length in bytes. File contents are read in the order of
/// paths; a file that is longer than a block and ends within one is opened twice.
///
/// `out` takes large writes and small ones: give it a buffer.
pub fn write(tree: &Tree, out: impl Write) -> Result<u64, LayerError> {
    let (length, _) = write_shared(tree, &Sharing::default(), out)?;
    Ok(length)
}

/// As `write`, where large files refer to what donors have; answers too which pieces the written file itself holds.
pub(crate) fn write_shared(
    tree: &Tree,
    sharing: &Sharing,
    out: impl Write,
) -> Result<(u64, Vec<Extent>), LayerError> {
    let tree = tree.settled()?;
    let layout = Layout::of(&tree, sharing)?;
    let mut writer = Writer {
        layout: &layout,
        out,
        position: 0,
        buffer: vec![0; 256 << 10],
    };
    writer.bytes(&layout.super_block().block())?;
    for at in &layout.by_offset {
        let node = &layout.nodes[*at];
        writer.pad_to(node.offset)?;
        writer.inode(node, *at)?;
    }
    writer.pad_to(layout.metadata_blocks * BLOCK as u64)?;
    for node in &layout.nodes {
        writer.data(node)?;
    }
    writer.out.flush().map_err(LayerError::Write)?;
    let length = writer.position;
    Ok((length, layout.extents))
}

struct Writer<'a, W> {
    layout: &'a Layout<'a>,
    out: W,
    position: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<'_, W> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.out.write_all(bytes).map_err(LayerError::Write)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn pad_to(&mut self, offset: u64) -> Result<(), LayerError> {
        let mut left = offset - self.position;
        while left > 0 {
            let count = left.min(BLOCK as u64) as usize;
            self.bytes(&[0; BLOCK][..count])?;
            left -= count as u64;
        }
        Ok(())
    }

    fn copy(
        &mut self,
        node: &Node<'_>,
        content: &Content,
        start: u64,
        length: u64,
    ) -> Result<(), LayerError> {
        copy_content(
            node.key,
            content,
            start,
            length,
            &mut self.buffer,
            &mut self.out,
        )?;
        self.position += length;
        Ok(())
    }

    /// A piece and the rest of its last block. Others will rely on what it is said to be.
    fn piece(
        &mut self,
        node: &Node<'_>,
        content: &Content,
        number: usize,
        piece: Digest,
    ) -> Result<(), LayerError> {
        let start = number as u64 * PIECE as u64;
        let length = (node.size - start).min(PIECE as u64);
        let mut out = HashingWriter::new(&mut self.out);
        copy_content(node.key, content, start, length, &mut self.buffer, &mut out)?;
        let (_, written, _) = out.finish();
        if written != piece {
            return Err(LayerError::ContentDiffers {
                path: to_path(node.key).to_path_buf(),
            });
        }
        self.position += length;
        self.pad_to(self.position.next_multiple_of(BLOCK as u64))
    }

    fn inode(&mut self, node: &Node<'_>, number: usize) -> Result<(), LayerError> {
        let mut out = Vec::with_capacity(node.head());
        let (kind, union) = match &node.entry.kind {
            Kind::File { .. } | Kind::Hardlink { .. } => {
                let data = match &node.chunks {
                    Some(chunks) => chunk_format(chunks.bits),
                    None => node.block as u32,
                };
                (libc_mode::REG, data)
            }
            Kind::Dir { .. } => (libc_mode::DIR, node.block as u32),
            Kind::Symlink { .. } => (libc_mode::LNK, node.block as u32),
            Kind::CharDev { major, minor } => (libc_mode::CHR, device(*major, *minor)),
            Kind::BlockDev { major, minor } => (libc_mode::BLK, device(*major, *minor)),
            Kind::Fifo => (libc_mode::FIFO, 0),
            Kind::Whiteout => (libc_mode::CHR, device(0, 0)),
        };
        Inode {
            extended: node.extended,
            layout: node.layout,
            xattr_size: node.xattr_size,
            mode: kind | node.entry.mode as u16,
            nlink: node.nlink,
            size: node.size,
            union,
            number: number as u32 + 1,
            uid: node.entry.uid,
            gid: node.entry.gid,
            mtime: node.entry.mtime,
        }
        .put(&mut out);
        if node.xattr_size > 0 {
            put_xattrs(&mut out, node.xattrs());
        }
        if let Some(chunks) = &node.chunks {
            out.resize(out.len().next_multiple_of(CHUNK), 0);
            for (device, block) in &chunks.at {
                put_chunk(&mut out, *device, *block);
            }
        }
        self.bytes(&out)?;
        let tail = node.tail();
        if tail == 0 {
            return Ok(());
        }
        match &node.entry.kind {
            Kind::File { content, size } => {
                self.copy(node, content, size - tail as u64, tail as u64)
            }
            Kind::Symlink { target } => self.bytes(&target[target.len() - tail..]),
            // Of these only folders have anything.
            Kind::Dir { .. }
            | Kind::CharDev { .. }
            | Kind::BlockDev { .. }
            | Kind::Fifo
            | Kind::Hardlink { .. }
            | Kind::Whiteout => {
                let at = (node.size / BLOCK as u64) as usize;
                self.dir_block(node, at)
            }
        }
    }

    fn dir_block(&mut self, node: &Node<'_>, at: usize) -> Result<(), LayerError> {
        let Some(dir) = &node.dir else {
            return Ok(());
        };
        let mut block = Vec::with_capacity(BLOCK);
        self.layout.dir_block(dir, at, &mut block);
        self.bytes(&block)
    }

    fn data(&mut self, node: &Node<'_>) -> Result<(), LayerError> {
        let count = node.own_blocks();
        if count == 0 {
            return Ok(());
        }
        let pieces = node.own_pieces();
        if let (false, Kind::File { content, .. }) = (pieces.is_empty(), &node.entry.kind) {
            for (number, piece) in pieces {
                self.piece(node, content, number, piece)?;
            }
            return Ok(());
        }
        let length = node.size - node.tail() as u64;
        match &node.entry.kind {
            Kind::File { content, .. } => self.copy(node, content, 0, length)?,
            Kind::Symlink { target } => self.bytes(target)?,
            Kind::Dir { .. }
            | Kind::CharDev { .. }
            | Kind::BlockDev { .. }
            | Kind::Fifo
            | Kind::Hardlink { .. }
            | Kind::Whiteout => {
                for at in 0..count {
                    self.dir_block(node, at as usize)?;
                    self.pad_to((node.block + at + 1) * BLOCK as u64)?;
                }
            }
        }
        self.pad_to((node.block + count) * BLOCK as u64)
    }
}

/// The file types of `st_mode`, which are the same on disk and on every architecture.
mod libc_mode {
    pub(super) const FIFO: u16 = 0o010000;
    pub(super) const CHR: u16 = 0o020000;
    pub(super) const DIR: u16 = 0o040000;
    pub(super) const BLK: u16 = 0o060000;
    pub(super) const REG: u16 = 0o100000;
    pub(super) const LNK: u16 = 0o120000;
}
