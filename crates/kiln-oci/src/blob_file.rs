//! A blob of the store, opened: one run of bytes from one file or from several.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A part of a blob: `length` bytes from `offset` on of the own file, or of `donors[n - 1]`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) source: u32,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A blob, opened: read in order, or anywhere.
#[derive(Clone, Debug)]
pub struct BlobFile {
    files: Arc<[File]>,
    /// Where each segment begins in the blob, and the segment.
    parts: Arc<[(u64, Segment)]>,
    size: u64,
    position: u64,
}

impl BlobFile {
    /// `files`: what the segments' `source` counts.
    pub(crate) fn new(files: Vec<File>, segments: &[Segment]) -> Self {
        let mut size = 0;
        let mut parts = Vec::with_capacity(segments.len());
        for segment in segments {
            parts.push((size, *segment));
            size += segment.length;
        }
        Self {
            files: files.into(),
            parts: parts.into(),
            size,
            position: 0,
        }
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether all files that it is made of are long enough.
    pub(crate) fn has_all_bytes(&self) -> bool {
        self.parts.iter().all(|(_, segment)| {
            let file = &self.files[segment.source as usize];
            file.metadata()
                .is_ok_and(|meta| segment.offset + segment.length <= meta.len())
        })
    }

    /// Reads from `at` on. Fewer bytes than asked for where a segment ends; none at the end.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let next = self.parts.partition_point(|(start, _)| *start <= at);
        let Some((start, segment)) = next.checked_sub(1).map(|part| self.parts[part]) else {
            return Ok(0);
        };
        let into = at - start;
        if into >= segment.length || buffer.is_empty() {
            return Ok(0);
        }
        let left = usize::try_from(segment.length - into).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        let file = &self.files[segment.source as usize];
        match file.read_at(&mut buffer[..count], segment.offset + into)? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a file that it is made of is shorter than it was",
            )),
            count => Ok(count),
        }
    }
}

impl Read for BlobFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}
