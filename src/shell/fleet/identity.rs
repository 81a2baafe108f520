//! Who this box is: as its configuration says, or by a name made of the machine's id.

use std::path::{Path, PathBuf};

use crate::config::{Fleet, NodeId};
use crate::fleet::Node;
use crate::limits;
use crate::shell::files;
use crate::shell::hashes::hexadecimal;

/// Where systemd and others keep the machine's id.
const MACHINE_ID: &str = "/etc/machine-id";

/// Bytes of the hash that name a box: no two of a fleet will ever share them.
const ID_BYTES: usize = 16;

/// A box without a name.
#[derive(Debug, thiserror::Error)]
#[error("{} does not tell who this box is ({why}): name it by fleet.node_id", path.display())]
pub struct NoIdentity {
    path: PathBuf,
    why: String,
}

/// This box in its fleet.
///
/// # Errors
/// Where the configuration does not name it, and the machine has no id.
pub fn node(fleet: &Fleet) -> Result<Node, NoIdentity> {
    let id = match &fleet.node_id {
        Some(NodeId(id)) => id.clone(),
        None => of_machine(Path::new(MACHINE_ID))?,
    };
    Ok(Node { id, labels: fleet.labels.0.clone() })
}

/// The machine's id itself is confidential: what is told of it is a hash, made for this purpose alone.
fn of_machine(path: &Path) -> Result<String, NoIdentity> {
    let wrong = |why: String| NoIdentity { path: path.to_owned(), why };
    let text = files::read_text(path, limits::FLEET_NAME_BYTES);
    let text = text.map_err(|error| wrong(error.to_string()))?;
    let id = text.trim();
    if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong("it has no 32 hexadecimal digits".to_owned()));
    }
    let hash = blake3::derive_key("blochd fleet node id v1", id.to_ascii_lowercase().as_bytes());
    Ok(hexadecimal(&hash[..ID_BYTES]))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_box_is_named_by_a_hash_of_its_machines_id_which_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine-id");
        let of = |text: &str| {
            fs::write(&path, text).unwrap();
            of_machine(&path)
        };
        let name = of("0123456789abcdef0123456789abcdef\n").unwrap();
        assert_eq!(name, of("0123456789ABCDEF0123456789ABCDEF").unwrap());
        assert_eq!((name.len(), name.contains("0123456789abcdef")), (32, false));
        assert_ne!(name, of("1123456789abcdef0123456789abcdef\n").unwrap());
        // Images that were never started have none, or this word.
        for text in ["", "uninitialized\n"] {
            assert!(of(text).unwrap_err().to_string().contains("fleet.node_id"));
        }
        fs::remove_file(&path).unwrap();
        assert!(of_machine(&path).is_err());
    }
}
