//! Memory that this process holds and does not need for the moment, given back to the kernel.

use std::fs;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

use crate::limits;

/// Gives back what was allocated and freed: a model is read, parsed and copied before it serves, and glibc
/// keeps the pages of all that. Takes milliseconds, in which other threads may wait for memory.
pub fn give_back_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function takes a number and touches free memory only.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Gives back the pages of the program's own code that the start has touched. Most is not needed again; the
/// rest comes back from the file, page by page.
pub fn give_back_program() {
    let Ok(program) = fs::read_link("/proc/self/exe") else { return };
    let Ok(smaps) = fs::read_to_string("/proc/self/smaps") else { return };
    for (address, length) in unchanged(&smaps, &program.to_string_lossy()) {
        let Some(address) = NonNull::new(std::ptr::without_provenance_mut(address.get())) else {
            continue;
        };
        // SAFETY: the mapping is of the program's file and of this address and length, cannot be written to,
        // and has no page that differs from the file: whoever reads it finds what was there.
        let advised = unsafe { madvise(address, length, MmapAdvise::MADV_DONTNEED) };
        if let Err(error) = advised {
            tracing::debug!("the program's pages are not given back: {error}");
        }
    }
}

/// Addresses and lengths of the mappings of `program` that cannot be written to, have pages in memory, and hold
/// nothing but the file.
fn unchanged(smaps: &str, program: &str) -> Vec<(NonZeroUsize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    // An emulated kernel, as QEMU's, says of every mapping that nothing of it is in memory, nor changed. Pages
    // that relocation wrote to would be lost there.
    let mut resident = false;
    for line in smaps.lines().take(limits::SMAPS_LINES) {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if let Some((from, to)) = first.split_once('-') {
            let number = |text| usize::from_str_radix(text, 16).ok();
            let range = number(from)
                .zip(number(to))
                .and_then(|(from, to)| Some((NonZeroUsize::new(from)?, to.checked_sub(from)?)));
            let is_ours = second.starts_with('r') && !second.contains('w');
            let named = line
                .split_once('/')
                .is_some_and(|(_, rest)| program.strip_prefix('/') == Some(rest));
            current = range.filter(|_| is_ours && named);
            resident = false;
        } else if first == "Rss:" {
            resident = second != "0";
        } else if first == "Anonymous:" && second == "0" && resident {
            // Pages that relocation wrote to, now protected, are the process's own.
            found.extend(current.take());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_read_only_mappings_of_the_program_are_given_back() {
        let part = |range: &str, rights: &str, file: &str, anonymous: u32| {
            format!(
                "{range} {rights} 00000000 fe:00 77       {file}\nSize: 8 kB\nRss: 8 kB\n\
                 Anonymous:    {anonymous} kB\nVmFlags: rd mr\n"
            )
        };
        let smaps = [
            part("1000-3000", "r--p", "/usr/bin/blochd", 0),
            part("3000-9000", "r-xp", "/usr/bin/blochd", 0),
            part("9000-a000", "r--p", "/usr/bin/blochd", 4),
            part("a000-b000", "rw-p", "/usr/bin/blochd", 0),
            part("b000-c000", "r-xp", "/usr/lib/blochd", 0),
            part("c000-d000", "r-xp", "", 0),
            part("d000-e000", "r-xp", "/usr/bin/blochd (deleted)", 0),
        ];
        let of = |address, length| (NonZeroUsize::new(address).unwrap(), length);
        let found = unchanged(&smaps.concat(), "/usr/bin/blochd");
        assert_eq!(found, [of(0x1000, 0x2000), of(0x3000, 0x6000)]);
        assert_eq!(unchanged("1000-", "/x"), []);
        // What QEMU's user emulation says.
        let emulated =
            part("1000-3000", "r--p", "/usr/bin/blochd", 0).replace("Rss: 8 kB", "Rss: 0 kB");
        assert_eq!(unchanged(&emulated, "/usr/bin/blochd"), []);
    }

    #[test]
    fn the_program_runs_on_after_it_gave_its_pages_back() {
        give_back_program();
        give_back_heap();
        let words: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        assert_eq!(words.concat().len(), 10 + 90 * 2 + 900 * 3);
    }
}
