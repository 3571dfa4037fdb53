//! How a layer's tar stream is compressed: kiln writes zstd, and reads what others wrote.

use std::io::{self, BufRead, BufReader, Read};

use crate::image::{MEDIA_LAYER_GZIP, MEDIA_LAYER_TAR, MEDIA_LAYER_ZSTD};

/// zstd's own bound for readers that do not raise it is 2^27; a hostile frame may not ask for more.
const ZSTD_WINDOW_LOG: u32 = 27;
const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
/// zstd's frames that hold no data, which some writers begin with: 0x184D2A50 to 0x184D2A5F, the lowest byte first.
const ZSTD_SKIPPABLE: &[u8] = b"\x2a\x4d\x18";

/// OCI's media type of a layer, for OCI's own or docker's name of it; none where kiln can't read it.
pub(crate) fn layer_media_type(media_type: &str) -> Option<&'static str> {
    Some(match media_type {
        MEDIA_LAYER_ZSTD
        | "application/vnd.docker.image.rootfs.diff.tar.zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd" => MEDIA_LAYER_ZSTD,
        MEDIA_LAYER_GZIP
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip" => MEDIA_LAYER_GZIP,
        MEDIA_LAYER_TAR
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar" => MEDIA_LAYER_TAR,
        _ => return None,
    })
}

/// The media type of a layer that begins so.
pub(crate) fn media_type_of(start: &[u8]) -> &'static str {
    if start.starts_with(GZIP) {
        MEDIA_LAYER_GZIP
    } else if is_zstd(start) {
        MEDIA_LAYER_ZSTD
    } else {
        MEDIA_LAYER_TAR
    }
}

fn is_zstd(start: &[u8]) -> bool {
    let skippable = start.first().is_some_and(|byte| byte & 0xf0 == 0x50)
        && start.get(1..4) == Some(ZSTD_SKIPPABLE);
    start.starts_with(ZSTD) || skippable
}

/// What `reader` has, unpacked by what its first bytes say: a layer's media type is sometimes not what it is.
pub(crate) fn unpacked(reader: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(256 << 10, reader);
    let start = reader.fill_buf()?;
    Ok(match media_type_of(start) {
        MEDIA_LAYER_GZIP => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        MEDIA_LAYER_ZSTD => {
            let mut decoder = zstd::Decoder::with_buffer(reader)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        _ => Box::new(reader),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_stream_is_read_by_what_it_is() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"te").unwrap();
        let mut gzip = gzip.finish().unwrap();
        // Several members are one stream.
        let mut second = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        second.write_all(b"xt").unwrap();
        gzip.extend(second.finish().unwrap());
        let zstd = zstd::encode_all(b"text".as_slice(), 1).unwrap();
        let skipped = [b"\x5e\x2a\x4d\x18\x02\0\0\0ab".as_slice(), &zstd].concat();
        for (bytes, media_type) in [
            (gzip, MEDIA_LAYER_GZIP),
            (zstd, MEDIA_LAYER_ZSTD),
            (skipped, MEDIA_LAYER_ZSTD),
            (b"text".to_vec(), MEDIA_LAYER_TAR),
        ] {
            assert_eq!(media_type_of(&bytes), media_type);
            let mut text = String::new();
            unpacked(io::Cursor::new(bytes))
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, "text", "{media_type}");
        }
    }
}
