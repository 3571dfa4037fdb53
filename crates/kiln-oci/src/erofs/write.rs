//! From a layout to bytes, front to back.

use std::io::Write;

use crate::content::{Content, copy_content};
use crate::layer::{Kind, LayerError, Tree};

use super::BLOCK;
use super::disk::{Inode, device, put_xattrs};
use super::layout::{Layout, Node};

/// Writes `tree` as an EROFS file and returns its length in bytes. File contents are read in the order of
/// paths; a file that is longer than a block and ends within one is opened twice.
///
/// `out` takes large writes and small ones: give it a buffer.
pub fn write(tree: &Tree, out: impl Write) -> Result<u64, LayerError> {
    let tree = tree.settled()?;
    let layout = Layout::of(&tree)?;
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
    Ok(writer.position)
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

    fn inode(&mut self, node: &Node<'_>, number: usize) -> Result<(), LayerError> {
        let mut out = Vec::with_capacity(node.head());
        let (kind, union) = match &node.entry.kind {
            Kind::File { .. } | Kind::Hardlink { .. } => (libc_mode::REG, node.block as u32),
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
            _ => {
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
        let length = node.size - node.tail() as u64;
        match &node.entry.kind {
            Kind::File { content, .. } => self.copy(node, content, 0, length)?,
            Kind::Symlink { target } => self.bytes(target)?,
            _ => {
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
