//! Arrays of NumPy (`.npz`) → tensors: calibration and evaluation data, and inputs of a trial. The format
//! is NumPy's own specification, NEP 1: a zip archive of `.npy` files, each a short header (a Python
//! dictionary as text) and the elements. The header is read by hand, since it comes from outside: no
//! parser of nested literals, no size that is believed before its bytes are there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::limits;
use crate::onnx::{DType, Tensor};

/// Why a file is not a usable archive of arrays. Names the file, and the array where there is one.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct NpzError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it and what was expected.
    pub problem: String,
    /// Whether the file could not be read at all, as opposed to being wrong.
    pub unreadable: bool,
}

/// The arrays of the archive at `path`, by name. Fortran-ordered and big-endian arrays come out
/// row-major and little-endian.
///
/// # Errors
/// Where the file cannot be read, is no archive of arrays, holds an element type that is not handled, or
/// more bytes than the limits allow.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, NpzError> {
    read_some(path, limits::NPZ_BYTES, &|_| usize::MAX)
}

/// As [`read`], with at most the first `rows` (along the first axis) of each array and `most` bytes in all.
/// The rest of a file is not looked at.
///
/// # Errors
/// As [`read`].
pub fn read_some(
    path: &Path,
    most: u64,
    rows: &dyn Fn(&str) -> usize,
) -> Result<BTreeMap<String, Tensor>, NpzError> {
    let fail = |problem: String| NpzError { path: path.to_owned(), problem, unreadable: false };
    let unreadable =
        |error: std::io::Error| NpzError { unreadable: true, ..fail(error.to_string()) };
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(fail("is not a regular file".to_owned()));
    }
    let file = BufReader::new(File::open(path).map_err(unreadable)?);
    let mut archive = ZipArchive::new(file).map_err(|error| {
        fail(format!("not an .npz archive, as numpy.savez writes them: {error}"))
    })?;
    let (count, limit) = (archive.len(), limits::NPZ_ARRAYS);
    if count > limit {
        return Err(fail(format!("holds {count} arrays, above the limit of {limit}")));
    }
    let mut left = most;
    let mut arrays = BTreeMap::new();
    for at in 0..count {
        let mut entry = archive
            .by_index(at)
            .map_err(|error| fail(format!("entry {at} cannot be read: {error}")))?;
        let name =
            entry.name().map_err(|error| fail(format!("entry {at} has no name: {error}")))?;
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else { continue };
        let tensor = read_array(&mut entry, rows(&name), &mut left)
            .map_err(|problem| fail(format!("array {name:?} {problem}")))?;
        arrays.insert(name, tensor);
    }
    if arrays.is_empty() {
        return Err(fail("holds no arrays".to_owned()));
    }
    Ok(arrays)
}

/// NumPy's word for an element type; `None` where it has none of a fixed size.
pub fn descr(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F16 => "<f2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::I8 => "|i1",
        DType::I16 => "<i2",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::U8 => "|u1",
        DType::U16 => "<u2",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        DType::Bool => "|b1",
        DType::BF16 | DType::String => return None,
    })
}

/// The arrays as an archive, uncompressed, as `numpy.savez` writes them.
///
/// # Errors
/// Where an array is of a type that NumPy does not have, or the archive becomes too large for its format.
pub fn encode(arrays: &BTreeMap<String, Tensor>) -> Result<Vec<u8>, EncodeError> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, tensor) in arrays {
        let descr = descr(tensor.dtype)
            .ok_or_else(|| EncodeError::Type { array: name.clone(), dtype: tensor.dtype })?;
        let dims: String = tensor.shape.iter().map(|dim| format!("{dim}, ")).collect();
        let mut header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
        // The elements begin at a multiple of 64 bytes, behind magic, version and length.
        let padding = (header.len() + 11).next_multiple_of(64) - (header.len() + 11);
        header.push_str(&" ".repeat(padding));
        header.push('\n');
        let large = tensor.data.len() as u64 >= u64::from(u32::MAX);
        archive.start_file(format!("{name}.npy"), stored.large_file(large))?;
        archive.write_all(b"\x93NUMPY\x01\x00")?;
        let length = u16::try_from(header.len()).map_err(std::io::Error::other)?;
        archive.write_all(&length.to_le_bytes())?;
        archive.write_all(header.as_bytes())?;
        archive.write_all(&tensor.data)?;
    }
    Ok(archive.finish()?.into_inner())
}

/// Why arrays cannot be written as an archive.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("array {array:?} is of type {dtype:?}, which NumPy does not have")]
    Type { array: String, dtype: DType },
    #[error("the archive cannot be written: {0}")]
    Io(#[from] std::io::Error),
    #[error("the archive cannot be written: {0}")]
    Zip(#[from] zip::result::ZipError),
}

/// The first `rows` of one `.npy` file. `left` is the bytes that all arrays together may still hold.
fn read_array(input: &mut impl Read, rows: usize, left: &mut u64) -> Result<Tensor, String> {
    let mut header = read_header(input)?;
    // Rows of a column-major array lie all over it.
    let all_of_it = header.fortran_order && rows > 0;
    let rows = header.shape.first().map_or(1, |all| rows.min(*all));
    if let Some(first) = header.shape.first_mut().filter(|_| !all_of_it) {
        *first = rows;
    }
    let (dtype, width, big_endian) = element(&header.descr)?;
    let bytes = header
        .shape
        .iter()
        .try_fold(width as u64, |bytes, dim| bytes.checked_mul(u64::try_from(*dim).ok()?));
    let Some(bytes) = bytes else {
        return Err(format!("has an impossible shape {:?}", header.shape));
    };
    if bytes > *left {
        return Err(format!("needs {bytes} bytes, above the {left} that may still be held"));
    }
    *left -= bytes;
    let mut data = Vec::new();
    input.take(bytes).read_to_end(&mut data).map_err(|error| format!("cannot be read: {error}"))?;
    if data.len() as u64 != bytes {
        let (shape, found) = (header.shape, data.len());
        return Err(format!("ends after {found} bytes where shape {shape:?} needs {bytes}"));
    }
    if header.fortran_order {
        data = row_major(&data, &header.shape, width);
        if let Some(first) = header.shape.first_mut() {
            data.truncate(data.len() / (*first).max(1) * rows);
            *first = rows;
        }
    }
    if dtype == DType::String {
        return texts(&header.shape, &data, width, big_endian);
    }
    if big_endian {
        data.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    }
    Ok(Tensor { dtype, shape: header.shape, data: data.into() })
}

#[derive(Debug, PartialEq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

fn read_header(input: &mut impl Read) -> Result<Header, String> {
    let mut exact = |length: usize| {
        let mut bytes = vec![0; length];
        let read = input.read_exact(&mut bytes);
        read.map(|()| bytes).map_err(|error| format!("has no complete header: {error}"))
    };
    let start = exact(8)?;
    if start[..6] != *b"\x93NUMPY" {
        return Err("is not in NumPy's format".to_owned());
    }
    let length = match start[6] {
        1 => exact(2)?.iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte)),
        2 | 3 => exact(4)?.iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte)),
        version => return Err(format!("is in version {version} of NumPy's format, not 1 to 3")),
    };
    let limit = limits::NPY_HEADER_BYTES;
    if length > limit {
        return Err(format!("has a header of {length} bytes, above the limit of {limit}"));
    }
    let text = exact(length)?;
    let text = String::from_utf8_lossy(&text);
    parse_header(&text).ok_or_else(|| {
        let text: String = text.trim().chars().take(120).collect();
        format!("has a header that is not understood (one plain array is expected): {text}")
    })
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
fn parse_header(text: &str) -> Option<Header> {
    let descr = field(text, "descr")?;
    let quote = descr.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    let descr = descr[1..].split(quote).next()?.to_owned();
    let order = field(text, "fortran_order")?;
    let fortran_order = match (order.starts_with("True"), order.starts_with("False")) {
        (true, false) => true,
        (false, true) => false,
        _ => return None,
    };
    let (dims, _) = field(text, "shape")?.strip_prefix('(')?.split_once(')')?;
    let dims = dims.split(',').map(str::trim).filter(|dim| !dim.is_empty());
    let shape = dims.map(|dim| dim.parse().ok()).collect::<Option<_>>()?;
    Some(Header { descr, fortran_order, shape })
}

/// What follows `'name':`.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let quoted = [format!("'{name}'"), format!("\"{name}\"")];
    let after = quoted.iter().find_map(|key| text.split_once(key.as_str()))?.1;
    Some(after.trim_start().strip_prefix(':')?.trim_start())
}

/// Element type, bytes of an element, and whether they are big-endian, of `<f4`, `|b1`, `>U12`.
fn element(descr: &str) -> Result<(DType, usize, bool), String> {
    let unknown = || {
        format!(
            "has elements of type {descr:?}; floats, integers, booleans and texts (f2 f4 f8 i1 i2 \
             i4 i8 u1 u2 u4 u8 b1 U) are handled"
        )
    };
    let (order, kind) = match descr.split_at_checked(1) {
        Some((order @ ("<" | ">" | "|" | "="), kind)) => (order, kind),
        _ => ("|", descr),
    };
    let (dtype, width) = match kind {
        "f2" => (DType::F16, 2),
        "f4" => (DType::F32, 4),
        "f8" => (DType::F64, 8),
        "i1" => (DType::I8, 1),
        "i2" => (DType::I16, 2),
        "i4" => (DType::I32, 4),
        "i8" => (DType::I64, 8),
        "u1" => (DType::U8, 1),
        "u2" => (DType::U16, 2),
        "u4" => (DType::U32, 4),
        "u8" => (DType::U64, 8),
        "b1" => (DType::Bool, 1),
        text => {
            let length = text.strip_prefix('U').and_then(|length| length.parse::<u32>().ok());
            let length = length.filter(|length| *length > 0).ok_or_else(unknown)?;
            (DType::String, length as usize * 4)
        }
    };
    Ok((dtype, width, order == ">"))
}

/// Column-major elements of `width` bytes in row-major order.
fn row_major(data: &[u8], shape: &[usize], width: usize) -> Vec<u8> {
    let strides: Vec<usize> = shape
        .iter()
        .scan(width, |stride, dim| {
            let this = *stride;
            *stride *= dim;
            Some(this)
        })
        .collect();
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0; shape.len()];
    while out.len() < data.len() {
        let from: usize = index.iter().zip(&strides).map(|(at, stride)| at * stride).sum();
        out.extend_from_slice(&data[from..from + width]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

/// NumPy's texts: UTF-32, padded by zeros at the end.
fn texts(shape: &[usize], data: &[u8], width: usize, big: bool) -> Result<Tensor, String> {
    let decode = |element: &[u8]| {
        let code = |b: &[u8; 4]| if big { u32::from_be_bytes(*b) } else { u32::from_le_bytes(*b) };
        let text = element.as_chunks::<4>().0.iter().map(|b| char::from_u32(code(b)));
        let text = text.collect::<Option<String>>()?;
        Some(text.trim_end_matches('\0').to_owned())
    };
    let texts: Option<Vec<String>> = data.chunks_exact(width).map(decode).collect();
    let texts = texts.ok_or("holds texts that are not Unicode")?;
    Ok(Tensor::from_strings(shape, &texts))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `.npy` file of version 1 with the given header text and elements.
    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn archive(entries: &[(&str, Vec<u8>)]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, bytes) in entries {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        file.write_all(&zip.finish().unwrap().into_inner()).unwrap();
        file
    }

    fn one(header: &str, data: &[u8]) -> Result<Tensor, String> {
        read_array(&mut &npy(header, data)[..], usize::MAX, &mut { limits::NPZ_BYTES })
    }

    #[test]
    fn arrays_come_out_under_their_names_with_type_and_shape() {
        let f4 = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", &[0; 8]);
        let b1 = npy("{\"shape\": (), \"descr\": \"|b1\", \"fortran_order\": False}", &[1]);
        let file = archive(&[("x.npy", f4), ("flag.npy", b1), ("readme.txt", vec![1])]);
        let arrays = read(file.path()).unwrap();
        assert_eq!(arrays.keys().collect::<Vec<_>>(), ["flag", "x"]);
        assert_eq!((arrays["x"].dtype, &arrays["x"].shape[..]), (DType::F32, &[2][..]));
        assert_eq!((arrays["flag"].dtype, &arrays["flag"].shape[..]), (DType::Bool, &[][..]));
    }

    #[test]
    fn what_is_written_is_read_back_whatever_its_type_and_rank() {
        let tensor = |dtype: DType, shape: &[usize]| {
            let bytes = shape.iter().product::<usize>() * dtype.size().unwrap();
            let data: Vec<u8> = (0..bytes).map(|at| (at % 2) as u8).collect();
            Tensor { dtype, shape: shape.to_vec(), data: data.into() }
        };
        let arrays = BTreeMap::from([
            ("images".to_owned(), tensor(DType::F32, &[3, 1, 2, 2])),
            ("flag".to_owned(), tensor(DType::Bool, &[])),
            ("ids".to_owned(), tensor(DType::I64, &[5])),
            ("none".to_owned(), tensor(DType::U8, &[0, 4])),
        ]);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&encode(&arrays).unwrap()).unwrap();
        assert_eq!(read(file.path()).unwrap(), arrays);
        let text = BTreeMap::from([("t".to_owned(), Tensor::from_strings(&[1], &["a"]))]);
        assert!(encode(&text).unwrap_err().to_string().contains("\"t\""));
    }

    #[test]
    fn no_more_than_the_first_rows_is_read() {
        let header = |order: &str, shape: &str| {
            format!("{{'descr': '|u1', 'fortran_order': {order}, 'shape': {shape}, }}")
        };
        let file = archive(&[
            // The file ends long before its array does.
            ("long.npy", npy(&header("False", "(1000000000, 2)"), &[1, 2, 3, 4, 5])),
            ("columns.npy", npy(&header("True", "(3, 2)"), &[1, 3, 5, 2, 4, 6])),
            ("labels.npy", npy(&header("True", "(1000000000, 2)"), &[])),
            ("one.npy", npy(&header("False", "()"), &[9])),
        ]);
        let rows = |name: &str| if name == "labels" { 0 } else { 2 };
        let arrays = read_some(file.path(), 16, &rows).unwrap();
        let found = |name: &str| (arrays[name].shape.clone(), arrays[name].data.to_vec());
        assert_eq!(found("long"), (vec![2, 2], vec![1, 2, 3, 4]));
        assert_eq!(found("columns"), (vec![2, 2], vec![1, 2, 3, 4]));
        assert_eq!(found("labels"), (vec![0, 2], vec![]));
        assert_eq!(found("one"), (vec![], vec![9]));
        assert!(read_some(file.path(), 8, &rows).is_err());
    }

    #[test]
    fn fortran_order_and_big_endian_come_out_row_major_and_little_endian() {
        let header = "{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }";
        // Columns (1, 4), (2, 5), (3, 6).
        let data: Vec<u8> = [1i16, 4, 2, 5, 3, 6].iter().flat_map(|v| v.to_be_bytes()).collect();
        let tensor = one(header, &data).unwrap();
        let row_major: Vec<u8> = (1i16..=6).flat_map(i16::to_le_bytes).collect();
        assert_eq!((tensor.dtype, &tensor.data[..]), (DType::I16, &row_major[..]));
    }

    #[test]
    fn texts_lose_their_padding() {
        let data: Vec<u8> = ['o', 'n', '\0', 'o', 'f', 'f']
            .iter()
            .flat_map(|c| (*c as u32).to_le_bytes())
            .collect();
        let header = "{'descr': '<U3', 'fortran_order': False, 'shape': (2,), }";
        assert_eq!(one(header, &data).unwrap().strings().unwrap(), ["on", "off"]);
    }

    #[test]
    fn arrays_without_elements_are_read() {
        for order in ["True", "False"] {
            let header = format!("{{'descr': '<f4', 'fortran_order': {order}, 'shape': (3, 0), }}");
            assert_eq!(one(&header, &[]).unwrap().shape, [3, 0]);
        }
    }

    #[test]
    fn bad_headers_and_sizes_are_refused_in_words() {
        let of = |descr: &str, shape: &str| {
            format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")
        };
        let huge = "(18446744073709551615, 2)";
        for (header, expected) in [
            (of("'<f4'", "(3,)"), "ends after 8 bytes"),
            (of("'<f4'", huge), "impossible shape"),
            (of("'<f4'", "(1000000000000,)"), "may still be held"),
            (of("'<f4'", "(-1,)"), "not understood"),
            (of("'<c8'", "(1,)"), "is handled"),
            (of("'|O'", "(1,)"), "is handled"),
            (of("'<U0'", "(1,)"), "is handled"),
            (of("[('a', '<f4')]", "(1,)"), "not understood"),
            ("(".repeat(60_000), "not understood"),
            (String::new(), "not understood"),
        ] {
            let problem = one(&header, &[0; 8]).unwrap_err();
            let expected = expected.trim_start_matches("is ");
            assert!(problem.contains(expected), "{problem} should contain {expected:?}");
        }
        let long = [b"\x93NUMPY\x02\x00".as_slice(), &[0xFF; 4]].concat();
        let problem = read_array(&mut &long[..], usize::MAX, &mut 1).unwrap_err();
        assert!(problem.contains("above the limit"), "{problem}");
    }

    #[test]
    fn files_that_are_no_archives_are_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "not a zip").unwrap();
        let error = read(file.path()).unwrap_err();
        assert!(error.to_string().starts_with(&file.path().display().to_string()), "{error}");
        assert!(!error.unreadable);
        assert!(read(Path::new("/nonexistent.npz")).unwrap_err().unreadable);
        assert!(!read(Path::new("/dev")).unwrap_err().unreadable);
    }
}
