//! Accelerators without their vendors' libraries: names of device nodes and PCI identities.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Vendor;

/// What is seen of one vendor's devices.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Numbers of the device nodes. The cores of a system on a chip have these alone.
    pub nodes: BTreeSet<u32>,
    /// Whether nodes of the driver itself are there.
    pub driver: bool,
    /// By PCI address.
    pub cards: BTreeMap<String, PciCard>,
}

/// A card on the PCI bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciCard {
    /// The device's number, such as 0xd500.
    pub device: u16,
    /// The chip that it is known to stand for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub chip: Option<String>,
}

impl Seen {
    /// Whether anything of the vendor is there.
    pub fn is_any(&self) -> bool {
        self.driver || !self.nodes.is_empty() || !self.cards.is_empty()
    }
}

/// Numbered nodes, by the beginning of their names, and nodes of the driver.
const NODES: &[(Vendor, &[&str], &[&str])] = &[
    (Vendor::Ascend, &["davinci"], &["davinci_manager", "devmm_svm", "hisi_hdc"]),
    (Vendor::Cambricon, &["cambricon_dev"], &["cambricon_ctl"]),
    (Vendor::Kunlunxin, &["xpu"], &["xpuctrl"]),
];

/// Numbers of devices and the chips that they stand for; a chip whose name nobody has published has none.
type Chips = &'static [(u16, &'static str)];

/// The vendors' PCI numbers, and those of the accelerators among their devices: the same companies make
/// network cards.
const CARDS: &[(Vendor, u16, Chips)] = &[
    (
        Vendor::Ascend,
        0x19e5,
        &[(0xd100, "310"), (0xd500, "310P"), (0xd801, "910"), (0xd802, "910B"), (0xd803, "910_93")],
    ),
    (Vendor::Cambricon, 0xcabc, &[(0x0290, "MLU290"), (0x0370, "MLU370")]),
    (Vendor::Kunlunxin, 0x1d22, &[(0x3684, ""), (0x3685, "")]),
];

/// PCI's class of processing accelerators.
const ACCELERATOR_CLASS: u32 = 0x12;

/// Whose device node this is, and which device's; `None` for its driver's own.
pub fn node(name: &str) -> Option<(Vendor, Option<u32>)> {
    NODES.iter().find_map(|(vendor, numbered, drivers)| {
        if drivers.contains(&name) {
            return Some((*vendor, None));
        }
        let digits = numbered.iter().find_map(|start| name.strip_prefix(start))?;
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse().ok().filter(|_| plain)?;
        Some((*vendor, Some(number)))
    })
}

/// The vendor of this number on the PCI bus.
pub fn vendor_of(number: u32) -> Option<Vendor> {
    CARDS.iter().find(|(_, known, _)| u32::from(*known) == number).map(|(vendor, ..)| *vendor)
}

/// An accelerator by the texts of `vendor`, `device` and `class` in its folder of sysfs.
pub fn card(vendor: &str, device: &str, class: &str) -> Option<(Vendor, PciCard)> {
    let (vendor, device) = (hexadecimal(vendor)?, u16::try_from(hexadecimal(device)?).ok()?);
    let (name, _, known) = CARDS.iter().find(|(_, number, _)| u32::from(*number) == vendor)?;
    let chip = known.iter().find(|(number, _)| *number == device).map(|(_, chip)| *chip);
    let is_accelerator = hexadecimal(class).is_some_and(|class| class >> 16 == ACCELERATOR_CLASS);
    if chip.is_none() && !is_accelerator {
        return None;
    }
    let chip = chip.filter(|chip| !chip.is_empty()).map(str::to_owned);
    Some((*name, PciCard { device, chip }))
}

fn hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_nodes_belong_to_their_vendors_and_look_alikes_to_nobody() {
        let cases = [
            ("davinci0", Some((Vendor::Ascend, Some(0)))),
            ("davinci15", Some((Vendor::Ascend, Some(15)))),
            ("davinci_manager", Some((Vendor::Ascend, None))),
            ("devmm_svm", Some((Vendor::Ascend, None))),
            ("cambricon_dev3", Some((Vendor::Cambricon, Some(3)))),
            ("cambricon_ctl", Some((Vendor::Cambricon, None))),
            ("xpu1", Some((Vendor::Kunlunxin, Some(1)))),
            ("xpuctrl", Some((Vendor::Kunlunxin, None))),
            ("cambricon_ipcm0", None),
            ("xpu", None),
            ("xpu+1", None),
            ("xpu99999999999", None),
            ("davinci0_old", None),
            ("null", None),
        ];
        for (name, expected) in cases {
            assert_eq!(node(name), expected, "{name}");
        }
    }

    #[test]
    fn cards_are_known_by_number_or_by_class_and_network_cards_are_none() {
        let chip = |chip: &str| Some(chip.to_owned());
        let found = card("0x19e5\n", "0xd500\n", "0x120000\n");
        assert_eq!(found, Some((Vendor::Ascend, PciCard { device: 0xd500, chip: chip("310P") })));
        // A chip of tomorrow.
        let found = card("0x19e5", "0xd999", "0x120000");
        assert_eq!(found, Some((Vendor::Ascend, PciCard { device: 0xd999, chip: None })));
        let found = card("0xcabc", "0x0370", "0x030000");
        assert_eq!(found.unwrap().1.chip.as_deref(), Some("MLU370"));
        assert_eq!(card("0x1d22", "0x3684", "").unwrap().0, Vendor::Kunlunxin);
        // A network card of the same company, another company's accelerator, nonsense.
        assert_eq!(card("0x19e5", "0x0222", "0x020000"), None);
        assert_eq!(card("0x10de", "0xd500", "0x120000"), None);
        assert_eq!(card("19e5", "0xd500", "0x120000"), None);
        assert_eq!(card("0x19e5", "0x1d500", "0x120000"), None);
    }
}
