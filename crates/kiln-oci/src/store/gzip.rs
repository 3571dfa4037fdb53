//! An image with its layers in gzip, for other people's tools that do not know zstd.

use std::io;

use flate2::{Compression, GzBuilder};
use kiln_model::canonical_json;

use super::error::{StoreError, io_error};
use super::{DOCUMENT_MAX, Store};
use crate::image::{Image, Layer, MEDIA_LAYER_GZIP, Manifest};

/// What docker and containerd take.
const LEVEL: u32 = 6;
/// Of a layer's descriptor: what it was compressed with. The compressor is part of kiln, and its version is kiln's.
const COMPRESSOR: &str = "kiln.compressor";

impl Store {
    /// The image with all its layers in gzip: the same bytes each time. Its blobs are in the store as what nothing needs.
    pub(crate) fn in_gzip(&self, image: &Image) -> Result<Image, StoreError> {
        let mut layers = Vec::with_capacity(image.layers.len());
        for layer in &image.layers {
            layers.push(self.layer_in_gzip(layer)?);
        }
        let bytes = self.read_blob(&image.digest, DOCUMENT_MAX)?;
        let mut manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|source| StoreError::ImageInvalid {
                digest: image.digest,
                what: "manifest",
                source,
            })?;
        manifest.layers = layers.iter().map(|layer| layer.blob.clone()).collect();
        let bytes = canonical_json(&manifest).map_err(|source| StoreError::Document {
            what: "manifest",
            source,
        })?;
        let digest = self.put_bytes(&bytes)?.digest;
        Ok(Image {
            digest,
            manifest: bytes,
            layers,
            ..image.clone()
        })
    }

    fn layer_in_gzip(&self, layer: &Layer) -> Result<Layer, StoreError> {
        if layer.blob.media_type == MEDIA_LAYER_GZIP {
            return Ok(layer.clone());
        }
        let mut stream = self.layer_stream(layer)?;
        let writer = self.blob_writer()?;
        let path = writer.path();
        // Neither a time of day nor a name or a system is in its header.
        let mut out = GzBuilder::new()
            .mtime(0)
            .write(writer, Compression::new(LEVEL));
        io::copy(&mut stream, &mut out).map_err(io_error("write", &path))?;
        stream.check(layer)?;
        let writer = out.finish().map_err(io_error("write", &path))?;
        let blob = writer.commit_blob()?;
        let mut layer = layer.clone();
        layer.blob.media_type = MEDIA_LAYER_GZIP.to_owned();
        layer.blob.digest = blob.digest;
        layer.blob.size = blob.size;
        let with = format!("gzip, level {LEVEL}, of kiln {}", env!("CARGO_PKG_VERSION"));
        layer.blob.annotations.insert(COMPRESSOR.to_owned(), with);
        Ok(layer)
    }
}

/// What kiln's layers are compressed with: part of a step's key, since other versions write other bytes.
pub fn compressor() -> String {
    let version = zstd::zstd_safe::version_string();
    format!(
        "zstd {version}, level {}, frames 1",
        super::compress::ZSTD_LEVEL
    )
}
