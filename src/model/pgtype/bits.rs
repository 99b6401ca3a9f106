//! Bit strings as vectors of 0 and 1, in both forms.

use crate::model::value::{MAX_BITS, Value};

use super::{Parsed, hex_digit};

fn checked(bits: usize) -> Result<usize, String> {
    match bits {
        0 => Err("no bits".into()),
        bits if bits > MAX_BITS => Err(format!("{bits} bits; at most {MAX_BITS}")),
        bits => Ok(bits),
    }
}

/// The bits of these bytes, the highest of each first.
fn unpack(bytes: impl Iterator<Item = u8>, count: usize) -> Value {
    let bits = bytes.flat_map(|byte| (0..8).rev().map(move |at| f32::from(byte >> at & 1)));
    Value::Vector(bits.take(count).collect())
}

/// `bit_send` and `varbit_send`: i32 number of bits, then bytes, the highest bit first, the last byte filled with zeros.
pub(super) fn binary(bytes: &[u8]) -> Parsed {
    let (count, bytes) = bytes.split_first_chunk::<4>().ok_or("a bit string without its length")?;
    let count = usize::try_from(i32::from_be_bytes(*count)).map_err(|_| "a negative length")?;
    if bytes.len() != count.div_ceil(8) {
        return Err(format!("{} bytes for {count} bits", bytes.len()));
    }
    Ok(unpack(bytes.iter().copied(), checked(count)?))
}

/// `0101`, with or without `b` in front, or hexadecimal digits behind `x`.
pub(super) fn parse(text: &str) -> Parsed {
    if let Some(digits) = text.strip_prefix(['x', 'X']) {
        let count = checked(digits.len().saturating_mul(4))?;
        let digits = digits.bytes().map(|digit| hex_digit(digit).ok_or("not hexadecimal digits"));
        let digits: Vec<u8> = digits.collect::<Result<_, _>>()?;
        let bytes = digits.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).unwrap_or(&0));
        return Ok(unpack(bytes, count));
    }
    let digits = text.strip_prefix(['b', 'B']).unwrap_or(text);
    checked(digits.len())?;
    let bit = |digit| match digit {
        b'0' => Ok(0.0),
        b'1' => Ok(1.0),
        _ => Err("not a string of the digits 0 and 1".to_owned()),
    };
    Ok(Value::Vector(digits.bytes().map(bit).collect::<Result<_, _>>()?))
}

/// The digits.
pub(super) fn text(bits: &[f32]) -> String {
    bits.iter().map(|bit| if *bit == 0.0 { '0' } else { '1' }).collect()
}
