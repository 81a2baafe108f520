//! Whom a bundle is for: nodes by name and label, and of these a share that a hash decides.

use std::collections::{BTreeMap, BTreeSet};

use super::refused::Refused;

/// Hundredths of a percent in the whole.
pub const WHOLE: u64 = 10_000;

/// Who this box is in its fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    pub id: String,
    pub labels: BTreeMap<String, String>,
}

/// Whom a bundle is for. All that is given must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    /// One of these; empty: any.
    pub nodes: BTreeSet<String>,
    /// For each label one of these values.
    pub labels: BTreeMap<String, BTreeSet<String>>,
    pub share: Option<Share>,
}

/// A part of the nodes for a staged roll-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// In hundredths of a percent.
    pub parts: u64,
    /// Roll-outs of the same salt begin with the same nodes.
    pub salt: String,
}

impl Share {
    /// The node's place in this roll-out, in hundredths of a percent: it takes part once the share is larger.
    pub fn place(&self, node: &str) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("blochd fleet roll-out v1");
        hasher.update(&(self.salt.len() as u64).to_le_bytes());
        hasher.update(self.salt.as_bytes());
        hasher.update(node.as_bytes());
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        let scaled = u128::from(u64::from_le_bytes(first)) * u128::from(WHOLE);
        (scaled >> 64) as u64
    }
}

impl Selector {
    /// Whether `node` is meant.
    ///
    /// # Errors
    /// [`Refused::NotForThisNode`] or [`Refused::NotChosen`] with what does not fit.
    pub fn select(&self, node: &Node) -> Result<(), Refused> {
        let other = |why: String| Err(Refused::NotForThisNode { node: node.id.clone(), why });
        if !self.nodes.is_empty() && !self.nodes.contains(&node.id) {
            let first: Vec<&str> = self.nodes.iter().map(String::as_str).take(3).collect();
            let more = if self.nodes.len() > 3 { ", …" } else { "" };
            return other(format!("it is for {}{more}", first.join(", ")));
        }
        for (label, values) in &self.labels {
            let own = node.labels.get(label);
            if own.is_none_or(|own| !values.contains(own)) {
                let wanted: Vec<&str> = values.iter().map(String::as_str).take(3).collect();
                let has = own.map_or("has no such label".to_owned(), |own| format!("has {own}"));
                return other(format!("it is for {label} {}, which {has}", wanted.join(" or ")));
            }
        }
        let Some(share) = &self.share else { return Ok(()) };
        let place = share.place(&node.id);
        if place < share.parts {
            return Ok(());
        }
        Err(Refused::NotChosen { node: node.id.clone(), percent: share.parts, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, labels: &[(&str, &str)]) -> Node {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Node { id: id.to_owned(), labels: labels.iter().map(own).collect() }
    }

    fn share(percent: u64) -> Share {
        Share { parts: percent * 100, salt: "spring".to_owned() }
    }

    #[test]
    fn nodes_are_named_and_labels_must_all_hold() {
        let mut selector = Selector::default();
        assert_eq!(selector.select(&node("a", &[])), Ok(()));
        selector.nodes = ["a".to_owned(), "b".to_owned()].into();
        assert_eq!(selector.select(&node("a", &[])), Ok(()));
        let refused = selector.select(&node("c", &[])).unwrap_err();
        assert_eq!(refused.to_string(), "it is not for this node, c: it is for a, b");
        let values = ["berlin".to_owned(), "hamburg".to_owned()];
        selector.labels = [("site".to_owned(), values.into())].into();
        assert_eq!(selector.select(&node("a", &[("site", "berlin"), ("x", "y")])), Ok(()));
        for wrong in
            [node("a", &[]), node("a", &[("site", "bonn")]), node("c", &[("site", "berlin")])]
        {
            let refused = selector.select(&wrong).unwrap_err();
            assert!(matches!(refused, Refused::NotForThisNode { .. }), "{refused}");
        }
    }

    #[test]
    fn a_larger_share_of_the_same_salt_keeps_those_that_were_in() {
        let nodes: Vec<Node> = (0..2000).map(|n| node(&format!("box-{n}"), &[])).collect();
        let chosen = |share: Share| -> BTreeSet<&str> {
            let selector = Selector { share: Some(share), ..Selector::default() };
            let in_it = nodes.iter().filter(|node| selector.select(node).is_ok());
            in_it.map(|node| node.id.as_str()).collect()
        };
        let (few, more, all) = (chosen(share(10)), chosen(share(50)), chosen(share(100)));
        assert!(few.is_subset(&more) && all.len() == nodes.len() && chosen(share(0)).is_empty());
        // Within five standard deviations of what is asked for.
        assert!((133..=267).contains(&few.len()), "{}", few.len());
        assert!((888..=1112).contains(&more.len()), "{}", more.len());
        let other = Share { salt: "autumn".to_owned(), ..share(10) };
        assert_ne!(chosen(other), few);
    }

    #[test]
    fn a_node_keeps_its_place_in_every_version_of_this_program() {
        let salt = |salt: &str| Share { parts: 0, salt: salt.to_owned() };
        let places = [("spring", "box-1"), ("spring", "box-2"), ("sprin", "gbox-1")]
            .map(|(s, n)| salt(s).place(n));
        assert_eq!(places, PLACES);
    }

    const PLACES: [u64; 3] = [8591, 7279, 5273];
}
