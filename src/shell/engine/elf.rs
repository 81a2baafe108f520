//! Where a library looks for those that it needs: the paths in the dynamic section of its ELF file. A confined
//! process must be let there before anything is loaded.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::limits;

/// Kinds of segments: what is loaded, and the dynamic section.
const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;

/// Bytes of a segment's entry in the table of 64-bit files.
const SEGMENT: u16 = 56;

/// Tags of the dynamic section: the table of texts, and the places of the paths in it.
const STRTAB: u64 = 5;
const RPATH: u64 = 15;
const RUNPATH: u64 = 29;

/// The folders that the library at `path` names by itself, `$ORIGIN` as its own place; none where the file is
/// no 64-bit little-endian library, which the linker would not load either.
pub fn run_paths(path: &Path) -> Vec<PathBuf> {
    let Ok(path) = path.canonicalize() else { return Vec::new() };
    let Ok(file) = File::open(&path) else { return Vec::new() };
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        let read = file.read_at(&mut bytes, at).ok()?;
        bytes.truncate(read);
        Some(bytes)
    };
    let origin = path.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
    let text = texts(&read).unwrap_or_default().join(":");
    let named = text.split(':').filter(|folder| !folder.is_empty());
    let named = named.map(|f| f.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin));
    named.map(PathBuf::from).filter(|folder| folder.is_absolute()).collect()
}

type Read<'a> = &'a dyn Fn(u64, usize) -> Option<Vec<u8>>;

/// The texts of both kinds of paths.
fn texts(read: Read) -> Option<Vec<String>> {
    let header = read(0, 64)?;
    if header.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (at, size, count) = (u64_at(&header, 32)?, u16_at(&header, 54)?, u16_at(&header, 56)?);
    if size != SEGMENT || usize::from(count) > limits::ELF_SEGMENTS {
        return None;
    }
    let table = read(at, usize::from(size) * usize::from(count))?;
    let mut loaded = Vec::new();
    let mut dynamic = None;
    for segment in table.chunks_exact(size.into()) {
        let (offset, address) = (u64_at(segment, 8)?, u64_at(segment, 16)?);
        let length = u64_at(segment, 32)?;
        match u32_at(segment, 0)? {
            LOAD => loaded.push((address, offset, length)),
            DYNAMIC => dynamic = Some((offset, length)),
            _ => {}
        }
    }
    let (offset, length) = dynamic?;
    let entries = read(offset, usize::try_from(length).ok()?.min(limits::ELF_DYNAMIC_BYTES))?;
    let entries: Vec<(u64, u64)> = entries
        .chunks_exact(16)
        .filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?)))
        .collect();
    let strings = entries.iter().find(|(tag, _)| *tag == STRTAB)?.1;
    let strings = loaded.iter().find_map(|(address, offset, length)| {
        let within = strings.checked_sub(*address).filter(|within| within < length)?;
        offset.checked_add(within)
    })?;
    let paths = entries.iter().filter(|(tag, _)| matches!(*tag, RPATH | RUNPATH));
    let text = |(_, at): &(u64, u64)| {
        let bytes = read(strings.checked_add(*at)?, limits::ELF_PATHS_BYTES)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        String::from_utf8(bytes[..end].to_vec()).ok()
    };
    Some(paths.filter_map(text).collect())
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn paths_that_a_library_names_are_found_and_what_is_no_library_names_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (source, library) = (root.join("a.c"), root.join("liba.so"));
        std::fs::write(&source, "int one(void) { return 1; }").unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wl,-rpath,$ORIGIN/../more:/opt/vendor/lib64:", "-o"])
            .args([&library, &source])
            .status()
            .expect("a C compiler, which Rust links with");
        assert!(built.success());
        let expected = [root.join("../more"), PathBuf::from("/opt/vendor/lib64")];
        assert_eq!(run_paths(&library), expected);
        let whole = std::fs::read(&library).unwrap();
        for length in [0, 5, 63, 64, 100, 500] {
            std::fs::write(&library, &whole[..length]).unwrap();
            assert_eq!(run_paths(&library), Vec::<PathBuf>::new(), "{length}");
        }
        assert_eq!(run_paths(&source), Vec::<PathBuf>::new());
    }
}
