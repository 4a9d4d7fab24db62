//! Bounded reading and writing: the only place that indexes received bytes.

use thiserror::Error;

/// Why bytes could not be read as what was expected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// Fewer bytes than the field needs.
    #[error("{field}: {needed} bytes needed, {left} left")]
    Short {
        /// What was being read.
        field: &'static str,
        /// Bytes that the field needs.
        needed: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// A length above its limit.
    #[error("{field}: {length} bytes, at most {limit} allowed")]
    TooLong {
        /// What was being read.
        field: &'static str,
        /// The length that the peer stated.
        length: usize,
        /// The limit for this field.
        limit: usize,
    },
    /// Bytes were left after the last field.
    #[error("{left} bytes after the end")]
    Trailing {
        /// How many bytes were left.
        left: usize,
    },
}

/// A cursor over received bytes.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// The next `length` bytes.
    pub fn take(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], WireError> {
        let short = WireError::Short {
            field,
            needed: length,
            left: self.left.len(),
        };
        let (taken, rest) = self.left.split_at_checked(length).ok_or(short)?;
        self.left = rest;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let short = WireError::Short {
            field,
            needed: N,
            left: self.left.len(),
        };
        let (taken, rest) = self.left.split_first_chunk::<N>().ok_or(short)?;
        self.left = rest;
        Ok(*taken)
    }

    /// One byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    /// A big-endian 16-bit number.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// A big-endian 32-bit number.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// A big-endian 64-bit number.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// Bytes behind a 16-bit length that may not exceed `limit`.
    pub fn vec16(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], WireError> {
        let length = usize::from(self.u16(field)?);
        self.bounded(field, length, limit)
    }

    /// Bytes behind a 32-bit length that may not exceed `limit`.
    pub fn vec32(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], WireError> {
        let length = usize::try_from(self.u32(field)?).unwrap_or(usize::MAX);
        self.bounded(field, length, limit)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.left)
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.left.len()
    }

    /// Demands that nothing is left.
    pub fn finish(self) -> Result<(), WireError> {
        match self.left.len() {
            0 => Ok(()),
            left => Err(WireError::Trailing { left }),
        }
    }

    fn bounded(
        &mut self,
        field: &'static str,
        length: usize,
        limit: usize,
    ) -> Result<&'a [u8], WireError> {
        if length > limit {
            return Err(WireError::TooLong {
                field,
                length,
                limit,
            });
        }
        self.take(field, length)
    }
}

/// Appends to a buffer in the forms that [`Reader`] reads.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty buffer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(capacity),
        }
    }

    /// One byte.
    pub fn u8(mut self, value: u8) -> Self {
        self.bytes.push(value);
        self
    }

    /// A big-endian 32-bit number.
    pub fn u32(mut self, value: u32) -> Self {
        self.bytes.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// A big-endian 64-bit number.
    pub fn u64(mut self, value: u64) -> Self {
        self.bytes.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Bytes without a length.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A 32-bit length and the bytes. A longer slice than that is cut to `u32::MAX` bytes, which
    /// no caller comes near.
    pub fn vec32(self, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let kept = bytes.get(..length as usize).unwrap_or(bytes);
        self.u32(length).raw(kept)
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_above_the_limit_is_refused_before_it_is_read() {
        let bytes = [0xff, 0xff, 0xff, 0xff];
        assert_eq!(
            Reader::new(&bytes).vec32("name", 16),
            Err(WireError::TooLong {
                field: "name",
                length: 0xffff_ffff,
                limit: 16
            })
        );
    }

    #[test]
    fn what_was_written_is_read_back() {
        let bytes = Writer::new().u8(7).u64(9).vec32(b"abc").raw(b"x").finish();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u8("a"), Ok(7));
        assert_eq!(reader.u64("b"), Ok(9));
        assert_eq!(reader.vec32("c", 3), Ok(b"abc".as_slice()));
        assert_eq!(
            reader.clone().finish(),
            Err(WireError::Trailing { left: 1 })
        );
        assert_eq!(reader.rest(), b"x");
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn a_short_buffer_names_the_field() {
        let mut reader = Reader::new(&[1, 2]);
        assert_eq!(
            reader.u32("length"),
            Err(WireError::Short {
                field: "length",
                needed: 4,
                left: 2
            })
        );
    }
}
