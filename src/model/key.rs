//! Row identity: the replica identity columns in canonical, order-preserving bytes.

use crate::model::value::{ColumnType, Value};
use std::fmt;

/// The canonical bytes of a row's key. Equal rows have equal bytes whether they came by copy or by stream, in text or
/// in binary; bytes sort as the columns do (text by code point).
///
/// Per column one tag byte and: integers as 8 bytes big-endian with the sign bit flipped; text with each 0x00 written
/// as 0x00 0xFF and closed by 0x00 0x00; a UUID as its 16 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey(Box<[u8]>);

const INT: u8 = 1;
const TEXT: u8 = 2;
const UUID: u8 = 3;

impl RowKey {
    /// The key with these column values; `None` when a value's type cannot be part of a key.
    pub fn encode(values: &[Value]) -> Option<RowKey> {
        let mut bytes = Vec::with_capacity(values.len() * 9);
        for value in values {
            match value {
                Value::Int(v) => {
                    bytes.push(INT);
                    bytes.extend_from_slice(&((*v as u64) ^ (1 << 63)).to_be_bytes());
                }
                Value::Text(v) => {
                    bytes.push(TEXT);
                    for &byte in v.as_bytes() {
                        bytes.push(byte);
                        if byte == 0 {
                            bytes.push(0xFF);
                        }
                    }
                    bytes.extend_from_slice(&[0, 0]);
                }
                Value::Uuid(v) => {
                    bytes.push(UUID);
                    bytes.extend_from_slice(v);
                }
                _ => return None,
            }
        }
        Some(RowKey(bytes.into_boxed_slice()))
    }

    /// A key read back from our own storage.
    pub fn from_bytes(bytes: &[u8]) -> RowKey {
        RowKey(bytes.into())
    }

    /// The canonical bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The column values; `None` when the bytes are not a key.
    pub fn decode(&self) -> Option<Vec<Value>> {
        let mut rest = &self.0[..];
        let mut values = Vec::new();
        while let Some((&tag, tail)) = rest.split_first() {
            let (value, tail) = match tag {
                INT => {
                    let (number, tail) = tail.split_first_chunk::<8>()?;
                    (Value::Int((u64::from_be_bytes(*number) ^ (1 << 63)) as i64), tail)
                }
                TEXT => {
                    let (text, tail) = decode_text(tail)?;
                    (Value::Text(text.into()), tail)
                }
                UUID => {
                    let (uuid, tail) = tail.split_first_chunk::<16>()?;
                    (Value::Uuid(*uuid), tail)
                }
                _ => return None,
            };
            values.push(value);
            rest = tail;
        }
        Some(values)
    }
}

fn decode_text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let mut text = Vec::new();
    let mut rest = bytes;
    loop {
        let (&byte, tail) = rest.split_first()?;
        if byte != 0 {
            text.push(byte);
            rest = tail;
            continue;
        }
        let (&mark, tail) = tail.split_first()?;
        match mark {
            0 => return Some((String::from_utf8(text).ok()?, tail)),
            0xFF => text.push(0),
            _ => return None,
        }
        rest = tail;
    }
}

impl fmt::Debug for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowKey({self})")
    }
}

/// For people: the column values, comma separated.
impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(values) = self.decode() else { return f.write_str("?") };
        for (i, value) in values.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(&crate::model::pgtype::to_text(value))?;
        }
        Ok(())
    }
}

/// The name and type of one key column.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct KeyColumn {
    /// As in the source.
    pub name: String,
    /// One of the types a key can have.
    pub kind: ColumnType,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(values: &[Value]) -> RowKey {
        RowKey::encode(values).expect("key types")
    }

    #[test]
    fn keys_survive_the_round_trip_and_sort_as_their_values() {
        let rows = [
            vec![Value::Int(i64::MIN), Value::Text("".into())],
            vec![Value::Int(-1), Value::Text("b".into())],
            vec![Value::Int(0), Value::Text("a".into())],
            vec![Value::Int(0), Value::Text("a\0".into())],
            vec![Value::Int(0), Value::Text("a\0b".into())],
            vec![Value::Int(0), Value::Text("a'\"é".into())],
            vec![Value::Int(0), Value::Text("ab".into())],
            vec![Value::Int(i64::MAX), Value::Text("x".repeat(2000).into())],
        ];
        let keys: Vec<_> = rows.iter().map(|row| key(row)).collect();
        for (row, key) in rows.iter().zip(&keys) {
            assert_eq!(key.decode().as_ref(), Some(row));
        }
        let expected = {
            let mut sorted = rows.to_vec();
            sorted.sort_by(|a, b| a[0].compare(&b[0]).expect("ints").then_with(|| a[1].compare(&b[1]).expect("texts")));
            sorted.iter().map(|row| key(row)).collect::<Vec<_>>()
        };
        let mut sorted = keys;
        sorted.sort();
        assert_eq!(sorted, expected);
    }

    #[test]
    fn any_bytes_decode_or_are_refused() {
        for bytes in [&[INT, 1][..], &[TEXT, b'a'], &[TEXT, 0, 7], &[UUID, 1, 2], &[9], &[TEXT, 0xFF, 0, 0]] {
            assert_eq!(RowKey::from_bytes(bytes).decode(), None, "{bytes:?}");
        }
    }
}
