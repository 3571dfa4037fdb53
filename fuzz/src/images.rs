//! Layers and images of others.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read};

use kiln_model::Digest;
use kiln_oci::{
    BlobKind, BlobSource, ImportError, ImportRequest, ImportRoot, Store, Tree, erofs, tar as tars,
};

use crate::archives::fast;

fn spill() -> File {
    tempfile::tempfile_in(fast()).expect("a temporary file")
}

fn limits() -> tars::Limits {
    tars::Limits {
        entries: 10_000,
        content: 16 << 20,
        metadata: 4 << 20,
    }
}

/// What is taken can be written in both forms, and read from kiln's own tar it is the same tar again.
pub(crate) fn tar(data: &[u8]) -> bool {
    let Ok(tree) = Tree::from_tar(data, spill(), limits()) else {
        return false;
    };
    let mut first = Vec::new();
    if tars::write(&tree, &mut first).is_err() {
        return false;
    }
    erofs::write(&tree, std::io::sink()).expect("a layer's other form");
    let again = Tree::from_tar(&first[..], spill(), limits()).expect("kiln's own tar is read");
    let mut second = Vec::new();
    tars::write(&again, &mut second).expect("kiln's own tar is written again");
    assert!(first == second, "read and written again it is another");
    true
}

/// The blobs of an image, one after the other, by their digests.
struct Blobs(BTreeMap<Digest, Vec<u8>>);

impl BlobSource for Blobs {
    fn open(
        &self,
        digest: &Digest,
        _: Option<u64>,
        _: BlobKind,
    ) -> Result<Box<dyn Read + '_>, ImportError> {
        let bytes = self.0.get(digest).cloned().unwrap_or_default();
        Ok(Box::new(Cursor::new(bytes)))
    }
}

/// An image is imported whole or not at all. Its documents and layers are separated by `\n----\n`; in one, `@N` is the digest of the
/// N-th of them and `#N` its length, so that the fuzzer need not find digests.
pub(crate) fn manifest(data: &[u8]) -> bool {
    let mut parts = split(data);
    for at in (0..parts.len()).rev() {
        for later in at + 1..parts.len() {
            let digest = Digest::of(&parts[later]).to_string();
            let length = parts[later].len().to_string();
            let part = std::mem::take(&mut parts[at]);
            let part = replaced(part, format!("@{later}").as_bytes(), digest.as_bytes());
            parts[at] = replaced(part, format!("#{later}").as_bytes(), length.as_bytes());
        }
    }
    let root = Digest::of(&parts[0]);
    let blobs = Blobs(
        parts
            .into_iter()
            .map(|part| (Digest::of(&part), part))
            .collect(),
    );
    let folder = tempfile::tempdir_in(fast()).expect("a temporary folder");
    let store = Store::open(folder.path()).expect("an empty store");
    let request = ImportRequest {
        place: "fuzz",
        arch: "amd64",
    };
    let root = ImportRoot {
        digest: root,
        size: None,
    };
    match store.import(&blobs, request, root) {
        Ok(digest) => {
            let image = store.image(&digest).expect("what was imported is there");
            for layer in &image.layers {
                store.erofs_files(layer).expect("its layers are there");
            }
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

fn split(data: &[u8]) -> Vec<Vec<u8>> {
    const BETWEEN: &[u8] = b"\n----\n";
    let mut parts = Vec::new();
    let mut rest = data;
    while parts.len() < 8
        && let Some(at) = rest.windows(BETWEEN.len()).position(|part| part == BETWEEN)
    {
        parts.push(rest[..at].to_vec());
        rest = &rest[at + BETWEEN.len()..];
    }
    parts.push(rest.to_vec());
    parts
}

fn replaced(text: Vec<u8>, what: &[u8], by: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = &text[..];
    while let Some(at) = rest.windows(what.len()).position(|part| part == what) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(by);
        rest = &rest[at + what.len()..];
    }
    out.extend_from_slice(rest);
    out
}
