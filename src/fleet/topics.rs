//! Names of a broker's topics, and who they are for. All begin with `blochd/v1/<fleet>/`:
//!
//! | topic | written by | retained |
//! |---|---|---|
//! | `desired/node/<id>` | operators | a bundle for one node |
//! | `desired/group/<label>=<value>` | operators | a bundle for the nodes of that label |
//! | `desired/all` | operators | a bundle for all |
//! | `reported/<id>` | the node | its state whole; changes of its figures follow, not retained |
//! | `presence/<id>` | the node, and the broker as its last will | `online` or `offline` |
//!
//! Names have letters, digits, `-`, `_` and `.` only, so that none of them reaches into another topic.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::units::is_fleet_name;

/// Why a name does not stand in a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    #[error("{0:?} is no name: write 1 to 128 letters, digits, '-', '_' and '.'")]
    Name(String),
    #[error("{0:?} is no target: write node:ID, group:LABEL=VALUE or all")]
    Target(String),
}

/// The topics of one fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    root: String,
}

/// What a message of a fleet is, by its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A bundle.
    Desired(Target),
    /// The state of this node.
    Reported(String),
    /// Whether this node is there.
    Presence(String),
}

/// Whom a bundle is published for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Node(String),
    Group { label: String, value: String },
    All,
}

impl Topics {
    /// # Errors
    /// [`TopicError::Name`] where `fleet` is none.
    pub fn new(fleet: &str) -> Result<Self, TopicError> {
        Ok(Self { root: format!("blochd/v1/{}", checked(fleet)?) })
    }

    pub fn desired(&self, target: &Target) -> String {
        let root = &self.root;
        match target {
            Target::Node(id) => format!("{root}/desired/node/{id}"),
            Target::Group { label, value } => format!("{root}/desired/group/{label}={value}"),
            Target::All => format!("{root}/desired/all"),
        }
    }

    /// What a node listens to.
    ///
    /// # Errors
    /// [`TopicError::Name`] where its id, or a label, is none.
    pub fn of_node(
        &self,
        id: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Vec<String>, TopicError> {
        let mut targets = vec![Target::All, Target::node(id)?];
        for (label, value) in labels {
            targets.push(Target::group(label, value)?);
        }
        Ok(targets.iter().map(|target| self.desired(target)).collect())
    }

    /// # Errors
    /// [`TopicError::Name`] where `id` is none.
    pub fn reported(&self, id: &str) -> Result<String, TopicError> {
        Ok(format!("{}/reported/{}", self.root, checked(id)?))
    }

    /// # Errors
    /// [`TopicError::Name`] where `id` is none.
    pub fn presence(&self, id: &str) -> Result<String, TopicError> {
        Ok(format!("{}/presence/{}", self.root, checked(id)?))
    }

    /// Filters of what operators follow: the state and the presence of every node.
    pub fn of_operators(&self) -> [String; 2] {
        [format!("{}/reported/+", self.root), format!("{}/presence/+", self.root)]
    }

    /// What a message is; `None`: nothing of this fleet.
    pub fn read(&self, topic: &str) -> Option<Heard> {
        let rest = topic.strip_prefix(&self.root)?.strip_prefix('/')?;
        let mut levels = rest.split('/');
        let heard = match (levels.next()?, levels.next()?) {
            ("reported", id) => Heard::Reported(checked(id).ok()?),
            ("presence", id) => Heard::Presence(checked(id).ok()?),
            ("desired", "all") => Heard::Desired(Target::All),
            ("desired", "node") => Heard::Desired(Target::node(levels.next()?).ok()?),
            ("desired", "group") => {
                let (label, value) = levels.next()?.split_once('=')?;
                Heard::Desired(Target::group(label, value).ok()?)
            }
            (_, _) => return None,
        };
        levels.next().is_none().then_some(heard)
    }
}

impl Target {
    /// # Errors
    /// [`TopicError::Name`] where `id` is none.
    pub fn node(id: &str) -> Result<Self, TopicError> {
        Ok(Self::Node(checked(id)?))
    }

    /// # Errors
    /// [`TopicError::Name`] where one of them is none.
    pub fn group(label: &str, value: &str) -> Result<Self, TopicError> {
        Ok(Self::Group { label: checked(label)?, value: checked(value)? })
    }

    /// Whether a node of this name with these labels listens to it.
    pub fn reaches(&self, id: &str, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Node(name) => name == id,
            Self::Group { label, value } => labels.get(label) == Some(value),
            Self::All => true,
        }
    }
}

impl FromStr for Target {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        let wrong = || TopicError::Target(text.chars().take(128).collect());
        match text.split_once(':') {
            None if text == "all" => Ok(Self::All),
            Some(("node", id)) => Self::node(id),
            Some(("group", group)) => {
                let (label, value) = group.split_once('=').ok_or_else(wrong)?;
                Self::group(label, value)
            }
            None | Some(_) => Err(wrong()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node:{id}"),
            Self::Group { label, value } => write!(f, "group:{label}={value}"),
            Self::All => f.write_str("all"),
        }
    }
}

fn checked(name: &str) -> Result<String, TopicError> {
    if is_fleet_name(name) {
        return Ok(name.to_owned());
    }
    Err(TopicError::Name(name.chars().take(128).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_node_listens_to_itself_its_groups_and_all() {
        let topics = Topics::new("plant").unwrap();
        let heard = topics.of_node("box-1", &labels(&[("site", "berlin"), ("line", "2")])).unwrap();
        assert_eq!(
            heard,
            [
                "blochd/v1/plant/desired/all",
                "blochd/v1/plant/desired/node/box-1",
                "blochd/v1/plant/desired/group/line=2",
                "blochd/v1/plant/desired/group/site=berlin",
            ]
        );
        assert_eq!(topics.reported("box-1").unwrap(), "blochd/v1/plant/reported/box-1");
        assert_eq!(topics.presence("box-1").unwrap(), "blochd/v1/plant/presence/box-1");
    }

    #[test]
    fn no_name_reaches_into_another_topic() {
        let topics = Topics::new("plant").unwrap();
        for wrong in ["", "a/b", "+", "#", "a+", "box#", "a b", "ä", "\0", &"x".repeat(129)] {
            assert!(Topics::new(wrong).is_err(), "{wrong:?}");
            assert!(topics.reported(wrong).is_err(), "{wrong:?}");
            assert!(topics.presence(wrong).is_err(), "{wrong:?}");
            assert!(topics.of_node(wrong, &BTreeMap::new()).is_err(), "{wrong:?}");
            assert!(topics.of_node("a", &labels(&[("site", wrong)])).is_err(), "{wrong:?}");
            assert!(topics.of_node("a", &labels(&[(wrong, "x")])).is_err(), "{wrong:?}");
            assert!(format!("node:{wrong}").parse::<Target>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn targets_are_read_as_they_are_written() {
        for text in ["all", "node:box-1", "group:site=berlin"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for wrong in ["", "every", "node", "node:", "group:site", "group:=x", "label:a=b", "all:x"]
        {
            assert!(wrong.parse::<Target>().is_err(), "{wrong:?}");
        }
        let here = labels(&[("site", "berlin")]);
        let reaches = |target: &str| target.parse::<Target>().unwrap().reaches("box-1", &here);
        assert!(reaches("all") && reaches("node:box-1") && reaches("group:site=berlin"));
        assert!(!reaches("node:box-2") && !reaches("group:site=bonn") && !reaches("group:x=y"));
    }

    proptest! {
        #[test]
        fn what_is_published_is_read_as_what_it_is(
            id in "[A-Za-z0-9._-]{1,20}", label in "[a-z]{1,8}", value in "[a-z0-9.]{1,8}",
        ) {
            let topics = Topics::new("plant").unwrap();
            let targets =
                [Target::All, Target::node(&id).unwrap(), Target::group(&label, &value).unwrap()];
            for target in targets {
                let read = topics.read(&topics.desired(&target));
                prop_assert_eq!(read, Some(Heard::Desired(target)));
            }
            let reported = topics.read(&topics.reported(&id).unwrap());
            prop_assert_eq!(reported, Some(Heard::Reported(id.clone())));
            let presence = topics.read(&topics.presence(&id).unwrap());
            prop_assert_eq!(presence, Some(Heard::Presence(id)));
        }

        #[test]
        fn no_topic_is_read_as_more_than_it_says(topic in "(blochd/v1/plant/)?[a-z=/+#]{0,24}") {
            let topics = Topics::new("plant").unwrap();
            let written = match topics.read(&topic) {
                None => return Ok(()),
                Some(Heard::Desired(target)) => topics.desired(&target),
                Some(Heard::Reported(id)) => topics.reported(&id).unwrap(),
                Some(Heard::Presence(id)) => topics.presence(&id).unwrap(),
            };
            prop_assert_eq!(written, topic);
        }
    }
}
