//! Bundles that come by the broker go into the inbox as one file a topic, whole or not at all: whoever looks
//! there finds them, after a restart too. Which of them somebody sent just now is remembered until they are
//! answered: an old one among them is somebody's mistake, one that a broker retains is none.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::limits;
use crate::shell::fleet::inbox;
use crate::shell::links::mqtt::Arrived;
use crate::units::Digest;

/// Digests of bundles that somebody sent now and that nothing was said of yet, the newest last. Cloning gives
/// another handle.
#[derive(Debug, Clone, Default)]
pub struct Sent(Arc<Mutex<VecDeque<Digest>>>);

impl Sent {
    fn all(&self) -> MutexGuard<'_, VecDeque<Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, bundle: Digest) {
        let mut all = self.all();
        all.retain(|one| *one != bundle);
        all.push_back(bundle);
        let surplus = all.len().saturating_sub(limits::LINK_SENT);
        all.drain(..surplus);
    }

    /// Whether a bundle was sent now; it is answered with that.
    pub fn take(&self, bundle: &Digest) -> bool {
        let mut all = self.all();
        let before = all.len();
        all.retain(|one| one != bundle);
        all.len() < before
    }

    /// None of them is news any more.
    pub fn forget(&self) {
        self.all().clear();
    }
}

/// Puts bundles into the inbox, the newest of each topic, for as long as there is a link.
pub async fn deliver(mut bundles: mpsc::Receiver<Arrived>, inbox: PathBuf, sent: Sent) {
    let mut waiting: BTreeMap<PathBuf, Arrived> = BTreeMap::new();
    loop {
        tokio::select! {
            arrived = bundles.recv() => {
                let Some(arrived) = arrived else { return };
                if !arrived.retained {
                    sent.note(Digest::of(&arrived.bytes));
                }
                waiting.insert(inbox.join(file_name(&arrived.topic)), arrived);
            }
            // A disk that was full has room again some time.
            () = tokio::time::sleep(limits::LINK_INBOX_AGAIN), if !waiting.is_empty() => {}
        }
        while let Some((path, arrived)) = waiting.pop_first() {
            let (at, this) = (path.clone(), arrived.clone());
            let put =
                tokio::task::spawn_blocking(move || put(&at, this.bytes, this.retained)).await;
            if let Ok(Err(error)) = put {
                tracing::error!("cannot put a bundle into the inbox: {}: {error}", path.display());
                waiting.insert(path, arrived);
                break;
            }
        }
    }
}

/// Writes a bundle, unless it lies there already: a broker gives what it retains at every connection. One that
/// somebody sent now is offered anew all the same, for an answer.
fn put(path: &Path, bytes: Bytes, retained: bool) -> std::io::Result<()> {
    if !inbox::put(path, bytes)? && !retained {
        File::open(path)?.set_modified(SystemTime::now())?;
    }
    Ok(())
}

/// The file of a topic: `broker-group-site=berlin.bundle`. Topics that are listened to have names without
/// slashes.
fn file_name(topic: &str) -> String {
    let target = topic.split_once("/desired/").map_or("", |(_, target)| target);
    format!("broker-{}.bundle", target.replace('/', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_news_once_and_only_the_newest_are_remembered() {
        let sent = Sent::default();
        let digest = |n: usize| Digest::of(&n.to_le_bytes());
        for n in 0..=limits::LINK_SENT {
            sent.note(digest(n));
        }
        assert!(!sent.take(&digest(0)), "it made place");
        assert!(sent.take(&digest(1)) && !sent.take(&digest(1)));
        sent.forget();
        assert!(!sent.take(&digest(2)));
    }

    #[test]
    fn a_topic_has_a_file_of_its_own() {
        for (topic, name) in [
            ("blochd/v1/plant/desired/all", "broker-all.bundle"),
            ("blochd/v1/plant/desired/node/box-1", "broker-node-box-1.bundle"),
            ("blochd/v1/plant/desired/group/site=berlin", "broker-group-site=berlin.bundle"),
        ] {
            assert_eq!(file_name(topic), name);
        }
    }

    #[test]
    fn a_bundle_that_lies_there_is_not_written_again_and_offered_anew_where_it_was_sent_now() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inbox/broker-all.bundle");
        let looks = || {
            let meta = std::fs::metadata(&path).unwrap();
            (meta.ino(), meta.modified().unwrap())
        };
        put(&path, Bytes::from_static(b"one"), true).unwrap();
        File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let first = looks();
        put(&path, Bytes::from_static(b"one"), true).unwrap();
        assert_eq!(looks(), first);
        put(&path, Bytes::from_static(b"one"), false).unwrap();
        assert!(looks().0 == first.0 && looks().1 > first.1);
        put(&path, Bytes::from_static(b"two"), true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
    }
}
