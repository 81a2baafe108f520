//! Looks for accelerators without their vendors' libraries: a folder of names, and some small files.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use crate::hardware::{Seen, Vendor, parse};
use crate::limits;

/// What is seen below a root: `/`, or a copy of its `/dev` and `/sys`. Vendors of which nothing is there are
/// left out.
pub fn accelerators(root: &Path) -> BTreeMap<Vendor, Seen> {
    let mut all: BTreeMap<Vendor, Seen> = BTreeMap::new();
    for name in names(&root.join("dev")) {
        let Some((vendor, number)) = parse::node(&name) else { continue };
        let seen = all.entry(vendor).or_default();
        match number {
            Some(number) => drop(seen.nodes.insert(number)),
            None => seen.driver = true,
        }
    }
    let bus = root.join("sys/bus/pci/devices");
    for address in names(&bus) {
        let text = |file: &str| read(&bus.join(&address).join(file));
        let card = || parse::card(&text("vendor")?, &text("device")?, &text("class")?);
        if let Some((vendor, card)) = card() {
            all.entry(vendor).or_default().cards.insert(address, card);
        }
    }
    all
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.take(limits::DIRECTORY_ENTRIES).collect()
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    file.take(limits::SYSFS_VALUE_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn nodes_and_cards_are_found_by_vendor_and_a_box_without_any_shows_none() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(accelerators(root.path()), BTreeMap::new());
        for name in ["davinci0", "davinci_manager", "xpuctrl", "null", "sda"] {
            put(root.path(), &format!("dev/{name}"), "");
        }
        let cards = [
            ("0000:01:00.0", "0x19e5", "0xd500", "0x120000"),
            ("0000:02:00.0", "0x19e5", "0x0222", "0x020000"),
            ("0000:03:00.0", "0xcabc", "0x0370", "0x120000"),
        ];
        for (address, vendor, device, class) in cards {
            for (file, text) in [("vendor", vendor), ("device", device), ("class", class)] {
                let path = format!("sys/bus/pci/devices/{address}/{file}");
                put(root.path(), &path, &format!("{text}\n"));
            }
        }
        // A folder without files, as of a device that is being removed.
        fs::create_dir(root.path().join("sys/bus/pci/devices/0000:04:00.0")).unwrap();
        let found = accelerators(root.path());
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), Vendor::ALL);
        let ascend = &found[&Vendor::Ascend];
        assert_eq!((ascend.nodes.len(), ascend.driver, ascend.cards.len()), (1, true, 1));
        assert_eq!(ascend.cards["0000:01:00.0"].chip.as_deref(), Some("310P"));
        assert_eq!(found[&Vendor::Cambricon].cards.len(), 1);
        let kunlunxin = &found[&Vendor::Kunlunxin];
        assert!(kunlunxin.driver && kunlunxin.nodes.is_empty() && kunlunxin.is_any());
    }
}
