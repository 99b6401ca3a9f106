//! Reads NumPy's `.npy` files (format 1 and 2, little-endian, C order): matrices of f16 or f32, and of i32 or i64 ids, and masks.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::f16;

/// A matrix, rows one after the other.
#[derive(Debug, PartialEq)]
pub struct Matrix<T> {
    /// Rows.
    pub rows: usize,
    /// Values a row.
    pub columns: usize,
    /// `rows * columns` values.
    pub values: Vec<T>,
}

impl<T> Matrix<T> {
    /// One row.
    pub fn row(&self, at: usize) -> &[T] {
        &self.values[at * self.columns..][..self.columns]
    }
}

/// What the header says: element type, shape, and the bytes behind it.
struct Raw<'a> {
    kind: &'a str,
    shape: Vec<usize>,
    data: &'a [u8],
}

/// Reads vectors, widening f16.
pub fn read_f32(path: &Path) -> Result<Matrix<f32>> {
    read(path, f32_from)
}

/// Reads ids.
pub fn read_ids(path: &Path) -> Result<Matrix<i64>> {
    read(path, ids_from)
}

/// Vectors from a file's bytes, widening f16.
pub fn f32_from(bytes: &[u8]) -> Result<Matrix<f32>> {
    let raw = &parse(bytes)?;
    match raw.kind {
        "<f4" => values(raw, |b: [u8; 4]| f32::from_le_bytes(b)),
        "<f2" => values(raw, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
        other => bail!("element type {other}: vectors are <f2 or <f4"),
    }
}

/// Ids from a file's bytes.
pub fn ids_from(bytes: &[u8]) -> Result<Matrix<i64>> {
    let raw = &parse(bytes)?;
    match raw.kind {
        "<i4" => values(raw, |b: [u8; 4]| i64::from(i32::from_le_bytes(b))),
        "<i8" => values(raw, |b: [u8; 8]| i64::from_le_bytes(b)),
        other => bail!("element type {other}: ids are <i4 or <i8"),
    }
}

/// Reads a mask: one-dimensional, bool or u8.
pub fn read_mask(path: &Path) -> Result<Vec<bool>> {
    read(path, mask_from)
}

/// A mask from a file's bytes.
fn mask_from(bytes: &[u8]) -> Result<Vec<bool>> {
    let raw = parse(bytes)?;
    let &[length] = raw.shape.as_slice() else { bail!("{} dimensions: a mask has one", raw.shape.len()) };
    ensure!(matches!(raw.kind, "|b1" | "|u1"), "element type {}: masks are |b1 or |u1", raw.kind);
    ensure!(raw.data.len() == length, "{} bytes of data do not fill the shape", raw.data.len());
    Ok(raw.data.iter().map(|&byte| byte != 0).collect())
}

fn read<T>(path: &Path, decode: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}: name a .npy file", path.display()))?;
    decode(&bytes).with_context(|| {
        format!(
            "{} is not usable, write it by numpy.save: floats of 2 or 4 bytes, ids of 4 or 8, masks of bool",
            path.display()
        )
    })
}

fn values<T, const N: usize>(raw: &Raw<'_>, decode: impl Fn([u8; N]) -> T) -> Result<Matrix<T>> {
    let &[rows, columns] = raw.shape.as_slice() else { bail!("{} dimensions: a matrix has two", raw.shape.len()) };
    let count = rows.checked_mul(columns).context("the shape is too large")?;
    ensure!(count.checked_mul(N) == Some(raw.data.len()), "{} bytes of data do not fill the shape", raw.data.len());
    let (elements, _) = raw.data.as_chunks::<N>();
    Ok(Matrix { rows, columns, values: elements.iter().map(|&b| decode(b)).collect() })
}

fn parse(bytes: &[u8]) -> Result<Raw<'_>> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").context("no .npy file: its magic is missing")?;
    let (length, rest) = match rest {
        [1, _, a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        [2, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        _ => bail!("only .npy formats 1 and 2 are read"),
    };
    let (header, data) = rest.split_at_checked(length).context("the header is cut off")?;
    let header = std::str::from_utf8(header).context("the header is not text")?;
    ensure!(field(header, "fortran_order")?.starts_with("False"), "Fortran order is not read");
    let kind = field(header, "descr")?.strip_prefix('\'').and_then(|rest| rest.split('\'').next());
    let shape = field(header, "shape")?.strip_prefix('(').and_then(|rest| rest.split(')').next());
    let sides = shape.context("no shape")?.split(',').map(str::trim).filter(|side| !side.is_empty());
    let shape = sides.map(|side| side.parse().context("the shape is no number")).collect::<Result<_>>()?;
    Ok(Raw { kind: kind.context("no element type")?, shape, data })
}

/// What follows a key of the header's dictionary.
fn field<'a>(header: &'a str, key: &str) -> Result<&'a str> {
    let (_, rest) = header.split_once(&format!("'{key}':")).with_context(|| format!("the header lacks {key}"))?;
    Ok(rest.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, header: &str, data: &[u8]) -> tempfile::NamedTempFile {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((header.len() as u16).to_le_bytes()),
            _ => bytes.extend((header.len() as u32).to_le_bytes()),
        }
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), bytes).expect("writing it");
        file
    }

    fn header(kind: &str, shape: &str) -> String {
        format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}    \n")
    }

    #[test]
    fn both_formats_and_all_types() {
        let floats: Vec<u8> = [1.0f32, -2.5].iter().flat_map(|x| x.to_le_bytes()).collect();
        let halves: Vec<u8> = [1.0f32, -2.5].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        for (version, kind, data) in [(1, "<f4", &floats), (2, "<f2", &halves)] {
            let read = read_f32(file(version, &header(kind, "(1, 2)"), data).path()).expect("readable");
            assert_eq!(read, Matrix { rows: 1, columns: 2, values: vec![1.0, -2.5] });
            assert_eq!(read.row(0), [1.0, -2.5]);
        }
        let ids: Vec<u8> = [7i64, -1].iter().flat_map(|x| x.to_le_bytes()).collect();
        let read = read_ids(file(1, &header("<i8", "(2, 1)"), &ids).path()).expect("readable");
        assert_eq!((read.rows, read.values), (2, vec![7, -1]));
    }

    #[test]
    fn masks() {
        let read = |kind, shape, data: &[u8]| read_mask(file(1, &header(kind, shape), data).path());
        assert_eq!(read("|b1", "(3,)", &[0, 1, 0]).expect("readable"), [false, true, false]);
        assert_eq!(read("|u1", "(2,)", &[1, 0]).expect("readable"), [true, false]);
        for (kind, shape, data) in [("<i4", "(1,)", &[0; 4][..]), ("|b1", "(1, 1)", &[0]), ("|b1", "(2,)", &[0])] {
            assert!(read(kind, shape, data).is_err(), "{kind} {shape}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let error = |file: tempfile::NamedTempFile| format!("{:#}", read_f32(file.path()).expect_err("unreadable"));
        assert!(error(file(1, &header("<f8", "(1, 1)"), &[0; 8])).contains("element type <f8"));
        assert!(error(file(1, &header("<f4", "(1, 2)"), &[0; 4])).contains("do not fill the shape"));
        assert!(error(file(1, &header("<f4", "(1,)"), &[0; 4])).contains("1 dimensions"));
        assert!(error(file(3, "", &[])).contains("formats 1 and 2"));
        assert!(error(file(1, "{}", &[])).contains("fortran_order"));
        let huge = header("<f4", "(18446744073709551615, 18446744073709551615)");
        assert!(error(file(1, &huge, &[])).contains("too large"));
    }
}
