//! Turning octets into structs: bounded, exact, and without allocating for what is not there.
//!
//! tls_codec's derive macros do the structs and selects; the two vector types are ours, because a declared length must be
//! compared with what is left of the input *before* anything is allocated for it, and because tls_codec's own byte vectors
//! panic in debug builds on truncated input.

use std::fmt;
use std::io::Write;
use std::ops::Deref;

use tls_codec::{DeserializeBytes, Error, Serialize, Size};

use crate::base::bytes::hex;
use crate::base::limits::LIST_ELEMENTS_MAX;

/// The octets are not one well-formed value: truncated, trailing octets, an unknown code point, a length out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}: {why}")]
pub struct DecodeError {
    /// The type that was expected.
    pub what: &'static str,
    /// What tls_codec found wrong.
    pub why: String,
}

/// Decodes exactly one `T` from `octets`; anything left over is an error.
pub fn decode<T: DeserializeBytes>(octets: &[u8]) -> Result<T, DecodeError> {
    let error = |why: String| {
        let path = std::any::type_name::<T>();
        DecodeError { what: path.rsplit("::").next().unwrap_or(path), why }
    };
    match T::tls_deserialize_bytes(octets) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(error(format!("{} octets after its end", rest.len()))),
        Err(cause) => Err(error(format!("{cause:?}"))),
    }
}

/// Encodes `value`.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    value.tls_serialize_detached().expect("a vector below 2^30 octets encodes, and every frame is far smaller")
}

/// Reads an RFC 9420 §2.1.2 vector length and returns the vector's content and what follows it. Nothing is copied.
fn split_vector(octets: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let first = *octets.first().ok_or(Error::EndOfStream)?;
    let length_octets = match first >> 6 {
        0 => 1,
        1 => 2,
        2 => 4,
        _ => return Err(Error::InvalidVectorLength),
    };
    let (prefix, rest) = octets.split_at_checked(length_octets).ok_or(Error::EndOfStream)?;
    let length = prefix.iter().skip(1).fold(usize::from(first & 0x3f), |value, octet| value << 8 | usize::from(*octet));
    // The shortest length is the only valid one, so that a value has one encoding.
    if length_octets != length_size(length) {
        return Err(Error::InvalidVectorLength);
    }
    rest.split_at_checked(length).ok_or(Error::EndOfStream)
}

/// How many octets the length of a vector of `length` octets takes.
fn length_size(length: usize) -> usize {
    match length {
        0..64 => 1,
        64..16_384 => 2,
        _ => 4,
    }
}

fn write_length<W: Write>(length: usize, writer: &mut W) -> Result<usize, Error> {
    let size = length_size(length);
    let wide = u32::try_from(length).ok().filter(|wide| *wide < 1 << 30).ok_or(Error::InvalidVectorLength)?;
    let prefix = match size {
        1 => wide << 24,
        2 => (wide | 0x4000) << 16,
        _ => wide | 0x8000_0000,
    };
    writer.write_all(prefix.to_be_bytes().get(..size).unwrap_or_default())?;
    Ok(size)
}

/// `opaque value<V>`.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Opaque(Vec<u8>);

impl Opaque {
    /// The octets, by value.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl Deref for Opaque {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Opaque {
    fn from(octets: Vec<u8>) -> Self {
        Self(octets)
    }
}

impl From<&[u8]> for Opaque {
    fn from(octets: &[u8]) -> Self {
        Self(octets.to_vec())
    }
}

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Long values are keys, messages and certificates: their beginning is enough to tell them apart.
        match self.0.get(..16) {
            Some(start) if self.0.len() > 32 => write!(f, "{}…({} octets)", hex(start), self.0.len()),
            _ => f.write_str(&hex(&self.0)),
        }
    }
}

impl Size for Opaque {
    fn tls_serialized_len(&self) -> usize {
        length_size(self.0.len()) + self.0.len()
    }
}

impl Serialize for Opaque {
    fn tls_serialize<W: Write>(&self, writer: &mut W) -> Result<usize, Error> {
        let size = write_length(self.0.len(), writer)?;
        writer.write_all(&self.0)?;
        Ok(size + self.0.len())
    }
}

impl DeserializeBytes for Opaque {
    fn tls_deserialize_bytes(octets: &[u8]) -> Result<(Self, &[u8]), Error> {
        let (content, rest) = split_vector(octets)?;
        Ok((Self(content.to_vec()), rest))
    }
}

/// `T values<V>`: any number of values; the length counts octets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct List<T>(Vec<T>);

impl<T> List<T> {
    /// The values, by value.
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(values: Vec<T>) -> Self {
        Self(values)
    }
}

impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

impl<T> IntoIterator for List<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a List<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<T: Size> List<T> {
    fn content_len(&self) -> usize {
        self.0.iter().map(Size::tls_serialized_len).sum()
    }
}

impl<T: Size> Size for List<T> {
    fn tls_serialized_len(&self) -> usize {
        let content = self.content_len();
        length_size(content) + content
    }
}

impl<T: Serialize> Serialize for List<T> {
    fn tls_serialize<W: Write>(&self, writer: &mut W) -> Result<usize, Error> {
        let mut written = write_length(self.content_len(), writer)?;
        for value in &self.0 {
            written += value.tls_serialize(writer)?;
        }
        Ok(written)
    }
}

impl<T: DeserializeBytes> DeserializeBytes for List<T> {
    fn tls_deserialize_bytes(octets: &[u8]) -> Result<(Self, &[u8]), Error> {
        let (mut content, rest) = split_vector(octets)?;
        let mut values = Vec::new();
        while !content.is_empty() {
            let (value, after) = T::tls_deserialize_bytes(content)?;
            // A value of no octets would make the loop endless; very many small ones would cost far more memory than the frame.
            if after.len() == content.len() || values.len() == LIST_ELEMENTS_MAX {
                return Err(Error::InvalidInput);
            }
            values.push(value);
            content = after;
        }
        Ok((Self(values), rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_one_encoding_and_end_with_the_input() {
        for length in [0, 1, 63, 64, 16_383, 16_384] {
            let value = Opaque::from(vec![7; length]);
            let octets = encode(&value);
            assert_eq!(octets.len(), value.tls_serialized_len());
            assert_eq!(decode::<Opaque>(&octets), Ok(value));
            assert!(decode::<Opaque>(&octets[..octets.len() - 1]).is_err() || length == 0);
        }
        // 2 octets in the two-octet form, and an eight-octet length.
        assert!(decode::<Opaque>(&[0x40, 2, 1, 1]).is_err());
        assert!(decode::<Opaque>(&[0xc0, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(decode::<Opaque>(&[]).is_err());
        assert!(decode::<Opaque>(&[1, 7, 7]).is_err(), "trailing octet");
    }

    #[test]
    fn a_lying_length_is_refused_before_anything_is_allocated() {
        // Declares 2^30 - 1 octets; allocating them first would show as a gigabyte, and as an abort under a memory limit.
        assert!(decode::<Opaque>(&[0xbf, 0xff, 0xff, 0xff, 1]).is_err());
        assert!(decode::<List<Opaque>>(&[0xbf, 0xff, 0xff, 0xff, 1]).is_err());
    }

    #[test]
    fn a_list_ends_where_its_length_says() {
        let list: List<Opaque> = vec![Opaque::from(vec![1]), Opaque::from(vec![])].into();
        assert_eq!(encode(&list), [3, 1, 1, 0]);
        assert_eq!(decode(&[3, 1, 1, 0]), Ok(list));
        assert!(decode::<List<Opaque>>(&[2, 2, 1, 1]).is_err(), "the element reaches past the list's end");
    }
}
