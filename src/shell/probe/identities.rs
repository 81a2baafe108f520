//! What does not change of a device is asked once: each question is a call into a driver, and a sweep shall
//! cost next to nothing.

use std::collections::BTreeMap;

use crate::hardware::Device;
use crate::limits;

/// Identities by a library's own number of a device.
pub struct Identities<K> {
    known: BTreeMap<K, Device>,
    /// Sweeps since they were asked.
    age: u32,
    /// The numbers of the last sweep.
    last: Vec<K>,
}

impl<K> Default for Identities<K> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), age: 0, last: Vec::new() }
    }
}

impl<K: Ord + Clone> Identities<K> {
    /// Begins a sweep over the devices of these numbers. Where others are there than before, a number may stand
    /// for another device now: all are asked again, and so they are every so often.
    pub fn begin(&mut self, numbers: &[K]) {
        self.age += 1;
        if self.last != numbers || self.age > limits::IDENTITY_SWEEPS {
            self.known.clear();
            self.age = 0;
            self.last = numbers.to_vec();
        }
    }

    pub fn get(&self, number: &K) -> Option<&Device> {
        self.known.get(number)
    }

    pub fn keep(&mut self, number: K, device: &Device) {
        self.known.insert(number, device.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::Vendor;

    #[test]
    fn numbers_that_change_and_old_age_bring_all_questions_again() {
        let mut identities = Identities::default();
        let device = Device::new(Vendor::Kunlunxin, 1);
        identities.begin(&[0, 1]);
        identities.keep(1, &device);
        identities.begin(&[0, 1]);
        assert_eq!(identities.get(&1), Some(&device));
        identities.begin(&[1]);
        assert_eq!(identities.get(&1), None);
        identities.keep(1, &device);
        for _ in 0..limits::IDENTITY_SWEEPS {
            identities.begin(&[1]);
            assert!(identities.get(&1).is_some());
        }
        identities.begin(&[1]);
        assert_eq!(identities.get(&1), None);
    }
}
