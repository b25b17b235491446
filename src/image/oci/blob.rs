//! The parts of an image: each is what its digest says, or an error; and what is packed is unpacked.

use std::io::{self, BufRead, BufReader, Read};

use sha2::{Digest as _, Sha256};

use super::OciError;
use crate::image::Watch;
use crate::task::Digest;

/// A part, as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// A digest, or in a `docker save` archive the name of a file.
    pub name: String,
    /// What it must be; a layer of a `docker save` archive is known by its diff id alone.
    pub digest: Option<Digest>,
    pub size: Option<u64>,
}

impl Blob {
    /// A blob by its descriptor.
    pub fn described(descriptor: &oci_spec::image::Descriptor) -> Result<Self, OciError> {
        let name = descriptor.digest().to_string();
        let digest = Digest::try_from(name.clone()).map_err(|_| OciError::Digest(name.clone()))?;
        Ok(Self { name, digest: Some(digest), size: Some(descriptor.size()) })
    }

    /// `content`, checked while it is read.
    pub fn verified<R: Read>(&self, content: R) -> Verified<R> {
        Verified::new(content, self.name.clone(), self.digest.clone(), self.size)
    }
}

/// Content that turns into an error at its end unless it is what it has to be.
pub struct Verified<R> {
    content: R,
    name: String,
    expected: Option<Digest>,
    /// Bytes that may still come.
    left: Option<u64>,
    hash: Sha256,
}

impl<R: Read> Verified<R> {
    pub fn new(content: R, name: String, expected: Option<Digest>, size: Option<u64>) -> Self {
        Self { content, name, expected, left: size, hash: Sha256::new() }
    }

    fn wrong(&self, reason: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} {reason}", self.name))
    }

    fn end(&self) -> io::Result<usize> {
        if self.left.is_some_and(|left| left > 0) {
            return Err(self.wrong("is cut short"));
        }
        let found = Digest::new(self.hash.clone().finalize().into());
        match &self.expected {
            Some(expected) if *expected != found => Err(self.wrong(&format!("has another content: {found}"))),
            _ => Ok(0),
        }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let length = self.content.read(buffer)?;
        if length == 0 {
            return self.end();
        }
        if let Some(left) = self.left {
            let left = left.checked_sub(length as u64);
            self.left = Some(left.ok_or_else(|| self.wrong("is longer than its manifest says"))?);
        }
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

/// Content that ends when the operator says so.
pub struct Watched<'a, R> {
    pub content: R,
    pub watch: &'a Watch<'a>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.watch.stopped)() { Err(io::Error::other("interrupted")) } else { self.content.read(buffer) }
    }
}

impl<R: io::Seek> io::Seek for Watched<'_, R> {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        self.content.seek(position)
    }
}

/// How content is packed, by how it begins: media types are not always true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    None,
    Gzip,
    Zstd,
    /// Known, and not read here.
    Other(&'static str),
}

impl Packing {
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or one that is to be skipped (RFC 8878, 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Self::Other("xz"),
            [b'B', b'Z', b'h', ..] => Self::Other("bzip2"),
            _ => Self::None,
        }
    }
}

/// What `packed` holds. Its own end is looked at too, when the end of what it holds is read.
///
/// # Errors
/// When the beginning cannot be read, or is of a form that is not read here.
pub fn unpacked<'a>(packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut packed = BufReader::with_capacity(128 << 10, packed);
    Ok(match Packing::of(packed.fill_buf()?) {
        Packing::None => Box::new(packed),
        Packing::Gzip => Box::new(ToTheEnd { content: Some(flate2::bufread::MultiGzDecoder::new(packed)) }),
        Packing::Zstd => Box::new(ToTheEnd { content: Some(zstd::Decoder::with_buffer(packed)?) }),
        Packing::Other(form) => {
            let reason = format!("it is packed with {form}; Faber reads gzip, zstd and plain tar");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
    })
}

/// A decoder that may be done before its input is: only at the input's end its digest is compared.
struct ToTheEnd<D> {
    content: Option<D>,
}

/// The input of a decoder that is done.
trait Input {
    fn rest(self) -> io::Result<u64>;
}

impl<R: BufRead> Input for flate2::bufread::MultiGzDecoder<R> {
    fn rest(self) -> io::Result<u64> {
        io::copy(&mut self.into_inner(), &mut io::sink())
    }
}

impl<R: BufRead> Input for zstd::Decoder<'_, R> {
    fn rest(self) -> io::Result<u64> {
        io::copy(&mut self.finish(), &mut io::sink())
    }
}

impl<D: Read + Input> Read for ToTheEnd<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(content) = &mut self.content else { return Ok(0) };
        let length = content.read(buffer)?;
        if length == 0 && !buffer.is_empty() {
            self.content.take().map_or(Ok(0), Input::rest)?;
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn blob(content: &[u8], size: u64) -> Blob {
        let digest = Digest::new(Sha256::digest(content).into());
        Blob { name: "blob".into(), digest: Some(digest), size: Some(size) }
    }

    fn read(blob: &Blob, content: &[u8]) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        let done = unpacked(blob.verified(content)).and_then(|mut content| content.read_to_end(&mut all));
        done.map(|_| all).map_err(|error| error.to_string())
    }

    #[test]
    fn content_is_what_its_digest_says_or_an_error() {
        assert_eq!(read(&blob(b"abc", 3), b"abc"), Ok(b"abc".to_vec()));
        assert!(read(&blob(b"abc", 3), b"abd").unwrap_err().starts_with("blob has another content: sha256:"));
        assert_eq!(read(&blob(b"abc", 3), b"ab").unwrap_err(), "blob is cut short");
        assert_eq!(read(&blob(b"abc", 2), b"abc").unwrap_err(), "blob is longer than its manifest says");
    }

    #[test]
    fn packed_content_is_unpacked_and_looked_at_to_its_end() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"abc").unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&b"abc"[..], 1).unwrap();
        for packed in [gzip, zstd] {
            let size = packed.len() as u64;
            assert_eq!(read(&blob(&packed, size), &packed), Ok(b"abc".to_vec()));
            let twice = [packed.clone(), packed.clone()].concat();
            assert_eq!(read(&blob(&twice, 2 * size), &twice), Ok(b"abcabc".to_vec()));
            assert!(read(&blob(&packed, size), &packed[..packed.len() - 1]).is_err());
            assert!(read(&blob(&twice, 2 * size), &[packed.clone(), vec![0; packed.len()]].concat()).is_err());
        }
        let error = read(&blob(b"BZh9", 4), b"BZh9").unwrap_err();
        assert_eq!(error, "it is packed with bzip2; Faber reads gzip, zstd and plain tar");
    }
}
