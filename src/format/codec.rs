//! Reads and writes the small variable bodies: numbers, digests, UUIDs and bounded strings, one after
//! the other. Fixed headers are `zerocopy` structs in their own format's file.

use crate::digest::{Digest, SECRET_BYTES, Secret};
use crate::error::{Error, Result};
use crate::limits::STRING_BYTES_MAX;
use uuid::Uuid;

/// CRC32C (Castagnoli), the check of every fixed header.
pub fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Appends values to a body.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// The finished body.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Writer {
        self.raw(&[value])
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Writer {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Writer {
        self.raw(&value.to_le_bytes())
    }

    /// Sixteen bytes.
    pub fn digest(&mut self, value: &Digest) -> &mut Writer {
        self.raw(&value.0)
    }

    /// Sixteen bytes.
    pub fn uuid(&mut self, value: &Uuid) -> &mut Writer {
        self.raw(value.as_bytes())
    }

    /// 192 bytes.
    pub fn secret(&mut self, value: &Secret) -> &mut Writer {
        self.raw(value)
    }

    /// A length in two bytes and UTF-8; longer than the limit is cut at a character.
    pub fn string(&mut self, value: &str) -> &mut Writer {
        let end = (0..=value.len().min(STRING_BYTES_MAX)).rev().find(|at| value.is_char_boundary(*at)).unwrap_or(0);
        self.raw(&(end as u16).to_le_bytes());
        self.raw(&value.as_bytes()[..end])
    }

    /// Bytes whose number both sides know.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Writer {
        self.bytes.extend_from_slice(bytes);
        self
    }
}

/// Takes values off a body in the order they were written.
#[derive(Debug)]
pub struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader over `body`; `what` names it in errors.
    pub fn new(what: &'static str, body: &'a [u8]) -> Reader<'a> {
        Reader { what, rest: body }
    }

    fn malformed(&self, how: &str) -> Error {
        Error::malformed(format!("malformed {}: {how}", self.what))
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        if bytes > self.rest.len() {
            return Err(self.malformed("it ends too early"));
        }
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        Ok(taken)
    }

    /// As many bytes as the array has.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Sixteen bytes.
    pub fn digest(&mut self) -> Result<Digest> {
        Ok(Digest(self.array()?))
    }

    /// Sixteen bytes.
    pub fn uuid(&mut self) -> Result<Uuid> {
        Ok(Uuid::from_bytes(self.array()?))
    }

    /// 192 bytes.
    pub fn secret(&mut self) -> Result<Secret> {
        self.array::<SECRET_BYTES>()
    }

    /// A bounded UTF-8 string.
    pub fn string(&mut self) -> Result<String> {
        let bytes = usize::from(u16::from_le_bytes(self.array()?));
        if bytes > STRING_BYTES_MAX {
            return Err(self.malformed("a string is too long"));
        }
        let text = std::str::from_utf8(self.take(bytes)?).map_err(|_| self.malformed("a string is not UTF-8"))?;
        Ok(text.to_owned())
    }

    /// What is left, in one piece.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Nothing may be left over.
    pub fn finish(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed("it has bytes left over")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_reads_back_in_order_and_not_one_byte_more() {
        let mut writer = Writer::default();
        writer.u8(1).u32(2).u64(3).digest(&Digest([4; 16])).string("fünf").uuid(&Uuid::nil());
        let body = writer.finish();
        let mut reader = Reader::new("test", &body);
        assert_eq!((reader.u8().unwrap(), reader.u32().unwrap(), reader.u64().unwrap()), (1, 2, 3));
        assert_eq!(reader.digest().unwrap(), Digest([4; 16]));
        assert_eq!(reader.string().unwrap(), "fünf");
        assert_eq!(reader.uuid().unwrap(), Uuid::nil());
        assert!(reader.u8().is_err());
        reader.finish().unwrap();
        for cut in 0..body.len() {
            let mut reader = Reader::new("test", &body[..cut]);
            let all = (|| {
                reader.u8()?;
                reader.u32()?;
                reader.u64()?;
                reader.digest()?;
                reader.string()?;
                reader.uuid()
            })();
            assert!(all.is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn an_overlong_string_is_cut_at_a_character() {
        let mut writer = Writer::default();
        writer.string(&"ü".repeat(STRING_BYTES_MAX));
        let body = writer.finish();
        assert!(Reader::new("test", &body).string().unwrap().len() <= STRING_BYTES_MAX);
    }
}
